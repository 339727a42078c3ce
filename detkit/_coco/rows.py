"""Annotations and results as arrays: every field read in one way, and every kind of fault told."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from detkit._coco.columns import MAX_COORDINATE, read_flags, read_lists, read_numbers
from detkit._coco.masks import areas_of, boxes_of, complete_sizes, is_none, read_masks
from detkit._coco.tables import Document, Table, keypoint_counts, positions
from detkit._faults import Faults, judge_boxes
from detkit._rle import Segmentation


class Fields(NamedTuple):
    """What to read beside boxes: masks, and how many keypoints (None: none); whether the rows are ground truth."""

    masks: bool = False
    points: int | None = None
    truth: bool = True


class Rows(NamedTuple):
    """A objects: position of the image and of the category, box xywh float64 (A, 4), and the other fields.

    ``sizes`` (A, 2) are the (height, width) of the images, 0 if unknown; ``num_keypoints`` is NaN if not given.
    """

    images: NDArray[np.int64]
    labels: NDArray[np.int64]
    boxes: NDArray[np.float64]
    area: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    ignore: NDArray[np.bool_]
    scores: NDArray[np.float64]
    num_keypoints: NDArray[np.float64]
    sizes: NDArray[np.int64]
    keypoints: NDArray[np.float64] | None = None
    segmentations: list[Segmentation | None] | None = None

    def take(self, rows: NDArray[np.int64]) -> "Rows":
        """The objects at ``rows``, in that order."""
        columns = {name: column[rows] for name, column in self._asdict().items() if isinstance(column, np.ndarray)}
        masks = None if self.segmentations is None else [self.segmentations[row] for row in rows]
        return self._replace(**columns, segmentations=masks)


def read_objects(
    table: Table, document: Document, sizes: NDArray[np.int64], fields: Fields, faults: Faults
) -> tuple[Rows, NDArray[np.bool_]]:
    """All entries of ``table`` as rows, and which of them are objects: the others hold anything.

    ``sizes`` (M, 2) of the images of ``document``, 0 where unknown; those are filled in from run-length masks. Faults
    of ground truth are kinds that the policy of ``faults`` decides; those of results, and ids that are nowhere listed,
    are errors. Results may lie outside their picture and have no width: they match nothing, and count as such.

    >>> document = Document.read({"images": [{"id": 5}], "categories": [{"id": 3}], "annotations": [
    ...     {"id": 1, "image_id": 5, "category_id": 3, "bbox": [1, 2, 3, 4]}]}, Faults("a.json"))
    >>> rows, kept = read_objects(document.annotations, document, np.zeros((1, 2), int), Fields(), Faults("a.json"))
    >>> rows.boxes, rows.area, kept
    (array([[1., 2., 3., 4.]]), array([12.]), array([ True]))
    """
    images = positions(table, "image_id", document.image_ids, faults)
    labels = positions(table, "category_id", document.category_ids, faults)
    complete_sizes(sizes, table, images)
    verdict = _Verdict(table, fields.truth, faults)
    own = np.concatenate([sizes, np.zeros((1, 2), np.int64)])[images]  # of no image, at -1: unknown
    boxless = np.array(["bbox" not in entry for entry in table.entries], bool)
    masks = _masks(table, own, fields, boxless, verdict)
    own_points = keypoint_counts(document.categories)[labels]
    keypoints = None if fields.points is None else _keypoints(table, fields.points, own_points, verdict)
    boxes, derived = _boxes(table, boxless, masks, keypoints, own, verdict)
    crowd, ignore = (verdict.flags(key) if fields.truth else verdict.good & False for key in ("iscrowd", "ignore"))
    rows = Rows(
        images,
        labels,
        boxes,
        _area(table, boxes, masks, fields, derived, own, verdict),
        crowd,
        ignore,
        np.ones(len(images)) if fields.truth else verdict.numbers("score"),
        read_numbers(table.column("num_keypoints")),
        own,
        keypoints,
        masks if fields.masks else None,
    )
    if fields.truth:
        ends = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1).astype(np.float32)
        verdict.good = judge_boxes(ends, own, table.name, faults, among=verdict.good)
    return rows, verdict.good & (images >= 0) & (labels >= 0)


class _Verdict:
    """Which rows are without fault so far; of those at fault, the faults."""

    def __init__(self, table: Table, truth: bool, faults: Faults) -> None:
        self._table, self.truth, self.faults = table, truth, faults
        self._tell = faults.drop if truth else faults.refuse
        self.good = np.ones(len(table.entries), bool)

    def mark(self, bad: ArrayLike, describe: Callable[[int], str]) -> None:
        self._tell(bad, describe)
        self.good &= ~np.asarray(bad, bool)

    def field(self, bad: ArrayLike, key: str, allowed: str) -> None:
        self.mark(bad, lambda row: self._table.fault(row, key, allowed))

    def flags(self, key: str) -> NDArray[np.bool_]:
        flags, bad = read_flags(self._table.column(key))
        self.field(bad, key, "0 or 1")
        return flags

    def numbers(self, key: str) -> NDArray[np.float64]:
        column = read_numbers(self._table.column(key))
        self.field(np.isnan(column), key, "a finite number")
        return column


def _masks(
    table: Table, sizes: NDArray[np.int64], fields: Fields, boxless: NDArray[np.bool_], verdict: _Verdict
) -> list[Segmentation | None]:
    """The masks of all rows if they are wanted, else of those that have no other box."""
    given = np.array(["segmentation" in entry for entry in table.entries], bool)
    rows = np.flatnonzero(fields.masks | (boxless & given))
    return read_masks(table, rows, sizes, truth=fields.truth, faults=verdict.faults, mark=verdict.mark)


def _boxes(
    table: Table,
    boxless: NDArray[np.bool_],
    masks: list[Segmentation | None],
    keypoints: NDArray[np.float64] | None,
    sizes: NDArray[np.int64],
    verdict: _Verdict,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Boxes xywh, and which come from masks: of rows without ``bbox``, whose mask or else whose keypoints they hold.

    Keypoints that ground truth does not see lie nowhere.
    """
    column = table.column("bbox")
    boxes = read_lists(column, 4)
    derived = boxless & np.array([mask is not None for mask in masks], bool)
    rows = np.flatnonzero(derived)
    boxes[rows] = boxes_of([mask for row in rows if (mask := masks[row]) is not None], sizes[rows])
    if keypoints is not None:
        seen = (keypoints[..., 2] != 0) | (not verdict.truth)
        hulls = boxless & ~derived & seen.any(1)
        points, among = keypoints[hulls, :, :2], seen[hulls, :, None]
        low, high = points.min(1, where=among, initial=np.inf), points.max(1, where=among, initial=-np.inf)
        boxes[hulls] = np.concatenate([low, high - low], axis=1)
    unread = np.isnan(boxes).any(1) & verdict.good
    none = unread & np.array([is_none(value) for value in column], bool)
    verdict.field(none, "bbox", "x, y, width, height")
    verdict.field(unread & ~none, "bbox", f"4 finite numbers within {MAX_COORDINATE:g}: x, y, width, height")
    negative = (boxes[:, 2:] < 0).any(1)
    verdict.field(negative, "bbox", "x, y, width, height with width and height >= 0")
    return boxes, derived


def _area(
    table: Table,
    boxes: NDArray[np.float64],
    masks: list[Segmentation | None],
    fields: Fields,
    derived: NDArray[np.bool_],
    sizes: NDArray[np.int64],
    verdict: _Verdict,
) -> NDArray[np.float64]:
    """As annotated; where that is not given, and for results, that of the mask or of the box."""
    column = table.column("area") if fields.truth else [None] * len(boxes)
    given = np.array([value is not None and value != "" for value in column], bool)
    area = np.where(given, read_numbers(column), boxes[:, 2] * boxes[:, 3])
    verdict.field(given & ~(area >= 0), "area", "a finite number >= 0, or none")
    drawn = np.array([mask is not None for mask in masks], bool)
    rows = np.flatnonzero(~given & drawn & (fields.truth | derived))
    area[rows] = areas_of([mask for row in rows if (mask := masks[row]) is not None], sizes[rows])
    return area


def _keypoints(table: Table, points: int, own: NDArray[np.int64], verdict: _Verdict) -> NDArray[np.float64]:
    """Keypoints (A, P, 3) as x, y and visibility, or score; where the visibility is 0, x and y mean nothing.

    Annotations of a category that names fewer, ``own`` (A,), lack the last ones.
    """
    column = table.column("keypoints")
    if verdict.truth:
        column = [_filled(*given, points) for given in zip(column, own.tolist(), strict=True)]
    read = read_lists(column, 3 * points).reshape(len(table.entries), points, 3)
    visibility, truth = read[..., 2], verdict.truth
    unseen = (visibility == 0) & truth
    read[..., :2][unseen & np.isnan(read[..., :2]).any(-1)] = 0
    unread = np.isnan(read).all((1, 2)) & (points > 0)
    verdict.field(unread, "keypoints", f"{points} times x, y, visibility: {3 * points} finite numbers")
    strange = np.isnan(read).any((1, 2)) | (truth & ~np.isin(visibility, (0, 1, 2)).all(1))
    third = "visibility with visibility 0, 1 or 2" if truth else "score"
    verdict.field(strange & ~unread, "keypoints", f"{points} times x, y, {third}: finite numbers")
    return read


def _filled(value: Any, own: int, points: int) -> Any:
    """A list of the ``own`` keypoints that a category names as one of ``points``; anything else as it is."""
    fits = 0 < own < points and isinstance(value, list) and len(value) == 3 * own
    return [*value, *[0] * 3 * (points - own)] if fits else value
