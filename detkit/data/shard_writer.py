"""Any data set as WebDataset shards: picture files as they are, targets as JSON, each shard whole or not there."""

import functools
import io
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset
from torchvision.transforms.v2.functional import to_pil_image
from tqdm import tqdm

from detkit._disk import write_atomically
from detkit._door import door
from detkit._faults import shown
from detkit._ranges import Count
from detkit._regular_file import open_regular
from detkit.data.files import open_picture
from detkit.data.images import StoredPicture, rgb_of
from detkit.data.shard_targets import encode_target, png
from detkit.data.shards import upright_size
from detkit.data.wrapped import find_categories, find_part

_ENDINGS = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}  # other formats are their own
_PNG_MODES = ("1", "L", "LA", "P", "I;16", "RGB", "RGBA")
_DIGITS = 9  # of a sample's number: all names are of one length, so that they sort by it


_Sample = dict[str, bytes]  # the members of a sample by their endings


@door
def write_shards(
    dataset: Any,
    index: str | os.PathLike[str],
    *,
    samples_per_shard: Count = 1000,
    bytes_per_shard: Count = 1 << 28,
    progress: bool = True,
) -> Path:
    """Write a data set as WebDataset shards beside ``index``, a JSON file that :class:`ShardDataset` opens; returns it.

    ``set/train.json`` names the shards set/train-000000.tar, ... of at most so many samples, each closed when it has
    ``bytes_per_shard``. Samples are called by their number, and the names of the pictures' files are kept in the JSON:
    so names with dots, in any script or of any length do no harm. ``dataset`` gives (image, target) by number, or is
    any iterable of such pairs. The files of detkit's readers (without ``transforms``; Subset and ConcatDataset are
    looked through), and images given as a path or as bytes, are written as they are; uint8 tensors (3, H, W) or
    (1, H, W) and Pillow images as PNG. Targets are checked as :func:`~detkit.structures.read_target` does.

    Each shard, which is held in memory, is written to a temporary file and renamed, and the index last: a set with an
    index is complete. Raises ValueError naming the sample for what is no picture or no target of it, and
    FileExistsError where shards or an index of this name are there already: nothing old stands among the new.

    >>> import tempfile
    >>> target = {"boxes": [[0, 0, 4, 4]], "labels": [1]}
    >>> index = write_shards([(Image.new("RGB", (8, 6)), target)], Path(tempfile.mkdtemp(), "train.json"))
    >>> tarfile.open(index.with_name("train-000000.tar")).getnames()
    ['000000000.png', '000000000.json']
    """
    path = Path(index)
    if path.suffix != ".json":
        raise ValueError(f"write_shards: index={str(path)!r}; allowed is the name of a .json")
    name = re.compile(re.escape(path.stem) + r"-\d{6,}\.tar")  # train-2-000000.tar is of another set
    old = [path] if path.exists() else sorted(file for file in path.parent.glob("*.tar") if name.fullmatch(file.name))
    if old:
        raise FileExistsError(f"write_shards: there is {old[0]}; delete what is old, or give another name")
    categories = _categories(dataset)  # first: where parts have different ones, nothing is written
    total = len(dataset) if hasattr(dataset, "__len__") else None
    samples = iter(tqdm(_samples(dataset), total=total, unit="sample", disable=None if progress else True))
    shards: list[dict[str, Any]] = []
    written = 0
    while held := _taken(samples, samples_per_shard, bytes_per_shard):
        shard = path.with_name(f"{path.stem}-{len(shards):06}.tar")
        write_atomically(shard, functools.partial(_write, held, written), owner="write_shards")
        shards.append({"name": shard.name, "samples": len(held), "bytes": shard.stat().st_size})
        written += len(held)
    text = json.dumps({"shards": shards, **categories}, indent=1, ensure_ascii=False)
    write_atomically(path, lambda file: file.write(text.encode()), owner="write_shards")
    return path


def _taken(samples: Iterator[_Sample], most: int, most_bytes: int) -> list[_Sample]:
    """The samples of the next shard; none where there are no more."""
    held, size = [], 0
    for sample in samples:
        held.append(sample)
        size += sum(map(len, sample.values()))
        if len(held) == most or size >= most_bytes:
            break
    return held


def _write(samples: Sequence[_Sample], first: int, file: BinaryIO) -> None:
    """The samples as a tar; ``first`` is the number of the first one."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number, sample in enumerate(samples, first):
            for ending, data in sample.items():
                member = tarfile.TarInfo(f"{number:0{_DIGITS}}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def _samples(dataset: Any) -> Iterator[_Sample]:
    for number, (stored, target) in enumerate(_stored(dataset)):
        where = f"write_shards: sample {number}" + (f" ({shown(stored.name)})" if stored.name else "")
        picture = open_picture(io.BytesIO(stored.data), owner=where)
        about: dict[str, Any] = {"file_name": stored.name, "upright": stored.upright}
        text, segmentation = encode_target(target, size=upright_size(stored, owner=where), about=about, where=where)
        form = picture.format or ""
        members = {_ENDINGS.get(form, form.lower()): stored.data, "json": text}
        if segmentation is not None:
            members["segmentation.png"] = segmentation
        yield members


def _stored(dataset: Any) -> Iterator[tuple[StoredPicture, Any]]:
    """The picture file and the target of each item."""
    numbered = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    if not numbered or isinstance(dataset, IterableDataset):  # whose __getitem__ is the one of its base, which raises
        for number, item in enumerate(dataset):
            yield _of_item(item, number)
        return
    for index in range(len(dataset)):
        part, place = find_part(dataset, index)
        if _gives_files(part):
            yield part.stored_picture(place), part.target(place)
        else:
            yield _of_item(part[place], index)


def _gives_files(part: Any) -> bool:
    """Whether items are the stored files: transforms, and the ``__getitem__`` of a subclass, make others of them."""
    if not hasattr(part, "stored_picture") or getattr(part, "transforms", None):
        return False
    makers = ({"stored_picture", "__getitem__"} & vars(kind).keys() for kind in type(part).__mro__)
    return "stored_picture" in next(filter(None, makers), ())


def _of_item(item: Any, number: int) -> tuple[StoredPicture, Any]:
    if not isinstance(item, Iterable) or len(pair := tuple(item)) != 2:
        raise ValueError(f"write_shards: sample {number} is a {type(item).__name__}; allowed is a pair (image, target)")
    image, target = pair
    if isinstance(image, bytes):
        return StoredPicture(image, "", upright=True), target
    if isinstance(image, (str, os.PathLike)):
        with open_regular(image, owner=f"write_shards: sample {number}") as file:
            return StoredPicture(file.read(), os.fspath(image), upright=True), target
    return StoredPicture(_encoded(image, number), "", upright=False), target


def _encoded(image: Any, number: int) -> bytes:
    """An image in memory as PNG; in RGB where PNG has no such pixels."""
    if isinstance(image, Tensor):
        if str(image.dtype) != "torch.uint8" or image.ndim != 3 or image.shape[0] not in (1, 3) or not image.numel():
            words = "allowed are (3, H, W) or (1, H, W) of uint8"
            raise ValueError(
                f"write_shards: sample {number} is a tensor {tuple(image.shape)} of {image.dtype}; {words}"
            )
        return png(to_pil_image(image.as_subclass(Tensor)))
    if not isinstance(image, Image.Image):
        words = "allowed are a path, bytes of a file, a uint8 tensor and a Pillow image"
        raise ValueError(f"write_shards: the image of sample {number} is a {type(image).__name__}; {words}")
    try:
        return png(image if image.mode in _PNG_MODES else to_pil_image(rgb_of(image, owner="it").as_subclass(Tensor)))
    except (OSError, ValueError, SyntaxError, EOFError) as error:  # what Image.open gave is decoded only here
        raise ValueError(f"write_shards: the image of sample {number} cannot be written as PNG: {error}") from error


def _categories(dataset: Any) -> dict[str, list[Any]]:
    """Names and ids of the labels, where the data set knows them."""
    try:
        names, ids = find_categories(dataset, function="write_shards")
    except TypeError:
        names, ids = (), ()
    return {"categories": list(names), "category_ids": list(ids)}
