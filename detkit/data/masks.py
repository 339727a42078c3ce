"""COCO's segmentations, checked before they are drawn: polygons, and run lengths as numbers or as text.

pycocotools trusts what it is given: runs that do not fill the mask leave bytes unwritten, a size of zero or text cut
short ends the process. So runs are decoded here, and only after they are known to add up to the image's pixels.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from detkit.data.files import shown

Segmentation = NDArray[np.int64] | list[NDArray[np.float64]]
"""Checked: run lengths of background and object in turn, column by column; or polygons x, y, x, y ..."""


def check_segmentation(value: Any, *, size: tuple[int, int], owner: str) -> Segmentation:
    """A segmentation as COCO's JSON writes it, checked against the image's (height, width).

    Raises ValueError naming ``owner`` for: runs that do not add up to the image, are negative, truncated, no numbers or
    for another size; no polygon, or one with fewer than three points, an odd count, or points that are not finite or
    more than one image size away from the image.

    >>> check_segmentation({"size": [2, 3], "counts": [1, 2, 3]}, size=(2, 3), owner="annotation id=1")
    array([1, 2, 3])
    """
    if isinstance(value, dict):
        return _check_runs(value, size, owner)
    if isinstance(value, list) and value:
        return [_check_polygon(polygon, size, owner) for polygon in value]
    raise ValueError(
        f"{owner}: segmentation={shown(value)}; allowed is a list of polygons, or a dict of size and counts"
    )


def draw_mask(segmentation: Segmentation, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The mask (H, W) of 0 and 1 of a *checked* segmentation; equal to pycocotools' ``annToMask``.

    >>> draw_mask(np.array([1, 2, 3]), (2, 3))
    array([[0, 1, 0],
           [1, 0, 0]], dtype=uint8)
    """
    height, width = size
    if isinstance(segmentation, list):
        from pycocotools import mask as coco_mask

        polygons = [polygon.tolist() for polygon in segmentation]
        return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))
    values = (np.arange(len(segmentation)) & 1).astype(np.uint8)
    return np.repeat(values, segmentation).reshape(width, height).T


def parse_counts(text: str) -> NDArray[np.int64]:
    """Run lengths from COCO's text form: 5 bits a character, low bits first, from the fourth on as a difference.

    A character is 48 + bits; bit 32 says that more follow, bit 16 of the last one is the sign. Differences are to the
    run before the previous one. Raises ValueError for other characters, text cut short, and numbers of over 35 bits;
    whether the runs make sense is for the caller to check.

    >>> parse_counts("123O1")
    array([1, 2, 3, 1, 4])
    """
    bits = np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int64) - 48
    if bits.size and (bits.min() < 0 or bits.max() > 63):
        raise ValueError("counts hold a character outside '0' to 'o'")
    ends = np.flatnonzero(bits & 32 == 0)
    if bits.size and (not ends.size or ends[-1] != bits.size - 1):
        raise ValueError("counts end inside a number")
    if not bits.size:
        return bits
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:
        raise ValueError("counts hold a number of more than 35 bits")
    shifts = 5 * (np.arange(bits.size) - np.repeat(starts, lengths))
    runs = np.add.reduceat((bits & 31) << shifts, starts)
    runs -= np.where(bits[ends] & 16 != 0, 1 << (5 * lengths), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _check_runs(value: dict[str, Any], size: tuple[int, int], owner: str) -> NDArray[np.int64]:
    if value.get("size") != list(size):
        raise ValueError(f"{owner}: the RLE's size={shown(value.get('size'))} is not the image's {list(size)}")
    pixels = size[0] * size[1]
    try:
        runs = _read_counts(value.get("counts"))
    except ValueError as error:
        raise ValueError(f"{owner}: RLE: {error}") from None
    # Each run is bounded first: only then can the sum not overflow.
    if runs.size and (runs.min() < 0 or runs.max() > pixels):
        raise ValueError(f"{owner}: RLE: a run of {runs.min()} or {runs.max()} does not lie in 0 to {pixels} pixels")
    if runs.sum() != pixels:
        raise ValueError(f"{owner}: RLE: the runs add up to {runs.sum()}, but the image has {pixels} pixels")
    return runs


def _read_counts(counts: Any) -> NDArray[np.int64]:
    if isinstance(counts, str):
        return parse_counts(counts)
    if isinstance(counts, list):
        try:
            runs = np.array(counts)
        except (ValueError, OverflowError):
            runs = np.array(None)
        if runs.ndim == 1 and (runs.dtype.kind == "i" or not runs.size):
            return runs.astype(np.int64)
    raise ValueError(f"counts={shown(counts)} are neither a list of integers nor text")


def _check_polygon(polygon: Any, size: tuple[int, int], owner: str) -> NDArray[np.float64]:
    try:
        points = np.array(polygon)
    except (ValueError, OverflowError):
        points = np.array(None)
    if points.dtype.kind not in "iuf" or points.ndim != 1 or points.size < 6 or points.size % 2:
        raise ValueError(f"{owner}: polygon {shown(polygon)}; allowed are x, y of at least three points")
    points = points.astype(np.float64)
    limits = np.array([[size[1], size[0]]])
    # Drawing takes memory by the length of the outline, so an outline far outside is refused.
    inside = (points.reshape(-1, 2) >= -limits) & (points.reshape(-1, 2) <= 2 * limits)
    if not inside.all():
        raise ValueError(f"{owner}: polygon {shown(polygon)} has a point not finite or far outside the image {size}")
    return points
