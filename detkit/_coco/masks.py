"""Segmentations of many entries: checked, without the polygons that enclose nothing, and never drawn."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from detkit._coco.columns import read_lists
from detkit._coco.tables import Table
from detkit._faults import Faults, shown
from detkit._rle import (
    MaskError,
    Segmentation,
    compress_segmentation,
    draw_mask,
    mask_areas,
    mask_boxes,
    read_segmentation,
)

Mark = Callable[[ArrayLike, Callable[[int], str]], None]
"""What becomes of objects (A,) with one kind of fault, and what to say of one of them."""


def is_none(value: Any) -> bool:
    """Whether a field holds nothing: null, or an empty list.

    >>> is_none(None), is_none([]), is_none([0])
    (True, True, False)
    """
    return value is None or (isinstance(value, Sequence) and not len(value))


def complete_sizes(sizes: NDArray[np.int64], table: Table, images: NDArray[np.int64]) -> None:
    """Fill in sizes (M, 2) that are 0 from the runs of the objects, which say what they are for; ``images`` (A,).

    >>> sizes = np.zeros((1, 2), np.int64)
    >>> table = Table("annotation", [{"segmentation": {"size": [4, 6], "counts": [24]}}])
    >>> complete_sizes(sizes, table, np.zeros(1, int))
    >>> sizes
    array([[4, 6]])
    """
    unknown = (images >= 0) & (sizes[images] == 0).any(1) if len(sizes) else np.zeros(0, bool)
    for row in np.flatnonzero(unknown).tolist():
        value = table.entries[row].get("segmentation")
        if isinstance(value, Mapping):
            (size,) = read_lists([value.get("size")], 2)
            sizes[images[row]] = size if (size >= 1).all() else 0


def read_masks(
    table: Table, rows: NDArray[np.int64], sizes: NDArray[np.int64], *, truth: bool, faults: Faults, mark: Mark
) -> list[Segmentation | None]:
    """The checked segmentation of each entry at ``rows``, None for the others and those at fault; ``sizes`` (A, 2).

    Polygons at fault are left out of a mask that has others, which ``faults`` is told. Ground truth must have a pixel:
    polygons that are drawn as none, between the centers of pixels or outside the image, are no mask. A polygon in an
    image of unknown size (0, 0) is always an error.
    """
    read: list[Segmentation | None] = [None] * len(table.entries)
    spoiled: list[MaskError] = []
    problems: dict[int, MaskError] = {}
    for row in rows.tolist():
        value, name = table.entries[row].get("segmentation"), table.name(row)
        try:
            if is_none(value):
                raise MaskError(name, "segmentation", _nothing(table, row))
            if not sizes[row].all():
                raise MaskError(name, "segmentation", "needs the height and width of its image, which are not given")
            height, width = sizes[row].tolist()
            read[row], parts = read_segmentation(value, size=(height, width), owner=name)
            read[row], flat = _with_area(read[row], name, (height, width)) if truth else (read[row], [])
            spoiled += parts + flat
        except MaskError as fault:
            problems[row], read[row] = fault, None
    _tell(problems, len(read), mark)
    for kind in dict.fromkeys(fault.kind for fault in spoiled):
        same = [fault for fault in spoiled if fault.kind == kind]
        faults.leave_out([True] * len(same), lambda part, same=same: str(same[part]))
    return read


def areas_of(masks: Sequence[Segmentation], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Pixels of each checked segmentation, float64 (N,); sizes (N, 2).

    >>> areas_of([np.array([1, 2, 3])], np.array([[2, 3]]))
    array([2.])
    """
    return mask_areas(_compressed(masks, sizes))


def boxes_of(masks: Sequence[Segmentation], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    """The tight box xywh of each checked segmentation, float64 (N, 4); sizes (N, 2).

    >>> boxes_of([np.array([0, 4, 2])], np.array([[2, 3]]))
    array([[0., 0., 2., 2.]])
    """
    return mask_boxes(_compressed(masks, sizes))


def _compressed(masks: Sequence[Segmentation], sizes: NDArray[np.int64]) -> list[Any]:
    pairs = zip(masks, sizes.tolist(), strict=True)
    return [compress_segmentation(mask, (size[0], size[1])) for mask, size in pairs]


def _nothing(table: Table, row: int) -> str:
    entry = table.entries[row]
    found = shown(entry["segmentation"]) if "segmentation" in entry else "missing"
    return f"is {found}; allowed are polygons, or a dict of size and counts, where masks are read"


def _with_area(segmentation: Segmentation, name: str, size: tuple[int, int]) -> tuple[Segmentation, list[MaskError]]:
    """A mask without the polygons that enclose no area, and these; MaskError if nothing is left, or no pixel."""
    if not isinstance(segmentation, list):
        if not segmentation[1::2].any():
            raise MaskError(name, "segmentation", "has no pixel")
        return segmentation, []
    good: list[NDArray[np.float64]] = []
    flat: list[MaskError] = []
    for polygon in segmentation:
        if _encloses(polygon):
            good.append(polygon)
        else:
            flat.append(MaskError(name, "polygon without area", shown(polygon.tolist())))
    if not good:
        raise flat[0]
    if not any(_surely_has_pixels(polygon, size) for polygon in good) and not draw_mask(good, size).any():
        raise MaskError(name, "segmentation", f"has no pixel: {shown([polygon.tolist() for polygon in good])}")
    return good, flat


def _encloses(polygon: NDArray[np.float64]) -> bool:
    """Whether any triangle of the first point and an edge has an area; rounding leaves less than a millionth."""
    x, y = polygon[0::2] - polygon[0], polygon[1::2] - polygon[1]
    return bool((np.abs(x[:-1] * y[1:] - y[:-1] * x[1:]) > 1e-6).any())


def _surely_has_pixels(polygon: NDArray[np.float64], size: tuple[int, int]) -> bool:
    """Whether it lies in the image and holds a disc of radius 1, as all do whose area is above their outline's length.

    Only the few others need to be drawn.
    """
    points = polygon.reshape(-1, 2)
    edges = np.roll(points, -1, axis=0) - points
    area = abs((points[:, 0] * edges[:, 1] - points[:, 1] * edges[:, 0]).sum()) / 2
    return bool(((points >= 0) & (points <= size[::-1])).all() and area > np.hypot(*edges.T).sum())


def _tell(problems: Mapping[int, MaskError], count: int, mark: Mark) -> None:
    for kind in dict.fromkeys(fault.kind for fault in problems.values()):
        bad = np.zeros(count, bool)
        bad[[row for row, fault in problems.items() if fault.kind == kind]] = True
        mark(bad, lambda row: str(problems[row]))
