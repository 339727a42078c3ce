"""WebDataset shards as a data set: samples of tar files by their number, and so shuffled, shared and resumed as any."""

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset

from detkit._door import door
from detkit._faults import shown
from detkit._regular_file import read_json
from detkit.data.files import check_pixels, open_picture, resolve_inside
from detkit.data.images import StoredPicture, decode_image
from detkit.data.shard_files import ShardFiles
from detkit.data.shard_targets import decode_target, read_entries_of
from detkit.data.truth import Transforms
from detkit.structures import Target

_ORIENTATION = 0x0112  # EXIF's
_ON_ITS_SIDE = (5, 6, 7, 8)  # others, which some cameras write, turn nothing


class ShardDataset(Dataset[tuple[Any, Target]]):
    """Pictures and targets in WebDataset shards: a tar holds for each sample a picture and JSON of the same name.

    ``source`` is the index that :func:`write_shards` wrote, and then only the shards count that it names; or the paths
    of shards that others wrote, in this order. An item is (image, target): image uint8 (3, H, W) RGB by the rules of
    :func:`read_image`, upright unless the target is that of the stored pixels; target as it was written, with boxes and
    masks as tv_tensors. JSON of others holds boxes (xyxy pixels), labels and what :class:`~detkit.structures.Target`
    names in lists of numbers, masks as COCO's segmentations. ``categories`` are the names of the labels where no index
    says them. ``transforms`` maps image and target to both.

    A sample is read by seeking, on a disk or a mounted file system, and so an epoch is what the samplers say:
    ``ResumableSampler(len(shards), blocks=shards.shard_sizes)`` shuffles shards, and samples within a few of them. No
    picture is held; of a shard's headers about 100 bytes for each of at most a million samples are.

    Raises ValueError naming the shard for what is no whole tar, or not what the index says, and naming shard and sample
    for pictures and targets that are broken; for ``categories`` other than those of the index; FileNotFoundError for a
    missing index or shard.

    >>> import tempfile
    >>> from detkit.data import DigitScenes, write_shards
    >>> shards = ShardDataset(write_shards(DigitScenes(3), Path(tempfile.mkdtemp(), "train.json"), samples_per_shard=2))
    >>> shards.shard_sizes, bool((shards[1][0] == DigitScenes(3)[1][0]).all())
    ([2, 1], True)
    """

    @door
    def __init__(
        self,
        source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        transforms: Transforms | None = None,
        categories: Sequence[str] | None = None,
    ) -> None:
        paths = [Path(source)] if isinstance(source, (str, os.PathLike)) else [Path(path) for path in source]
        if not paths:
            raise ValueError("ShardDataset: source names no shard; allowed is an index, or one shard or more")
        indexes = [path for path in paths if path.suffix == ".json"]
        if indexes and len(paths) > 1:
            raise ValueError(f"ShardDataset: {indexes[0]} is an index, and stands alone: join sets by ConcatDataset")
        index = _read_index(paths[0]) if indexes else _Index(paths)
        if categories is not None and index.categories and list(categories) != list(index.categories):
            words = f"{shown(list(index.categories))}; leave the argument out"
            raise ValueError(f"ShardDataset: categories={shown(list(categories))}, but {paths[0]} names {words}")
        self._files = ShardFiles(index.paths, counts=index.counts, sizes=index.sizes)
        self.categories = list(index.categories if categories is None else categories)
        self.category_ids = list(index.category_ids or range(len(self.categories)))
        self.transforms = transforms

    @property
    def shard_sizes(self) -> list[int]:
        """The number of samples in each shard: the ``blocks`` of a sampler."""
        return list(self._files.counts)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Any, Target]:
        where, entries, about = self._entries(index)
        image = decode_image(io.BytesIO(self._picture(index)), upright=about.get("upright", True), owner=where)
        height, width = image.shape[-2:]
        target = self._target(index, entries, about, size=(height, width), where=where)
        return self.transforms(image, target) if self.transforms else (image, target)

    def image_size(self, index: int) -> tuple[int, int]:
        """(height, width) of an image, of its header."""
        stored = self.stored_picture(index)
        return upright_size(stored, owner=self._where(index))

    def target(self, index: int) -> Target:
        """The target of an image, before transforms; of the picture only the header is looked at."""
        where, entries, about = self._entries(index)
        return self._target(index, entries, about, size=self.image_size(index), where=where)

    def stored_picture(self, index: int) -> StoredPicture:
        """The file of an image, as it is, with the name that it had before, or else that of the sample."""
        about = self._entries(index)[2] if self._files.read(index, "target") is not None else {}
        name = about.get("file_name") or self._files.name(index)
        return StoredPicture(self._picture(index), str(name), upright=bool(about.get("upright", True)))

    def sample_names(self) -> Iterator[str]:
        """Of every sample, in order, the path of the shard and the key in it."""
        return self._files.names()

    def _where(self, index: int) -> str:
        return f"ShardDataset: {self._files.name(index)}"

    def _picture(self, index: int) -> bytes:
        data = self._files.read(index, "picture")
        assert data is not None  # or it would be no sample
        return data

    def _entries(self, index: int) -> tuple[str, dict[str, Any], dict[str, Any]]:
        where, text = self._where(index), self._files.read(index, "target")
        if text is None:
            raise ValueError(f"{where} has no json, which holds the target; an image without objects has empty lists")
        return where, *read_entries_of(text, where=where)

    def _target(
        self, index: int, entries: Mapping[str, Any], about: Mapping[str, Any], *, size: tuple[int, int], where: str
    ) -> Target:
        segmentation = self._files.read(index, "segmentation")
        target = decode_target(entries, types=about.get("types"), segmentation=segmentation, size=size, where=where)
        labels = target["labels"]
        most = len(self.categories) - 1 if self.categories else torch.iinfo(torch.int64).max
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) <= most:
            raise ValueError(f"{where} has labels {labels.tolist()}; allowed are 0 to {most}")
        return target


class _Index(NamedTuple):
    """The shards of a set, and what is known of them before they are read."""

    paths: list[Path]
    counts: list[int] | None = None
    sizes: list[int] | None = None
    categories: Sequence[str] = ()
    category_ids: Sequence[int] | None = None


def upright_size(stored: StoredPicture, *, owner: str) -> tuple[int, int]:
    """(height, width) of a picture from its header: of its stored pixels, or turned upright where that is meant."""
    picture = open_picture(io.BytesIO(stored.data), owner=owner)
    check_pixels(picture.height, picture.width, owner=owner)
    try:
        turned = stored.upright and picture.format != "TIFF"  # of which Pillow says the size when it is turned
        on_its_side = turned and picture.getexif().get(_ORIENTATION) in _ON_ITS_SIDE
    except (OSError, ValueError, SyntaxError, EOFError) as error:  # a PNG may say it after its pixels
        raise ValueError(f"{owner} cannot be decoded: {error}") from error
    return (picture.width, picture.height) if on_its_side else (picture.height, picture.width)


def _read_index(path: Path) -> _Index:
    index = read_json(path, owner="ShardDataset")
    try:
        shards, categories, ids = index["shards"], index["categories"], index["category_ids"]
        names = [shard["name"] for shard in shards]
        counts, sizes = ([_count(shard[key]) for shard in shards] for key in ("samples", "bytes"))
        whole = [_count(number) for number in ids] if len(ids) == len(categories) else None
        if len(set(names)) < len(names):
            raise ValueError("it names a shard twice")
        if whole is None or not all(isinstance(name, str) for name in categories):
            raise ValueError(f"categories are {shown(categories)} with the ids {shown(ids)}")
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"ShardDataset: {path} is no index of write_shards: {error!r}") from error
    paths = [resolve_inside(path.parent, name, owner=f"ShardDataset: {path}") for name in names]
    return _Index(paths, counts, sizes, categories, whole)


def _count(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{shown(value)} is no count")
    return value
