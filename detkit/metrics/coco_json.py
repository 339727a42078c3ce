"""COCO and LVIS files as image records, every value checked.

Input that pycocotools accepts silently is an error here: duplicate or non-integer ids, results of unknown images or
categories, boxes that are not finite. The caller's lists are read, never modified.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from detkit._rle import Rle, check_segmentation, compress_segmentation, mask_areas, mask_boxes
from detkit.metrics.records import LARGEST, ImageRecord, Objects, objects

Row = Mapping[str, Any]


class _Source(NamedTuple):
    """One of the two files: its name in errors, the fields objects need, and labels and sizes by id."""

    name: str
    masks: bool
    points: int | None
    labels: Mapping[int, int]
    sizes: Mapping[int, tuple[int, int]]


def read_records(
    ground_truth: Any, results: Any, *, masks: bool, points: int | None
) -> tuple[list[Row], list[ImageRecord]]:
    """Categories in order of their id, so that label i is the i-th, and a record per image.

    Areas follow pycocotools: as annotated for ground truth; for a result that of its box, else of its mask, else of the
    hull of its keypoints. masks: every object needs a segmentation; points: keypoints that every object needs.
    Raises ValueError naming the file's entry.

    >>> truth = {"images": [{"id": 5}], "categories": [{"id": 3, "name": "cat"}], "annotations": []}
    >>> read_records(truth, [], masks=False, points=None)[1][0].key
    (0, 5, 0)
    """
    if not isinstance(ground_truth, Mapping) or not isinstance(results, Sequence) or isinstance(results, str):
        raise ValueError(
            f"ground truth is a {type(ground_truth).__name__} and results a {type(results).__name__}; "
            "allowed are COCO's dict and a list of detections"
        )
    images, annotations, categories = (_table(ground_truth, name) for name in ("images", "annotations", "categories"))
    categories = sorted(categories, key=lambda category: category["id"])
    labels = {category["id"]: label for label, category in enumerate(categories)}
    sizes = {image["id"]: _size(image, i) for i, image in enumerate(images)}
    found = _read_rows(_Source("results", masks, points, labels, sizes), results, truth=False)
    truth = _read_rows(_Source("annotations", masks, points, labels, sizes), annotations, truth=True)
    return categories, [_record(image, found, truth, labels, sizes) for image in images]


def _table(ground_truth: Mapping[str, Any], name: str) -> list[Row]:
    rows = ground_truth.get(name)
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        raise ValueError(f"ground truth has no list of {name}, only {sorted(map(str, ground_truth))}")
    for i, row in enumerate(rows):
        _integer(row, "id", f"{name}[{i}]")
    repeated = [value for value, count in Counter(row["id"] for row in rows).items() if count > 1]
    if repeated:
        raise ValueError(f"{name}: id {repeated[0]} is given twice ({len(repeated)} such ids); ids must be unique")
    return list(rows)


def _size(image: Row, index: int) -> tuple[int, int]:
    """(height, width), 0 if the file does not say: only masks need it."""
    height, width = image.get("height", 0), image.get("width", 0)
    if not isinstance(height, int) or not isinstance(width, int):
        raise ValueError(
            f"images[{index}]: height {height!r:.40}, width {width!r:.40}; allowed are integers, or neither"
        )
    return height, width


def _integer(row: Any, name: str, where: str, known: Mapping[int, Any] | None = None) -> int:
    value = row.get(name) if isinstance(row, Mapping) else None
    if not isinstance(value, int) or isinstance(value, bool) or (known is not None and value not in known):
        allowed = "an integer" if known is None else "the id of one in the ground truth (an integer)"
        raise ValueError(f"{where}: {name} is {value!r:.60}; allowed is {allowed}")
    return value


def _record(
    image: Row,
    found: Mapping[int, Objects],
    truth: Mapping[int, Objects],
    labels: Mapping[int, int],
    sizes: Mapping[int, tuple[int, int]],
) -> ImageRecord:
    known = (
        frozenset(labels[category] for category in image.get(name, ()) if category in labels)
        for name in ("neg_category_ids", "not_exhaustive_category_ids")
    )
    size = sizes[image["id"]] if all(sizes[image["id"]]) else None
    return ImageRecord((0, image["id"], 0), found[image["id"]], truth[image["id"]], size, *known)


def _read_rows(source: _Source, rows: Sequence[Row], *, truth: bool) -> Mapping[int, Objects]:
    """Objects by image id; an image without rows has its own empty objects."""
    shared = defaultdict[int, list[int]](list)
    for i, row in enumerate(rows):
        shared[_integer(row, "image_id", f"{source.name}[{i}]", source.sizes)].append(i)
        _integer(row, "category_id", f"{source.name}[{i}]", source.labels)
    return {image: _read_objects(source, rows, shared[image], truth) for image in source.sizes}


def _read_objects(source: _Source, rows: Sequence[Row], indices: Sequence[int], truth: bool) -> Objects:
    chosen = [rows[i] for i in indices]
    where = [f"{source.name}[{i}]" for i in indices]
    keypoints = None
    if source.points is not None:
        read = [_numbers(row, "keypoints", 3 * source.points, at) for row, at in zip(chosen, where, strict=True)]
        keypoints = np.array(read).reshape(-1, source.points, 3)
    masks = [_mask(source, row, at) for row, at in zip(chosen, where, strict=True)]
    boxes = [_box(source, row, mask, at) for row, mask, at in zip(chosen, masks, where, strict=True)]
    areas = [_area(row, box, mask, at, truth) for row, box, mask, at in zip(chosen, boxes, masks, where, strict=True)]
    return objects(
        np.array(boxes).reshape(-1, 4),
        np.array([source.labels[row["category_id"]] for row in chosen], dtype=np.int64),
        areas=np.array(areas, dtype=np.float64),
        scores=np.ones(len(chosen)) if truth else _scores(chosen, where),
        crowd=np.array([truth and bool(row.get("iscrowd", 0)) for row in chosen], dtype=bool),
        ignore=np.array([truth and _is_ignored(row, source.points) for row in chosen], dtype=bool),
        masks=[mask for mask in masks if mask is not None] if source.masks else None,
        keypoints=keypoints,
    )


def _scores(rows: Sequence[Row], where: Sequence[str]) -> np.ndarray:
    read = [_numbers(row, "score", 0, at)[0] for row, at in zip(rows, where, strict=True)]
    return np.array(read, dtype=np.float64)


def _is_ignored(row: Row, points: int | None) -> bool:
    return bool(row.get("ignore", 0)) or (points is not None and row.get("num_keypoints") == 0)


def _mask(source: _Source, row: Row, where: str) -> Rle | None:
    if not source.masks and ("bbox" in row or "segmentation" not in row):
        return None
    size = source.sizes[row["image_id"]]
    return compress_segmentation(check_segmentation(row.get("segmentation"), size=size, owner=where), size)


def _box(source: _Source, row: Row, mask: Rle | None, where: str) -> list[float]:
    if "bbox" not in row and mask is not None:
        return mask_boxes([mask])[0].tolist()
    if "bbox" not in row and source.points is not None:
        points = np.array(row["keypoints"], dtype=np.float64).reshape(-1, 3)[:, :2]
        return [*points.min(axis=0), *np.ptp(points, axis=0)]
    box = _numbers(row, "bbox", 4, where)
    if box[2] < 0 or box[3] < 0:
        raise ValueError(f"{where}: bbox {box}; allowed is [x, y, width, height] with width and height >= 0")
    return box


def _area(row: Row, box: Sequence[float], mask: Rle | None, where: str, truth: bool) -> float:
    if truth and row.get("area") is not None:
        area = _numbers(row, "area", 0, where)[0]
        if area < 0:
            raise ValueError(f"{where}: area {area}; allowed is an area >= 0")
        return area
    from_mask = mask is not None and (truth or "bbox" not in row)
    return float(mask_areas([mask])[0]) if from_mask and mask is not None else box[2] * box[3]


def _numbers(row: Row, name: str, length: int, where: str) -> list[float]:
    """``length`` numbers within ``LARGEST`` (0: a single one) as a list."""
    try:
        values = np.asarray(row.get(name), dtype=np.float64)
    except (TypeError, ValueError):
        values = np.array(np.nan)
    if values.shape != ((length,) if length else ()) or not (np.abs(values) <= LARGEST).all():
        allowed = f"{length} finite numbers" if length else "a finite number"
        raise ValueError(f"{where}: {name} is {row.get(name)!r:.100}; allowed is {allowed}")
    return values.reshape(-1).tolist()
