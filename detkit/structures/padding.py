"""From lists to padded batches: images, and the ground truth of each image as the table of fields says."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from detkit._door import door
from detkit._inputs import first_bad, read_tensor
from detkit._ranges import Count, Finite, Whole
from detkit._sent import sent, sent_numbers
from detkit.structures.batch import Images, Targets
from detkit.structures.fields import FIELDS, Field, Target, read_truth
from detkit.structures.labels import check_weights


@door
def batch_images(images: Sequence[Float[Tensor, "D _ _"]], *, multiple_of: Count = 1) -> Images:
    """Stack images of different sizes into one batch, zero-padded at the right and at the bottom.

    images: B tensors (D, H, W) with one D. ``multiple_of`` rounds height and width up, for trunks that halve often.
    Raises ValueError for an empty list, differing channel counts, or an image without pixels.

    >>> batch = batch_images([torch.ones(3, 4, 6), torch.ones(3, 5, 2)], multiple_of=4)
    >>> batch.tensors.shape, batch.sizes.tolist()
    (torch.Size([2, 3, 8, 8]), [[4, 6], [5, 2]])
    """
    if not images:
        raise ValueError("batch_images: got no images; a batch needs at least one")
    for i, image in enumerate(images):
        if image.ndim != 3 or image.numel() == 0 or image.shape[0] != images[0].shape[0]:
            raise ValueError(
                f"batch_images: images[{i}] has shape {tuple(image.shape)}; allowed is (channels, height, width) "
                f"with at least one pixel and {images[0].shape[0]} channels as images[0]"
            )
    height, width = (-(-max(image.shape[d] for image in images) // multiple_of) * multiple_of for d in (1, 2))
    padded = [F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in images]
    sizes = sent_numbers([image.shape[1:] for image in images], images[0].device)
    return Images(torch.stack(padded), sizes, sizes)


@door
def read_target(target: Mapping[str, Any], *, where: str = "target", size: Sequence[Whole] | None = None) -> Target:
    """The ground truth of one image, checked: what :data:`FIELDS` knows as plain tensors, the rest as it came.

    NumPy arrays and nested lists of numbers are taken, and so are entries that are None: they are not there. A target
    with nothing but entries of the image (torchvision's wrapper gives ``image_id`` alone) is one without objects.
    Empty entries of objects may have any shape. Raises ValueError naming ``where``, the entry and what came: a key that
    is nearly a known one, another shape than the table's, another number of rows than boxes, labels or identities
    that are no whole numbers, weights that are negative or not finite; with ``size``, the image's (height, width),
    masks and segmentations of another, and BoundingBoxes on another canvas. TypeError for what holds no numbers.

    >>> sorted(read_target({"image_id": 7, "masks": None}))
    ['boxes', 'image_id', 'labels']
    >>> read_target({"boxes": [[0, 0, 4, 4]], "labels": [1.5]}, where="targets[0]")
    Traceback (most recent call last):
    ValueError: targets[0]: labels[0]=1.5 must be a whole number
    """
    entries = read_truth(target, where=where)
    for key in ("boxes", "labels"):
        if key not in entries:
            raise ValueError(f"{where}: no {key!r} among {sorted(entries)}; an image without objects has boxes (0, 4)")
    for key in entries.keys() & FIELDS.keys():
        if FIELDS[key].of == "object" or FIELDS[key].inside:
            canvas = getattr(entries[key], "canvas_size", None)
            entries[key] = _read(entries[key], key, FIELDS[key], where)
            found = _size_of(entries[key], FIELDS[key], canvas)
            if size is not None and found is not None:
                check_size(found, size, where=f"{where}: {key}")
    boxes = tuple(entries["boxes"].shape)
    for key in (key for key in entries if key in FIELDS and FIELDS[key].of == "object"):
        if len(entries[key]) != boxes[0]:
            shape = tuple(entries[key].shape)
            raise ValueError(f"{where}: boxes have shape {boxes} and {key} {shape}; each box needs its own")
    return cast(Target, entries)


@door
def pad_targets(targets: Sequence[Target], *, device: torch.device | None = None) -> Targets:
    """Pad the targets of B images to one length T, the next power of two, so that compiled code sees few shapes.

    T is at least 1. An entry that any image has is padded for all, as :data:`FIELDS` says: a missing weight is 1, a
    missing identity -1, a missing segmentation VOID; any other entry must then be given for every image with objects.
    Masks and segmentations are padded to the largest height and width. Raises ValueError for an empty list, and as
    :func:`read_target` does, naming the image.

    >>> padded = pad_targets([{"boxes": torch.ones(3, 4), "labels": torch.tensor([0, 1, 1])}, {"image_id": 2}])
    >>> padded.boxes.shape, padded.valid.sum(1).tolist()
    (torch.Size([2, 4, 4]), [3, 0])
    """
    if not targets:
        raise ValueError("pad_targets: got no targets; a batch needs those of at least one image")
    read = [read_target(target, where=f"targets[{i}]") for i, target in enumerate(targets)]
    counts = [len(target["boxes"]) for target in read]
    length = 1 << max(max(counts) - 1, 0).bit_length()
    columns = {
        field.inside: _column(key, field, read, counts, length)
        for key, field in FIELDS.items()
        if field.inside in Targets._fields
    }
    valid = torch.arange(length) < torch.tensor(counts)[:, None]
    if columns["ignore"] is None:
        columns["ignore"] = torch.zeros_like(valid)
    padded = Targets(**cast(Any, columns), valid=valid)
    device = padded.boxes.device if device is None else device
    return Targets._make(None if rows is None else sent(rows, device) for rows in padded)


@door
def pad_rows(rows: Sequence[Tensor], length: Whole, *, fill: Finite = 0) -> Tensor:
    """Tensors ``(N_i, *S_i)`` of B images as one ``(B, length, *S)``, S the largest of each; more rows are cut.

    The result is of the widest type of all, so that no image rounds another's numbers.

    >>> pad_rows([torch.ones(1), torch.ones(3)], 2)
    tensor([[1., 0.],
            [1., 1.]])
    """
    shape = [max(sizes) for sizes in zip(*(row.shape[1:] for row in rows), strict=True)]
    dtype = functools.reduce(torch.promote_types, (row.dtype for row in rows))
    padded = rows[0].new_full((len(rows), length, *shape), fill, dtype=dtype)
    for i, row in enumerate(rows):
        padded[(i, *map(slice, row[:length].shape))] = row[:length]
    return padded


def check_size(found: Sequence[int], size: Sequence[int], *, where: str) -> None:
    """Raise ValueError unless pixels, or the canvas of boxes, have the (height, width) of their image.

    >>> check_size((4, 8), (8, 4), where="targets[0]: masks")
    Traceback (most recent call last):
    ValueError: targets[0]: masks of height and width (4, 8) for an image of (8, 4); allowed is the size of the image
    """
    if tuple(found) != tuple(size):
        raise ValueError(
            f"{where} of height and width {tuple(found)} for an image of {tuple(size)}; "
            "allowed is the size of the image"
        )


def collate(batch: Sequence[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
    """Turn (image, target) pairs into a list of images and a list of targets; nothing is stacked or padded.

    Hand it to a DataLoader as ``collate_fn``: images of a detection batch differ in size until they are preprocessed.

    >>> collate([("a.png", {"labels": 1}), ("b.png", {"labels": 2})])
    (['a.png', 'b.png'], [{'labels': 1}, {'labels': 2}])
    """
    return [image for image, _ in batch], [target for _, target in batch]


def _read(values: Any, key: str, field: Field, where: str) -> Tensor:
    """An entry as a plain tensor, its shape and whole numbers checked."""
    tensor = read_tensor(values, where=f"{where}: {key}", form="XYXY" if field.moves == "boxes" else None)
    if field.of == "object" and tensor.numel() == 0:
        given = tensor.shape[1:] if tensor.ndim == len(field.shape) else [0] * (len(field.shape) - 1)
        sides = (side if isinstance(side, int) else given[i] for i, side in enumerate(field.shape[1:]))
        return tensor.new_zeros((0, *sides))
    fits = len(tensor.shape) == len(field.shape) and all(
        isinstance(wanted, str) or wanted == found for wanted, found in zip(field.shape, tensor.shape, strict=True)
    )
    if not fits and field.shape != ("...",):
        allowed = ", ".join(map(str, field.shape)) + ("," if len(field.shape) == 1 else "")
        raise ValueError(f"{where}: {key} have shape {tuple(tensor.shape)}; allowed is ({allowed})")
    if key == "weights":
        check_weights(tensor, function=where)
    if field.holds in ("integers", "flags") and tensor.is_floating_point():
        bad = tensor != tensor.round()  # NaN is not equal to itself; infinity has no int64
        bad |= torch.isinf(tensor)
        if bad.any():
            index, _ = first_bad(bad)
            place = ", ".join(map(str, index))
            raise ValueError(f"{where}: {key}[{place}]={tensor[index].item():g} must be a whole number")
    return tensor


def _size_of(values: Tensor, field: Field, canvas: Sequence[int] | None) -> Sequence[int] | None:
    """(height, width) of pixels, or of the ``canvas`` that boxes lie on; None of entries that have none."""
    pixels = field.moves == "map" or (field.moves == "masks" and len(values))
    return values.shape[-2:] if pixels else canvas


def _column(key: str, field: Field, targets: Sequence[Target], counts: Sequence[int], length: int) -> Tensor | None:
    """One entry of all images, padded; None where no image has it."""
    given = [cast(Tensor | None, target.get(key)) for target in targets]
    present = [_as_held(values, field.holds) for values in given if values is not None]
    if not present:
        return None
    rows, found = [], iter(present)
    for i, values in enumerate(given):
        if values is not None:
            rows.append(next(found))
        elif field.missing is None and (counts[i] or field.of != "object"):
            raise ValueError(f"targets[{i}]: {counts[i]} boxes but no {key}; each {field.of} needs its own")
        else:
            count = counts[i] if field.of == "object" else 0
            rows.append(present[0].new_full((count, *[0] * (present[0].ndim - 1)), field.missing or 0))
    if field.of == "object":
        return pad_rows(rows, length, fill=field.padding)
    if field.of == "image" and any(row.shape != rows[0].shape for row in rows):
        shapes = sorted({tuple(row.shape) for row in rows})
        raise ValueError(f"pad_targets: {key} of shapes {shapes}; allowed is one shape for all images")
    return torch.stack(rows) if field.of == "image" else pad_rows(rows, max(map(len, rows)), fill=field.padding)


def _as_held(values: Tensor, holds: str) -> Tensor:
    if holds == "reals":
        return values if values.dtype == torch.float64 else values.to(torch.float32)
    if holds == "integers":
        return values.to(torch.int64)
    return values.to(torch.bool) if holds == "flags" else values
