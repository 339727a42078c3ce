"""Targets as JSON, and back with the same types and numbers: what a WebDataset shard holds beside each picture.

Numbers stand in nested lists that anything can read; masks are COCO's compressed runs, a segmentation is a PNG. What
JSON cannot say stands under the key ``detkit``: types and shapes, so that reals come back bit for bit, and of what
picture file it is the target.
"""

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from detkit._faults import shown
from detkit._inputs import check_box_values
from detkit._rle import check_segmentation, draw_mask, encode_masks
from detkit.data.files import FORMATS
from detkit.structures import FIELDS, Target, read_target

ABOUT = "detkit"
"""The key of what is not the target's own."""
_HELD = {"reals": torch.float32, "integers": torch.int64, "flags": torch.int64}
_TYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64")


def encode_target(
    target: Mapping[str, Any], *, size: tuple[int, int], about: Mapping[str, Any], where: str
) -> tuple[bytes, bytes | None]:
    """A target as JSON in UTF-8, and its segmentation as PNG, None without one.

    ``size`` is the (height, width) of the image; ``about`` what to say of the picture. Arrays come back as tensors,
    tuples as lists.
    Raises ValueError and TypeError naming ``where`` as :func:`~detkit.structures.read_target` does, and for boxes that
    are not finite or inverted, masks of other values than 0 and 1, classes of pixels beyond 0 to 255, and entries and
    keys that JSON does not hold.

    >>> encode_target({"boxes": [[0, 0, 4, 4]], "labels": [1]}, size=(6, 8), about={}, where="demo")[0].decode()
    '{"boxes": [[0, 0, 4, 4]], "labels": [1], "detkit": {"types": {"boxes": ["int64", 1, 4], "labels": ["int64", 1]}}}'
    """
    entries: dict[str, Any] = {**read_target(target, where=where, size=size)}
    check_box_values(entries["boxes"], function=where)
    if ABOUT in entries:
        raise ValueError(f"{where}: the key {ABOUT!r} is taken; give it another name")
    types, segmentation = {}, None
    for key, value in entries.items():
        value = torch.from_numpy(value) if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" else value
        if not isinstance(value, Tensor):
            continue
        types[key] = [str(value.dtype).removeprefix("torch."), *value.shape]
        if types[key][0] not in _TYPES:
            raise ValueError(f"{where}: {key} has type {value.dtype}; allowed are {', '.join(_TYPES)}")
        if key == "masks":
            entries[key] = _encode_masks(value, where)
        elif key == "segmentation":
            segmentation, entries[key] = _encode_classes(value, where), None
        else:
            entries[key] = value.tolist()
    entries.pop("segmentation", None)
    try:
        _check_keys(entries)
        whole = {**entries, ABOUT: {**about, "types": types}}
        text = json.dumps(whole, allow_nan=False, ensure_ascii=False, default=_plain)
        return text.encode(), segmentation
    except (TypeError, ValueError, RecursionError) as error:
        words = "allowed are finite numbers, text, lists, dicts with keys of text, and arrays"
        raise ValueError(f"{where}: the target cannot be written as JSON: {error}; {words}") from error


def _plain(value: Any) -> Any:
    """NumPy's single numbers as Python's."""
    if not isinstance(value, np.generic):
        raise TypeError(f"a {type(value).__name__}")
    return value.item()


def _check_keys(value: Any) -> None:
    """JSON would make text of other keys, without a word."""
    if isinstance(value, Mapping):
        other = next((key for key in value if not isinstance(key, str)), None)
        if other is not None:
            raise TypeError(f"the key {other!r} is no text")
        value = list(value.values())
    for entry in value if isinstance(value, (list, tuple)) else ():
        _check_keys(entry)


def read_entries_of(text: bytes, *, where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The entries of a target as JSON has them, and what it says of the picture.

    >>> read_entries_of(b'{"labels": [], "detkit": {"size": [6, 8]}}', where="demo")
    ({'labels': []}, {'size': [6, 8]})
    """
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: the target is no JSON: {error}") from error
    if not isinstance(entries, dict) or not isinstance(entries.get(ABOUT, {}), dict):
        raise ValueError(f"{where}: the target is {shown(entries)}; allowed is an object with boxes and labels")
    about = entries.pop(ABOUT, {})
    return entries, about


def decode_target(
    entries: Mapping[str, Any], *, types: Any, segmentation: bytes | None, size: tuple[int, int], where: str
) -> Target:
    """The target whose entries JSON gave; boxes and masks are tv_tensors on the canvas of ``size`` (height, width).

    Without ``types``, as in shards that others wrote, the table of fields says what numbers are. Raises ValueError
    naming ``where``, also for boxes that are not finite or inverted.

    >>> entries = {"boxes": [[0, 0, 4, 4]], "labels": [1]}
    >>> decode_target(entries, types=None, segmentation=None, size=(6, 8), where="demo")["boxes"].dtype
    torch.float32
    """
    given: dict[str, Any] = dict(entries)
    if given.get("masks") is not None:
        given["masks"] = _decode_masks(given["masks"], size, where)
    if segmentation is not None:
        given["segmentation"] = _decode_classes(segmentation, where)
    types = {} if types is None else types
    if not isinstance(types, dict):
        raise ValueError(f"{where}: the types are {shown(types)}; allowed is an object with those of the entries")
    for key in types:
        given[key] = _typed(key, given, types[key], where)
    try:
        target: dict[str, Any] = {**read_target(given, where=where, size=size)}
    except TypeError as error:  # the caller gave a file, whose content is of no type
        raise ValueError(str(error)) from error
    check_box_values(target["boxes"], function=where)
    for key, value in target.items():
        held = FIELDS[key].holds if key in FIELDS else "anything"
        if key not in types and isinstance(value, Tensor) and held in _HELD:
            target[key] = value.to(_HELD[held])
    make_boxes: Any = tv_tensors.BoundingBoxes  # its overloads are followed by no type checker
    target["boxes"] = make_boxes(target["boxes"], format="XYXY", canvas_size=size)
    if "masks" in target:
        target["masks"] = tv_tensors.Mask(target["masks"])
    return Target(**target)


def _encode_masks(masks: Tensor, where: str) -> list[dict[str, Any]]:
    if not ((masks == 0) | (masks == 1)).all():
        raise ValueError(f"{where}: masks hold other values than 0 and 1, which runs cannot say")
    return [{**mask, "counts": mask["counts"].decode("ascii")} for mask in encode_masks(masks.numpy(force=True))]


def _decode_masks(masks: Any, size: tuple[int, int], where: str) -> Tensor:
    if not isinstance(masks, list):
        raise ValueError(f"{where}: masks are {shown(masks)}; allowed is a list of COCO's segmentations")
    checked = (check_segmentation(mask, size=size, owner=f"{where}: masks[{t}]") for t, mask in enumerate(masks))
    drawn = [draw_mask(mask, size) for mask in checked]
    return torch.from_numpy(np.stack(drawn) if drawn else np.zeros((0, *size), np.uint8))


def _encode_classes(classes: Tensor, where: str) -> bytes:
    if classes.numel() and not 0 <= int(classes.min()) <= int(classes.max()) <= 255:
        raise ValueError(
            f"{where}: segmentation has classes of {classes.min()} to {classes.max()}; allowed are 0 to 255"
        )
    return png(Image.fromarray(classes.to(torch.uint8).numpy(force=True)))


def png(picture: Image.Image) -> bytes:
    """The bytes of a picture as PNG, which loses nothing.

    >>> png(Image.new("L", (2, 2)))[:4]
    b'\\x89PNG'
    """
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _decode_classes(data: bytes, where: str) -> Tensor:
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
        if picture.mode not in ("L", "P"):
            raise ValueError(f"has pixels of mode {picture.mode!r}; allowed is gray or indexed")
        return torch.from_numpy(np.array(picture)).to(torch.int64)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{where}: the segmentation cannot be read: {error}") from error


def _typed(key: str, entries: Mapping[str, Any], type_and_shape: Any, where: str) -> Tensor:
    """An entry as the tensor that it was."""
    try:
        name, *shape = type_and_shape
        if name not in _TYPES:
            raise ValueError(f"type {shown(name)}; allowed are {', '.join(_TYPES)}")
        dtype, value = getattr(torch, name), entries[key]
        return (value.to(dtype) if isinstance(value, Tensor) else torch.tensor(value, dtype=dtype)).reshape(shape)
    except (TypeError, ValueError, RuntimeError, KeyError, OverflowError) as error:
        raise ValueError(
            f"{where}: {key} is not what its type and shape {shown(type_and_shape)} say: {error}"
        ) from error
