"""Precision and recall of image records through pycocotools or hotcoco.

Both engines get tables in which pycocotools' bugs cannot show: ids start at 1, an ignored object has an area outside
every range (pycocotools overwrites ``ignore``), class-agnostic evaluation has one category, a partly annotated class
gets a crowd region that covers all its detections. So each engine runs unmodified, and all our own rules are in these
tables.
"""

import contextlib
import importlib
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from detkit._rle import full_mask, mask_areas
from detkit.metrics.records import ImageRecord, Objects, objects

IOU_TYPES = ("bbox", "segm", "keypoints")
ENGINES = ("pycocotools", "hotcoco")
IOU_RANGE = np.linspace(0.5, 0.95, 10)
"""The IoU thresholds that AP and AR average over."""
AREAS = {
    "all": (0.0, 1e10),
    "s": (0.0, 32.0**2),
    "m": (32.0**2, 96.0**2),
    "l": (96.0**2, 1e10),
}
"""COCO's area ranges in square pixels, both ends included."""
SMALLEST_SIDE = 1e-100
_LEFT_OUT = -2
COCO_SIGMAS = (
    *(0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072),
    *(0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089),
)
"""Spread of COCO's 17 body keypoints, relative to the square root of the object's area."""


class Settings(NamedTuple):
    """How records are evaluated: see :class:`detkit.metrics.CocoMetrics`."""

    num_classes: int
    max_detections: tuple[int, ...]
    class_agnostic: bool = False
    federated: bool = False
    engine: str | None = None
    keypoint_sigmas: tuple[float, ...] = COCO_SIGMAS


class Curves(NamedTuple):
    """An engine's results, -1 where a class has no object in an area range.

    precision (10, 101, C, A, M) over IoU 0.5..0.95, recall 0..1, class, area range, detections kept; recall (10, C, A,
    M); objects (C,): the number of objects per class, without ignored ones.
    """

    precision: np.ndarray
    recall: np.ndarray
    objects: np.ndarray


def evaluate(records: Sequence[ImageRecord], iou_type: str, settings: Settings) -> Curves:
    """Evaluate the detections of all records against their ground truth, as one data set.

    iou_type: "bbox", "segm" or "keypoints". ``settings.max_detections`` ascends.

    >>> evaluate([], "bbox", Settings(2, (1, 10))).recall.shape
    (10, 2, 4, 2)
    """
    records = [_prepared(record, iou_type, settings) for record in records]
    classes = 1 if settings.class_agnostic else settings.num_classes
    counted = [record.truth.labels[~_ignored(record.truth, iou_type)] for record in records]
    counts = np.bincount(np.concatenate([*counted, np.empty(0, np.int64)]), minlength=classes)
    shape = (10, classes, len(AREAS), len(settings.max_detections))
    curves = Curves(np.full((10, 101, *shape[1:]), -1.0), np.full(shape, -1.0), counts)
    present = np.flatnonzero(counts)
    if len(present):
        found = _run(_tables(records, iou_type, present), iou_type, settings)
        curves.precision[:, :, present], curves.recall[:, present] = found
    return curves


class Match(NamedTuple):
    """What counts in an image, and which detection finds which object, at one IoU threshold.

    detections: the best of each class, best first, without those that lie in a crowd or on an ignored object; truth:
    the objects without crowds and ignored ones; objects (D,) int64: the row of truth that a detection finds, or -1.
    """

    key: tuple[int, int, int]
    detections: Objects
    truth: Objects
    objects: np.ndarray


def match(records: Sequence[ImageRecord], iou_type: str, settings: Settings, iou_threshold: float) -> list[Match]:
    """The engine's own matches, on which average precision rests, of every image and class.

    >>> match([], "bbox", Settings(2, (100,)), 0.5)
    []
    """
    records = [_prepared(record, iou_type, settings) for record in records]
    classes = 1 if settings.class_agnostic else settings.num_classes
    tables = _tables(records, iou_type, np.arange(classes))
    counted, found = (np.full(len(table["annotations"]), _LEFT_OUT) for table in tables)
    for entry in _entries(tables, iou_type, settings, iou_threshold):
        objects, detections, matched = (np.array(entry[key], np.int64) - 1 for key in ("gtIds", "dtIds", "dtMatches"))
        ignored, excused = (np.array(entry[key], bool).flatten() for key in ("gtIgnore", "dtIgnore"))
        counted[objects[~ignored]] = objects[~ignored]
        found[detections[~excused]] = matched.flatten()[~excused]
    matches, objects, detections = [], 0, 0
    for record in records:  # whose rows lie one after the other in the tables
        ends = objects + len(record.truth.labels), detections + len(record.detections.labels)
        matches.append(_match(record, counted[objects : ends[0]], found[detections : ends[1]]))
        objects, detections = ends
    return matches


def _match(record: ImageRecord, counted: np.ndarray, found: np.ndarray) -> Match:
    """``counted`` and ``found`` hold, per object and per detection, a row of the whole table of objects."""
    real, kept = np.flatnonzero(counted != _LEFT_OUT), np.flatnonzero(found != _LEFT_OUT)
    best = kept[np.argsort(-record.detections.scores[kept], kind="stable")]
    rows = np.where(found[best] < 0, -1, np.searchsorted(counted[real], found[best]))
    return Match(record.key, record.detections.take(best), record.truth.take(real), rows)


def _entries(
    tables: tuple[dict[str, Any], ...], iou_type: str, settings: Settings, iou_threshold: float
) -> list[dict[str, Any]]:
    """What an engine says of each image and class that has anything, by ids from 1 in the order of the tables."""
    if not any(table["annotations"] for table in tables):
        return []
    judge = _judge(tables, iou_type, settings)
    judge.params.iouThrs = [iou_threshold]
    judge.params.areaRng, judge.params.areaRngLbl = [list(AREAS["all"])], ["all"]
    with contextlib.redirect_stdout(io.StringIO()):
        judge.evaluate()
    return [entry for entry in judge.evalImgs if entry is not None]


def engine_name(engine: str | None) -> str:
    """The engine that will run: the requested one, or for None the fastest installed.

    Raises ValueError for an unknown name, ImportError naming the extra if hotcoco is not installed.

    >>> engine_name("pycocotools")
    'pycocotools'
    """
    if engine is None:
        return "hotcoco" if _hotcoco(required=False) else "pycocotools"
    if engine not in ENGINES:
        raise ValueError(f"engine={engine!r}; allowed are {', '.join(map(repr, ENGINES))} or None")
    if engine == "hotcoco":
        _hotcoco(required=True)
    return engine


def _hotcoco(*, required: bool) -> Any:
    try:
        return importlib.import_module("hotcoco")
    except ImportError as error:
        if required:
            raise ImportError("engine='hotcoco' needs the extra: pip install 'torch-detkit[fast-eval]'") from error
        return None


def _prepared(record: ImageRecord, iou_type: str, settings: Settings) -> ImageRecord:
    if settings.federated:
        record = _federated(record, iou_type, settings.max_detections[-1])
    if settings.class_agnostic:  # classes stay neighbors, which is the order pycocotools breaks ties in
        one = [side.take(np.argsort(side.labels, kind="stable")) for side in (record.detections, record.truth)]
        found, truth = (side._replace(labels=np.zeros_like(side.labels)) for side in one)
        record = record._replace(detections=found, truth=truth)
    return record


def _federated(record: ImageRecord, iou_type: str, limit: int) -> ImageRecord:
    """Keep the best ``limit`` detections of the image, then only evaluated classes; excuse partly annotated ones."""
    found = record.detections
    best = np.sort(np.argsort(-found.scores, kind="stable")[:limit])
    judged = np.isin(found.labels[best], [*record.negative, *record.truth.labels])
    found = found.take(best[judged])
    partly = np.isin(found.labels, list(record.not_exhaustive))
    excused = found.take(np.flatnonzero(partly & (_areas(found, iou_type) > 0)))
    # An empty detection overlaps nothing, so no region could excuse it: it is left out instead.
    found = found.take(np.flatnonzero(~partly | (_areas(found, iou_type) > 0)))
    regions = [_region(excused, label, record, iou_type) for label in np.unique(excused.labels).tolist()]
    return record._replace(detections=found, truth=_concatenated([record.truth, *regions]))


def _region(found: Objects, label: int, record: ImageRecord, iou_type: str) -> Objects:
    boxes = found.boxes[found.labels == label]
    corner = boxes[:, :2].min(axis=0)
    hull = np.concatenate([corner, (boxes[:, :2] + boxes[:, 2:]).max(axis=0) - corner])[None]
    masks = [full_mask(record.size)] if iou_type == "segm" and record.size is not None else None
    area, yes = np.array([np.prod(hull[0, 2:])]), np.array([True])
    return objects(hull, np.array([label]), areas=area, crowd=yes, ignore=yes, masks=masks)


def _concatenated(parts: Sequence[Objects]) -> Objects:
    names = ("boxes", "labels", "areas", "scores", "crowd", "ignore")
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    masks = None if parts[0].masks is None else [mask for part in parts for mask in part.masks or ()]
    return Objects(**joined, masks=masks)


def _areas(side: Objects, iou_type: str) -> np.ndarray:
    if side.areas is not None:
        return side.areas
    if iou_type == "segm":
        return mask_areas(side.masks or ())
    return side.boxes[:, 2] * side.boxes[:, 3]


def _ignored(truth: Objects, iou_type: str) -> np.ndarray:
    ignored = truth.crowd | truth.ignore
    if iou_type == "keypoints" and truth.keypoints is not None:
        ignored = ignored | ~(truth.keypoints[:, :, 2] > 0).any(axis=1)
    return ignored


def _tables(records: Sequence[ImageRecord], iou_type: str, present: np.ndarray) -> tuple[dict[str, Any], ...]:
    """COCO's two tables, ground truth and detections; images in the order of the records, only the classes that
    count."""
    sizes = [record.size or (1, 1) for record in records]
    shared = {
        "images": [{"id": i, "height": size[0], "width": size[1]} for i, size in enumerate(sizes, start=1)],
        "categories": [{"id": int(label) + 1, "name": str(label)} for label in present],
    }
    kept = set(present.tolist())
    rows: list[list[dict[str, Any]]] = [[], []]
    for number, record in enumerate(records, start=1):
        for table, side in zip(rows, (record.truth, record.detections), strict=True):
            table += [row for row in _rows(side, number, iou_type) if row["category_id"] - 1 in kept]
    for table in rows:
        for i, row in enumerate(table, start=1):
            row["id"] = i
    return {**shared, "annotations": rows[0]}, {**shared, "annotations": rows[1]}


def _rows(side: Objects, image: int, iou_type: str) -> list[dict[str, Any]]:
    ignored = _ignored(side, iou_type)
    areas = _areas(side, iou_type)
    if iou_type != "keypoints":  # there the area scales distances, and a count of 0 keypoints marks the ignored
        areas = np.where(ignored, -1.0, areas)
    columns = {
        "bbox": comparable_boxes(side.boxes).tolist(),
        "category_id": (side.labels + 1).tolist(),
        "area": areas.tolist(),
        "score": side.scores.tolist(),
        "iscrowd": side.crowd.astype(np.int64).tolist(),
    }
    if iou_type == "segm":
        columns["segmentation"] = side.masks or []
    if iou_type == "keypoints" and side.keypoints is not None:
        columns["keypoints"] = side.keypoints.reshape(len(ignored), -1).tolist()
        columns["num_keypoints"] = np.where(ignored, 0, (side.keypoints[:, :, 2] > 0).sum(axis=1)).tolist()
    names = ("image_id", *columns)
    return [dict(zip(names, (image, *row), strict=True)) for row in zip(*columns.values(), strict=True)]


def comparable_boxes(boxes: np.ndarray) -> np.ndarray:
    """xywh boxes (N, 4) whose tiny sides are 0: their product underflows, and pycocotools takes 0 / 0 for a match.

    >>> comparable_boxes(np.array([[1.0, 1.0, 1e-200, 2.0]])).tolist()
    [[1.0, 1.0, 0.0, 2.0]]
    """
    return np.where(boxes < [-np.inf, -np.inf, SMALLEST_SIDE, SMALLEST_SIDE], 0.0, boxes)


def _run(tables: tuple[dict[str, Any], ...], iou_type: str, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    judge = _judge(tables, iou_type, settings)
    judge.params.areaRng = [list(bounds) for bounds in AREAS.values()]
    judge.params.areaRngLbl = list(AREAS)
    with contextlib.redirect_stdout(io.StringIO()):
        judge.evaluate()
        judge.accumulate()
    return judge.eval["precision"], judge.eval["recall"]


def _judge(tables: tuple[dict[str, Any], ...], iou_type: str, settings: Settings) -> Any:
    """An engine with its tables, limits and sigmas, not yet run."""
    if engine_name(settings.engine) == "hotcoco":
        hotcoco = _hotcoco(required=True)
        judge = hotcoco.COCOeval(*(hotcoco.COCO(table) for table in tables), iou_type)
        sigmas: Any = list(settings.keypoint_sigmas)
    else:
        from pycocotools.cocoeval import COCOeval

        judge: Any = COCOeval(_indexed(tables[0]), _indexed(tables[1]), iou_type)  # pyright: ignore[reportArgumentType]
        sigmas = np.array(settings.keypoint_sigmas)
    judge.params.maxDets = list(settings.max_detections)
    if iou_type == "keypoints":
        judge.params.kpt_oks_sigmas = sigmas
    return judge


def _indexed(table: dict[str, Any]) -> Any:
    from pycocotools.coco import COCO

    coco: Any = COCO()
    coco.dataset = table
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco
