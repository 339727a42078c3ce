"""Which pictures there are: in folders, in WebDataset shards, or in a list in Parquet files; and how each is read."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

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
    if _are_shards(sources):
        return sorted(_shards(sources).sample_names())
    lists = [source for source in sources if source.endswith(".parquet")]
    others = [source for source in sources if source not in lists]
    return sorted({*(str(path) for path in image_paths(others)), *(path for name in lists for path in _of_list(name))})


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


def _of_list(name: str) -> list[str]:
    """The column ``path`` of a Parquet file; relative paths start from its folder."""
    paths = parquet.read_table(name, columns=["path"])["path"].to_pylist()
    if None in paths:
        raise ValueError(f"{name}: row {paths.index(None)} has no path")
    return [str(Path(name).parent / path) for path in paths]
