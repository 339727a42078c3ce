"""COCO and LVIS files as image records, every value read as the data set reads it.

Input that pycocotools accepts silently is an error here: duplicate or non-integer ids, results of unknown images or
categories, boxes that are not finite. The caller's lists are read, never modified.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from detkit._coco.columns import read_integers
from detkit._coco.crowds import warn_of_crowds
from detkit._coco.rows import Fields, Rows, read_objects
from detkit._coco.tables import Document, Entry, Table, read_sizes
from detkit._faults import Degenerate, Faults, shown
from detkit._rle import compress_segmentation
from detkit.metrics.records import ImageRecord, Objects, objects

_LISTS = ("neg_category_ids", "not_exhaustive_category_ids")


def read_records(
    ground_truth: Any,
    results: Any,
    *,
    masks: bool,
    points: int | None,
    degenerate: Degenerate = "drop",
    sources: tuple[str, str] = ("ground truth", "results"),
) -> tuple[Sequence[Entry], list[ImageRecord]]:
    """Categories in order of their id, so that label i is the i-th, and a record per image.

    Areas follow pycocotools: as annotated for ground truth; for a result that of its box, else of its mask, else of the
    hull of its keypoints. masks: every object needs a segmentation; points: keypoints that every object needs.
    degenerate: what becomes of objects of the ground truth that are none. ``sources`` name the two in messages. Raises
    ValueError naming the file's entry.

    >>> truth = {"images": [{"id": 5}], "categories": [{"id": 3, "name": "cat"}]}
    >>> read_records(truth, [], masks=False, points=None)[1][0].key
    (0, 5, 0)
    """
    _check_forms(ground_truth, results, sources)
    faults = Faults(sources[0], policy=degenerate)
    document = Document.read(ground_truth, faults)
    sizes, negative, not_exhaustive = (
        read_sizes(document.images),
        *(_federated(document, key, faults) for key in _LISTS),
    )
    truth, kept = read_objects(document.annotations, document, sizes, Fields(masks, points), faults)
    faults.settle(kept)
    truth = truth.take(np.flatnonzero(kept))
    names = [str(row.get("name", row["id"])) for row in document.categories.entries]
    if document.has_truth:
        warn_of_crowds(truth.labels, truth.crowd, names, source=sources[0])
    faults = Faults(sources[1])
    faults.refuse([not isinstance(row, Mapping) for row in results], lambda row: f"results[{row}] is no dict")
    faults.settle()
    fields = Fields(masks, points, truth=False)
    found, _ = read_objects(Table("results", results), document, sizes, fields, faults)
    faults.settle()
    images = zip(
        document.image_ids.tolist(),
        _by_image(found, len(sizes), None),
        _by_image(truth, len(sizes), points),
        [(height, width) if height and width else None for height, width in sizes.tolist()],
        negative,
        not_exhaustive,
        strict=True,
    )
    return document.categories.entries, [ImageRecord((0, image, 0), *rest) for image, *rest in images]


def _check_forms(ground_truth: Any, results: Any, sources: tuple[str, str]) -> None:
    if not isinstance(ground_truth, Mapping) or not isinstance(results, Sequence) or isinstance(results, str):
        values = results if isinstance(results, Mapping) else {}
        lists = [key for key, value in values.items() if isinstance(value, list)]
        instead = f"; the list may be one of its values: {', '.join(map(shown, lists))}" if lists else ""
        raise ValueError(
            f"{sources[0]} is a {type(ground_truth).__name__} and {sources[1]} a {type(results).__name__}; "
            f"allowed are COCO's dict and a list of detections{instead}"
        )


def _federated(document: Document, key: str, faults: Faults) -> list[frozenset[int]]:
    """The labels that each image lists under ``key``; ids of categories that the file lacks are none."""
    labels = {category: label for label, category in enumerate(document.category_ids.tolist())}
    columns = [[] if value is None else value for value in document.images.column(key)]
    lists = [value if isinstance(value, Sequence) and not isinstance(value, str) else [None] for value in columns]
    read = [read_integers(value, text=True) for value in lists]
    bad = [bool(unread.any()) for _, unread in read]
    faults.refuse(bad, lambda row: document.images.fault(row, key, "a list of integer ids of categories"))
    return [frozenset(labels[i] for i in ids.tolist() if i in labels) for ids, _ in read]


def _by_image(rows: Rows, count: int, points: int | None) -> list[Objects]:
    """The objects of each image; without a visible keypoint they are ignored where ``points`` are evaluated."""
    order = np.argsort(rows.images, kind="stable")
    cuts = np.searchsorted(rows.images[order], np.arange(1, count))
    return [_objects(rows.take(part), points) for part in np.split(order, cuts)] if count else []


def _objects(rows: Rows, points: int | None) -> Objects:
    masks = None
    if rows.segmentations is not None:
        pairs = zip(rows.segmentations, rows.sizes.tolist(), strict=True)
        masks = [compress_segmentation(mask, (size[0], size[1])) for mask, size in pairs if mask is not None]
    return objects(
        rows.boxes,
        rows.labels,
        areas=rows.area,
        scores=rows.scores,
        crowd=rows.crowd,
        ignore=rows.ignore | ((rows.num_keypoints == 0) & (points is not None)),
        masks=masks,
        keypoints=rows.keypoints,
    )
