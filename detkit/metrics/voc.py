"""Pascal VOC's mean average precision, by the area under the curve (2010 and later) or at eleven recalls (2007)."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from detkit._door import door
from detkit._ranges import Count, Fraction
from detkit.boxes import box_iou
from detkit.metrics.categories import category_names
from detkit.metrics.records import ImageRecord, Reader, corners
from detkit.metrics.store import ImageStore
from detkit.structures import Detection, Target

INTERPOLATIONS = ("area", "11point")


def average_precision(recall: Sequence[float], precision: Sequence[float], interpolation: str) -> float:
    """Average precision of a curve whose points are ordered by descending score.

    recall, precision: (N,) in [0, 1], recall never decreasing. "area": the area under the precision envelope (VOC 2010
    devkit). "11point": the mean over recalls 0, 0.1, ..., 1 of the best precision at or beyond each (VOC 2007;
    Everingham et al. 2010, section 4.2). The recalls are ``numpy.arange(0, 1.1, 0.1)``, as in Girshick's voc_eval.py:
    three of them are a rounding error above 0.3, 0.6 and 0.7, so a recall of exactly that does not reach them.

    Raises ValueError for points that do not form such a curve, and for another interpolation.

    >>> recall, precision = [0.2, 0.2, 0.4, 0.4, 0.6], [1, 0.5, 2 / 3, 0.5, 0.6]
    >>> [round(average_precision(recall, precision, how), 7) for how in ("11point", "area")]
    [0.4484848, 0.4533333]
    """
    recalls, precisions = _curve(recall, precision)
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"average_precision: interpolation={interpolation!r}; allowed are {INTERPOLATIONS}")
    envelope = np.append(np.maximum.accumulate(precisions[::-1])[::-1], 0.0)
    if interpolation == "11point":
        return float(envelope[np.searchsorted(recalls, np.arange(0, 1.1, 0.1))].mean())
    return float(np.sum(np.diff(recalls, prepend=0.0) * envelope[:-1]))


class VocClassResult(NamedTuple):
    """One class: AP (-1 if it has no object), number of objects without difficult ones."""

    name: str
    AP: float
    objects: int


class VocMetrics:
    """Pascal VOC's mAP over all images passed to :meth:`update` in all processes.

    categories: the number of classes, their names, or category dicts; label i is the i-th. A detection is compared with
    the object of its class that it overlaps most. If their IoU is at least ``iou_threshold``, it is a hit, unless a
    better detection has claimed the object; if the object is difficult (``iscrowd`` or ``ignore`` in the target), it is
    neither hit nor miss. Everything else is a miss. interpolation: see :func:`average_precision`. legacy_plus_one:
    sides are x2 - x1 + 1, as in VOC's devkit, whose boxes include their last pixel. Detections of equal score count in
    the order in which they are given, images in that of their ``image_id``. Source: VOC 2012 devkit, VOCevaldet.

    >>> metrics = VocMetrics(["cat"])
    >>> box = torch.tensor([[10.0, 10.0, 50.0, 50.0]])
    >>> metrics.update([{"boxes": box, "scores": torch.tensor([0.9]), "labels": torch.tensor([0])}],
    ...                [{"boxes": box, "labels": torch.tensor([0])}])
    >>> metrics.compute()
    {'mAP': 1.0}
    """

    @door
    def __init__(
        self,
        categories: Count | Sequence[str] | Sequence[Mapping[str, Any]],
        *,
        iou_threshold: Fraction = 0.5,
        interpolation: str = "area",
        legacy_plus_one: bool = False,
    ) -> None:
        average_precision([], [], interpolation)
        self.names = category_names(categories, function="VocMetrics")
        self.iou_threshold = iou_threshold
        self.interpolation: str = interpolation
        self.legacy_plus_one = legacy_plus_one
        self._images = ImageStore()

    @door
    def update(self, detections: Sequence[Detection], targets: Sequence[Target]) -> None:
        """Add images; entries and errors as in :meth:`CocoMetrics.update`, without masks and keypoints.

        >>> VocMetrics(1).update([], [])
        """
        reader = Reader("VocMetrics.update", len(self.names))
        self._images.read(reader, detections, targets)

    def compute(self) -> dict[str, float]:
        """``mAP``: the mean over classes that have an object, -1 if none has; the same in every process.

        >>> VocMetrics(3).compute()
        {'mAP': -1.0}
        """
        found = [row.AP for row in self.per_class() if row.objects]
        return {"mAP": float(np.mean(found)) if found else -1.0}

    def per_class(self) -> list[VocClassResult]:
        """AP and number of objects of each class (collective call).

        >>> VocMetrics(["cat"]).per_class()
        [VocClassResult(name='cat', AP=-1.0, objects=0)]
        """
        records = self._images.gathered()
        counted = [record.truth.labels[~(record.truth.crowd | record.truth.ignore)] for record in records]
        objects = np.bincount(np.concatenate([*counted, np.empty(0, np.int64)]), minlength=len(self.names))
        judged = _Judged.joined([_judge(record, self.iou_threshold, self.legacy_plus_one) for record in records])
        return [
            VocClassResult(name, self._class_precision(judged, label, int(objects[label])), int(objects[label]))
            for label, name in enumerate(self.names)
        ]

    def reset(self) -> None:
        """Forget every image.

        >>> VocMetrics(1).reset()
        """
        self._images.reset()

    def _class_precision(self, judged: "_Judged", label: int, objects: int) -> float:
        rows = np.flatnonzero((judged.labels == label) & ~judged.excused)
        if not objects:
            return -1.0
        rows = rows[np.argsort(-judged.scores[rows], kind="stable")]
        claimed = judged.objects[rows]
        _, first = np.unique(claimed, return_index=True)
        hit = np.zeros(len(rows), dtype=bool)
        hit[first] = True
        hits = np.cumsum(hit & (claimed >= 0))
        recall, precision = hits / objects, hits / np.arange(1, len(rows) + 1)
        return average_precision(recall.tolist(), precision.tolist(), self.interpolation)


class _Judged(NamedTuple):
    """Detections with the object that each claims, -1 for none; excused ones claim a difficult object."""

    scores: np.ndarray
    labels: np.ndarray
    objects: np.ndarray
    excused: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence["_Judged"]) -> "_Judged":
        """All images as one, with objects numbered across them."""
        empty = cls(np.empty(0), np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, bool))
        shifted, offset = [], 0
        for part in parts:
            shifted.append(part._replace(objects=np.where(part.objects >= 0, part.objects + offset, -1)))
            offset += int(part.objects.max(initial=-1)) + 1
        return cls._make(np.concatenate(columns) for columns in zip(empty, *shifted, strict=True))


def _judge(record: ImageRecord, iou_threshold: float, legacy_plus_one: bool) -> _Judged:
    found, truth = record.detections, record.truth
    if not len(found.labels) or not len(truth.labels):
        nothing = np.full(len(found.labels), -1)
        return _Judged(found.scores, found.labels, nothing, np.zeros(len(nothing), dtype=bool))
    last_pixel = np.array([0.0, 0.0, 1.0, 1.0]) if legacy_plus_one else 0.0
    sides = (torch.from_numpy(corners(side.boxes) + last_pixel) for side in (found, truth))
    overlap = np.where(found.labels[:, None] == truth.labels, box_iou(*sides).numpy(), -1.0)
    best = overlap.argmax(axis=1)
    reached = (overlap.max(axis=1) >= iou_threshold) & (overlap.max(axis=1) >= 0)
    difficult = (truth.crowd | truth.ignore)[best]
    return _Judged(found.scores, found.labels, np.where(reached, best, -1), reached & difficult)


def _curve(recall: Sequence[float], precision: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    points = np.asarray(recall, dtype=np.float64), np.asarray(precision, dtype=np.float64)
    if points[0].ndim != 1 or points[0].shape != points[1].shape:
        shapes = [axis.shape for axis in points]
        raise ValueError(f"average_precision: recall and precision have shapes {shapes}; allowed is (N,) for both")
    if not all(((axis >= 0) & (axis <= 1)).all() for axis in points) or (np.diff(points[0]) < 0).any():
        raise ValueError("average_precision: allowed are recall and precision in [0, 1], recall not falling")
    return points
