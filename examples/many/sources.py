"""Which pictures there are: in folders, in WebDataset shards, or in a list in Parquet files; and how each is read."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as arrow
import pyarrow.parquet as parquet
from torch import Tensor

from detkit.data import ShardDataset, image_paths, read_image
from detkit.data.images import decode_image


class Picture(NamedTuple):
    """A picture, and the name that its file has or had."""

    image: Tensor
    file_name: str


def listed(sources: list[str]) -> list[str]:
    """The path of every picture, sorted, each once; of a sample in a shard the shard's path and its key."""
    paths = sorted(_shards(sources).sample_names() if _are_shards(sources) else _pictures(sources))
    for path in paths:
        try:
            path.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{path!a}: the name is not in UTF-8, which Parquet needs; rename it") from error
    return paths


def reader(sources: list[str]) -> Callable[[str], Picture]:
    """What reads the picture of a path that is :func:`listed`; ValueError or OSError where it cannot."""
    if not _are_shards(sources):
        return lambda path: Picture(read_image(path), path)
    shards = _shards(sources)
    places = {name: place for place, name in enumerate(shards.sample_names())}

    def read(path: str) -> Picture:
        stored = shards.stored_picture(places[path])
        return Picture(decode_image(io.BytesIO(stored.data), upright=stored.upright, owner=path), stored.name)

    return read


def _are_shards(sources: list[str]) -> bool:
    kinds = {Path(source).suffix for source in sources}
    if kinds & {".tar", ".json"} and kinds != {".tar"} and len(sources) > 1:
        raise ValueError(f"{sources}: give one index of shards (.json), or .tar files alone, or none of either")
    return bool(kinds & {".tar", ".json"})


def _shards(sources: list[str]) -> ShardDataset:
    return ShardDataset(sources[0] if sources[0].endswith(".json") else sources)


def _pictures(sources: list[str]) -> set[str]:
    lists = [source for source in sources if source.endswith(".parquet")]
    others = image_paths([source for source in sources if source not in lists])
    return {*(str(path) for path in others), *(path for name in lists for path in _of_list(name))}


def _of_list(name: str) -> list[str]:
    """The column ``path`` of a Parquet file; relative paths start from its folder."""
    try:
        paths = parquet.ParquetFile(name).read(["path"])["path"].to_pylist()
    except (arrow.ArrowException, KeyError) as error:
        raise ValueError(f"{name} is no Parquet file with a column 'path': {error}") from error
    wrong = next((row for row, path in enumerate(paths) if not isinstance(path, str) or not path), None)
    if wrong is not None:
        raise ValueError(f"{name}: the path of row {wrong} is {paths[wrong]!r}; allowed is the name of a file")
    return [os.path.normpath(Path(name).parent / path) for path in paths]  # one picture, one path
