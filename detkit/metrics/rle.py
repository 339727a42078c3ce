"""COCO's run-length masks, checked before pycocotools sees them.

pycocotools trusts the runs: short ones leave memory unwritten, others end the process. Everything that comes from a
file passes through here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as pycocotools_mask

coco_mask: Any = pycocotools_mask  # its stubs know only single masks

MAX_PIXELS = 2**31 - 1
"""Largest image, in pixels, whose masks are read: pycocotools counts runs in 32 bits."""

Rle = dict[str, Any]
"""A compressed mask as pycocotools holds it: ``{"size": [height, width], "counts": bytes}``."""


def encode_masks(masks: np.ndarray) -> list[Rle]:
    """Compress N masks (N, H, W) with H, W >= 1, any integer or boolean dtype, nonzero is foreground.

    >>> encode_masks(np.ones((1, 2, 3), dtype=bool))
    [{'size': [2, 3], 'counts': b'06'}]
    """
    if not masks.size:
        return []
    columns = np.ascontiguousarray((masks != 0).astype(np.uint8).transpose(0, 2, 1))
    return coco_mask.encode(columns.transpose(2, 1, 0))


def mask_areas(masks: Sequence[Rle]) -> np.ndarray:
    """Pixels of each mask, float64 (N,).

    >>> mask_areas(encode_masks(np.ones((2, 4, 5), dtype=bool)))
    array([20., 20.])
    """
    return np.asarray(coco_mask.area(list(masks)), dtype=np.float64).reshape(-1)


def mask_boxes(masks: Sequence[Rle]) -> np.ndarray:
    """The tight box of each mask as x, y, width, height, float64 (N, 4).

    >>> mask_boxes(encode_masks(np.ones((1, 4, 5), dtype=bool)))
    array([[0., 0., 5., 4.]])
    """
    return np.asarray(coco_mask.toBbox(list(masks)), dtype=np.float64).reshape(-1, 4)


def full_mask(size: tuple[int, int]) -> Rle:
    """The mask that covers an image of (height, width).

    >>> full_mask((2, 3))
    {'size': [2, 3], 'counts': b'06'}
    """
    return coco_mask.frPyObjects({"size": list(size), "counts": [0, size[0] * size[1]]}, *size)


def read_segmentation(segmentation: Any, size: tuple[int, int], *, where: str) -> Rle:
    """A COCO ``segmentation`` (polygons, or runs plain or compressed) as checked compressed runs.

    size: (height, width) of the image; ``where`` names the annotation in errors. Raises ValueError for runs that do
    not add up to the image, another size than the image's, an image beyond ``MAX_PIXELS``, and polygons with odd or
    fewer than six numbers, or points that are not finite or lie more than one image away.

    >>> read_segmentation({"size": [2, 3], "counts": [1, 5]}, (2, 3), where="annotation 7")
    {'size': [2, 3], 'counts': b'15'}
    """
    if not 0 < size[0] * size[1] <= MAX_PIXELS:
        raise ValueError(f"{where}: the image is {size[0]} x {size[1]}; allowed are 1 to {MAX_PIXELS} pixels")
    if isinstance(segmentation, Mapping):
        return _read_runs(segmentation, size, where)
    if isinstance(segmentation, Sequence) and segmentation and not isinstance(segmentation, str):
        polygons = [_read_polygon(polygon, size, where) for polygon in segmentation]
        return coco_mask.merge(coco_mask.frPyObjects(polygons, *size))
    raise ValueError(f"{where}: segmentation is {segmentation!r:.80}; allowed are polygons or runs")


def _read_runs(segmentation: Mapping[str, Any], size: tuple[int, int], where: str) -> Rle:
    counts, found = segmentation.get("counts"), segmentation.get("size")
    if not isinstance(found, Sequence) or tuple(found) != size:
        raise ValueError(f"{where}: runs of size {found}; allowed is the image's (height, width) {size}")
    plain = isinstance(counts, Sequence) and not isinstance(counts, str | bytes)
    runs = np.asarray(counts) if plain else _decode_runs(counts, where)
    if runs.ndim != 1 or runs.dtype.kind != "i" or (runs < 0).any() or runs.sum() != size[0] * size[1]:
        total = runs.sum() if runs.dtype.kind == "i" else "no integers"
        raise ValueError(f"{where}: runs add up to {total}; allowed are runs >= 0 that add up to {size[0] * size[1]}")
    if plain:
        return coco_mask.frPyObjects({"size": list(size), "counts": runs.tolist()}, *size)
    return {"size": list(size), "counts": counts.encode() if isinstance(counts, str) else counts}


def _decode_runs(counts: Any, where: str) -> np.ndarray:
    """Runs of COCO's compressed string: five bits a character, a continuation bit, differences to the run before last.

    Source: the format written by cocoapi's maskApi.c (rleToString).
    """
    text = counts.encode("latin-1", "replace") if isinstance(counts, str) else counts
    digits = np.frombuffer(text, np.uint8).astype(np.int64) - 48 if isinstance(text, bytes) else np.array([-1])
    last = np.flatnonzero((digits & 32) == 0)
    lengths = np.diff(last, prepend=-1)
    if not len(digits) or ((digits < 0) | (digits > 63)).any() or digits[-1] & 32 or lengths.max() > 7:
        raise ValueError(f"{where}: counts {counts!r:.60} are no compressed runs (characters '0' to 'o', complete)")
    starts = last - lengths + 1
    places = np.arange(len(digits)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((digits & 31) << (5 * places), starts)
    runs -= np.where(digits[last] & 16, np.int64(1) << (5 * lengths), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _read_polygon(polygon: Any, size: tuple[int, int], where: str) -> list[float]:
    try:
        points = np.asarray(polygon, dtype=np.float64)
    except (TypeError, ValueError):
        points = np.empty(0)
    if points.ndim != 1 or points.size < 6 or points.size % 2:
        raise ValueError(
            f"{where}: polygon {polygon!r:.60}; allowed is [x, y, x, y, x, y, ...] of three points or more"
        )
    far = ~(np.abs(points.reshape(-1, 2) - np.array(size[::-1]) / 2) <= 1.5 * np.array(size[::-1])).all(axis=1)
    if far.any():
        point = points.reshape(-1, 2)[far.argmax()].tolist()
        raise ValueError(f"{where}: polygon point {point}; allowed are finite points at most one image size outside")
    return points.tolist()
