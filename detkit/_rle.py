"""COCO run-length masks and polygons: checked before a byte is decoded.

pycocotools trusts its input: runs that do not fill the mask leave memory unwritten, a size of zero or truncated text
crashes the process. So everything from a file passes :func:`check_segmentation`; only then is it drawn as pixels or
compressed for pycocotools, and always from the checked runs, never from the original text.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from reprlib import repr as shown
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_PIXELS = 1 << 29
"""Largest image, in pixels, whose masks are read: beyond, pycocotools misreads differences of runs in its own text."""

Segmentation = NDArray[np.int64] | list[NDArray[np.float64]]
"""Checked: run lengths of background and object in turn, column by column; or polygons x, y, x, y ..."""

Rle = dict[str, Any]
"""A compressed mask as pycocotools holds it: ``{"size": [height, width], "counts": bytes}``."""


class MaskError(ValueError):
    """What is wrong with a segmentation; ``kind`` are the words that all faults of a kind share."""

    def __init__(self, owner: str, kind: str, found: str) -> None:
        super().__init__(f"{owner}: {kind} {found}")
        self.kind = kind


def check_segmentation(value: Any, *, size: tuple[int, int], owner: str) -> Segmentation:
    """A segmentation as COCO writes it (polygons; runs as numbers or as text), checked against (height, width).

    One polygon may stand there without a list around it. Raises ValueError naming ``owner`` for an image without pixels
    or beyond ``MAX_PIXELS``; runs that do not add up to the image, are negative, truncated, not integers or for another
    size; no polygon, or one with fewer than three points, an odd number of coordinates, or points that are not finite
    or more than one image size outside the image.

    >>> check_segmentation({"size": [2, 3], "counts": [1, 2, 3]}, size=(2, 3), owner="annotation id=1")
    array([1, 2, 3])
    """
    segmentation, spoiled = read_segmentation(value, size=size, owner=owner)
    for fault in spoiled:
        raise fault
    return segmentation


def read_segmentation(value: Any, *, size: tuple[int, int], owner: str) -> tuple[Segmentation, list[MaskError]]:
    """As :func:`check_segmentation`, but polygons at fault are left out, and what is wrong with each is returned.

    Raises MaskError, a ValueError, if nothing is left.

    >>> triangle = [0, 0, 2, 0, 2, 2]
    >>> polygons, spoiled = read_segmentation([triangle, [0, 0, 1, 1]], size=(2, 3), owner="annotation id=1")
    >>> len(polygons), len(spoiled)
    (1, 1)
    """
    if min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
        raise MaskError(owner, "the image is", f"{size[0]} x {size[1]}; allowed are 1 to {MAX_PIXELS} pixels")
    if isinstance(value, Mapping):
        return _check_runs(value, size, owner), []
    if not isinstance(value, Sequence) or not len(value) or isinstance(value, str | bytes):
        raise MaskError(owner, "segmentation is", f"{shown(value)}; allowed are polygons, or a dict of size and counts")
    polygons, spoiled = [], []
    for polygon in [value] if isinstance(value[0], int | float | np.number) else value:
        try:
            polygons.append(_check_polygon(polygon, size, owner))
        except MaskError as fault:
            spoiled.append(fault)
    if not polygons:
        raise spoiled[0]
    return polygons, spoiled


def draw_mask(segmentation: Segmentation, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The mask (H, W) of 0 and 1 of a *checked* segmentation; equal to pycocotools' ``annToMask``.

    >>> draw_mask(np.array([1, 2, 3]), (2, 3))
    array([[0, 1, 0],
           [1, 0, 0]], dtype=uint8)
    """
    if isinstance(segmentation, list):  # pycocotools' own decode warns with each call under NumPy 2.4
        segmentation = parse_counts(compress_segmentation(segmentation, size)["counts"])
    values = (np.arange(len(segmentation)) & 1).astype(np.uint8)
    return np.repeat(values, segmentation).reshape(size[1], size[0]).T


def compress_segmentation(segmentation: Segmentation, size: tuple[int, int]) -> Rle:
    """A *checked* segmentation in pycocotools' compressed form.

    >>> compress_segmentation(np.array([1, 5]), (2, 3))
    {'size': [2, 3], 'counts': b'15'}
    """
    if isinstance(segmentation, list):
        return _coco_mask().merge(_coco_mask().frPyObjects([polygon.tolist() for polygon in segmentation], *size))
    return _coco_mask().frPyObjects({"size": list(size), "counts": segmentation}, *size)


def full_mask(size: tuple[int, int]) -> Rle:
    """The mask that covers an image of (height, width).

    >>> full_mask((2, 3))
    {'size': [2, 3], 'counts': b'06'}
    """
    return compress_segmentation(np.array([0, size[0] * size[1]]), size)


def encode_masks(masks: np.ndarray) -> list[Rle]:
    """Compress N masks (N, H, W) with H, W >= 1, any integer or boolean dtype, nonzero is foreground.

    >>> encode_masks(np.ones((1, 2, 3), dtype=bool))
    [{'size': [2, 3], 'counts': b'06'}]
    """
    if not masks.size:
        return []
    columns = np.ascontiguousarray((masks != 0).astype(np.uint8).transpose(0, 2, 1))
    return _coco_mask().encode(columns.transpose(2, 1, 0))


def mask_areas(masks: Sequence[Rle]) -> NDArray[np.float64]:
    """Pixels of each mask, float64 (N,).

    >>> mask_areas(encode_masks(np.ones((2, 4, 5), dtype=bool)))
    array([20., 20.])
    """
    # pycocotools holds the number of masks in eight bits: with NumPy 2, more than 255 are an OverflowError.
    parts = [_coco_mask().area(list(masks[start : start + 255])) for start in range(0, len(masks), 255)]
    return np.concatenate([np.zeros(0), *parts]).astype(np.float64)


def mask_boxes(masks: Sequence[Rle]) -> NDArray[np.float64]:
    """The tight box of each mask as x, y, width, height, float64 (N, 4).

    >>> mask_boxes(encode_masks(np.ones((1, 4, 5), dtype=bool)))
    array([[0., 0., 5., 4.]])
    """
    return np.asarray(_coco_mask().toBbox(list(masks)), dtype=np.float64).reshape(-1, 4)


def parse_counts(text: str | bytes) -> NDArray[np.int64]:
    """Run lengths from COCO's text form: 5 bits per character, low bits first, from the fourth run on as a difference.

    A character is 48 + bits; bit 32 says that more follow, bit 16 of the last one is the sign. Differences are to the
    run before the previous one. Raises ValueError for other characters, truncated text, and numbers of over 35 bits;
    the caller checks whether the runs make sense. Source: cocoapi's maskApi.c (rleToString).

    >>> parse_counts("123O1")
    array([1, 2, 3, 1, 4])
    """
    # Lone surrogates, which JSON may hold, must become bytes that are refused below.
    encoded = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    bits = np.frombuffer(encoded, np.uint8).astype(np.int64) - 48
    if not bits.size:
        return bits
    if bits.min() < 0 or bits.max() > 63:
        raise ValueError("hold a character outside '0' to 'o'")
    if bits[-1] & 32:
        raise ValueError("end inside a number")
    ends = np.flatnonzero(bits & 32 == 0)
    lengths = np.diff(ends, prepend=-1)
    if lengths.max() > 7:
        raise ValueError("hold a number of more than 35 bits")
    starts = ends - lengths + 1
    shifts = 5 * (np.arange(bits.size) - np.repeat(starts, lengths))
    runs = np.add.reduceat((bits & 31) << shifts, starts)
    runs -= np.where(bits[ends] & 16, 1 << (5 * lengths), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _check_runs(value: Mapping[str, Any], size: tuple[int, int], owner: str) -> NDArray[np.int64]:
    found, pixels = value.get("size"), size[0] * size[1]
    if not isinstance(found, Sequence) or tuple(found) != tuple(size):
        raise MaskError(owner, "runs of size", f"{shown(found)}; allowed is the image's (height, width) {size}")
    runs = _read_counts(value.get("counts"), owner)
    # Each run is bounded first: only then can the sum not overflow.
    for run in runs[(runs < 0) | (runs > pixels)][:1]:
        raise MaskError(owner, "runs hold", f"{run}; allowed are runs of 0 to {pixels} pixels")
    if runs.sum() != pixels:
        raise MaskError(
            owner, "runs add up to", f"{runs.sum()}; allowed are runs >= 0 that add up to {pixels}, the image's pixels"
        )
    return runs


def _read_counts(counts: Any, owner: str) -> NDArray[np.int64]:
    if isinstance(counts, str | bytes):
        try:
            return parse_counts(counts)
        except ValueError as error:
            raise MaskError(owner, "runs: counts", f"{shown(counts)} {error}") from None
    runs = _numbers(counts, np.int64, int, np.integer)
    if runs is None:
        raise MaskError(owner, "runs: counts", f"{shown(counts)}; allowed are a list of integers, or text")
    return runs


def _check_polygon(polygon: Any, size: tuple[int, int], owner: str) -> NDArray[np.float64]:
    read = _numbers(polygon, np.float64, int, float, np.integer, np.floating)
    if read is None or read.size < 6 or read.size % 2:
        raise MaskError(
            owner, "polygon", f"{shown(polygon)}; allowed is [x, y, x, y, x, y, ...] of three points or more"
        )
    points, limits = read.reshape(-1, 2), np.array([size[1], size[0]])
    # Drawing takes memory by the length of the outline, so an outline far outside is refused.
    near = ((points >= -limits) & (points <= 2 * limits)).all(axis=1)
    for point in points[~near][:1].tolist():
        raise MaskError(
            owner,
            "polygon point",
            f"{point}; allowed are finite points at most one image size outside of {size}",
        )
    return read


def _numbers(values: Any, dtype: type, *kinds: type) -> NDArray[Any] | None:
    """A flat sequence of numbers as an array, else None.

    Types are checked first: NumPy would allocate any amount of memory for text or nested lists.
    """
    values = values.tolist() if isinstance(values, np.ndarray) else values
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        return None
    if not all(issubclass(kind, kinds) and kind is not bool for kind in set(map(type, values))):
        return None
    try:
        return np.array(values, dtype)
    except OverflowError:
        return None


@cache
def _coco_mask() -> Any:  # its stubs know only single masks
    from pycocotools import mask

    return mask
