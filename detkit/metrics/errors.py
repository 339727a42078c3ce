"""Errors by kind, and what each kind costs in average precision.

Source: TIDE (Bolya et al. 2020, sections 2.1 to 2.3). The numbers are tidecv 1.0.1's where no two scores are equal, no
image has more than 100 detections, and every detected class has an object somewhere. Otherwise they follow COCO: equal
scores keep their order, 100 detections of each class count, and classes without objects do not.
"""

from typing import NamedTuple

import numpy as np

from detkit._door import door
from detkit._ranges import Probability
from detkit.metrics.engines import Match
from detkit.metrics.judged import Judged
from detkit.metrics.overlaps import overlaps

KINDS = ("classification", "localization", "both", "duplicate", "background", "missed")
CLASSIFICATION, LOCALIZATION, BOTH, DUPLICATE, BACKGROUND, MISSED = range(6)
HIT = -1
_RECALLS = np.linspace(0, 1, 101)


class ImageKinds(NamedTuple):
    """Of one image: the kind of each detection (D,), a place in ``KINDS`` or -1 for hits; what is missed (T,) bool.

    mends (D,): the object that becomes a hit where the error of a detection is mended, or -1.
    """

    detections: np.ndarray
    missed: np.ndarray
    mends: np.ndarray


class ErrorKinds(NamedTuple):
    """Errors by kind: how many there are, what AP would be gained were they all mended, AP as it is; and each image's.

    counts and costs have the keys ``KINDS``. AP and costs are at one IoU threshold and in [0, 1]; AP is -1 without
    objects.
    """

    AP: float
    counts: dict[str, int]
    costs: dict[str, float]
    images: list[ImageKinds]


@door
def error_kinds(judged: Judged, *, background_iou: Probability = 0.1) -> ErrorKinds:
    """Errors by kind, and what each kind costs in AP.

    A detection that is no hit is the first of these, with t the IoU threshold of ``judged``: localization, if its IoU
    with an object of its class is from ``background_iou`` to t; classification, if its IoU with an object of another
    class is at least t; duplicate, if its IoU with an object of its class, which a better detection has, is at least t;
    background, if its IoU with every object is at most ``background_iou``; else both. An object that no detection
    finds, and none would if its class or its place were mended, is missed.

    To mend classification or localization makes a hit of the best detection with one of these two errors on an object,
    provided that its error is of that kind, and removes the others. To mend duplicate, background or both removes the
    detections; to mend missed removes the objects. A cost is the AP gained, at least 0; they do not add up to 1 - AP.

    Raises ValueError for keypoints, and if ``background_iou`` is not below t.

    >>> from detkit.metrics import CocoMetrics
    >>> error_kinds(CocoMetrics(["cat"]).judged()).counts["missed"]
    0
    """
    if background_iou >= judged.iou_threshold:
        raise ValueError(
            f"error_kinds: background_iou={background_iou} is not below the IoU threshold {judged.iou_threshold}"
        )
    images = [_kinds(image, judged, background_iou) for image in judged.images]
    points, objects = _Points.of(judged, images), judged.object_counts()
    missed = _missed(judged, images)
    counts = np.bincount(points.kinds[points.kinds != HIT], minlength=len(KINDS))
    counts[MISSED] = missed.sum()
    present = np.flatnonzero(objects)
    before = _mean_precision(points, objects, present)
    after = [_mean_precision(points.mend(kind), objects, present) for kind in range(MISSED)]
    after.append(_mean_precision(points, objects - missed, present))
    costs = [max(0.0, value - before) for value in after]
    return ErrorKinds(
        before, dict(zip(KINDS, counts.tolist(), strict=True)), dict(zip(KINDS, costs, strict=True)), images
    )


def _kinds(image: Match, judged: Judged, background_iou: float) -> ImageKinds:
    count, objects = len(image.objects), len(image.truth.labels)
    found = np.isin(np.arange(objects), image.objects)
    if not objects:
        return ImageKinds(np.full(count, BACKGROUND), ~found, np.full(count, -1))
    overlap, threshold = overlaps(image, judged.iou_type), judged.iou_threshold
    same = image.detections.labels[:, None] == image.truth.labels
    own, other = np.where(same, overlap, 0.0), np.where(same, 0.0, overlap)
    own_best, other_best = own.max(axis=1), other.max(axis=1)
    rules = {
        HIT: image.objects >= 0,
        LOCALIZATION: (own_best >= background_iou) & (own_best <= threshold),
        CLASSIFICATION: other_best >= threshold,
        DUPLICATE: own_best >= threshold,
        BACKGROUND: np.maximum(own_best, other_best) <= background_iou,
    }
    kinds = np.select(list(rules.values()), list(rules), BOTH)
    aimed = np.where(kinds == LOCALIZATION, own.argmax(axis=1), other.argmax(axis=1))
    aimed[~np.isin(kinds, (LOCALIZATION, CLASSIFICATION)) | found[aimed]] = -1
    mends = np.full(count, -1)
    first = np.unique(aimed, return_index=True)[1]  # detections come best first
    mends[first] = aimed[first]
    return ImageKinds(kinds, ~found & ~np.isin(np.arange(objects), aimed), mends)


class _Points(NamedTuple):
    """All detections, (D,) each. mended: the class of the object that mending makes a hit, or -1."""

    scores: np.ndarray
    labels: np.ndarray
    kinds: np.ndarray
    mended: np.ndarray

    @classmethod
    def of(cls, judged: Judged, images: list[ImageKinds]) -> "_Points":
        columns = [
            (image.detections.scores, image.detections.labels, kinds.detections, _labels(image, kinds.mends))
            for image, kinds in zip(judged.images, images, strict=True)
        ]
        none = (np.empty(0), *(np.empty(0, np.int64) for _ in range(3)))
        return cls(*map(np.concatenate, zip(none, *columns, strict=True)))

    def mend(self, kind: int) -> "_Points":
        chosen = self.kinds == kind
        hit = chosen & (self.mended >= 0)
        labels, kinds = np.where(hit, self.mended, self.labels), np.where(hit, HIT, self.kinds)
        return _Points(*(column[~chosen | hit] for column in (self.scores, labels, kinds, self.mended)))


def _labels(image: Match, rows: np.ndarray) -> np.ndarray:
    return np.append(image.truth.labels, -1)[rows]


def _missed(judged: Judged, images: list[ImageKinds]) -> np.ndarray:
    """How many objects of each class are missed, (C,)."""
    labels = [image.truth.labels[kinds.missed] for image, kinds in zip(judged.images, images, strict=True)]
    return np.bincount(np.concatenate([*labels, np.empty(0, np.int64)]), minlength=len(judged.names))


def _mean_precision(points: _Points, objects: np.ndarray, present: np.ndarray) -> float:
    """The mean over the classes ``present`` of AP, which is 0 where a class has detections, but no object is left."""
    order = np.lexsort((-points.scores, points.labels))
    ends = np.searchsorted(points.labels[order], np.arange(len(objects) + 1))
    hits = points.kinds[order] == HIT
    parts = {label: hits[ends[label] : ends[label + 1]] for label in present.tolist()}
    found = [_precision(part, int(objects[label])) for label, part in parts.items() if len(part) or objects[label]]
    return float(np.mean(found)) if found else -1.0


def _precision(hits: np.ndarray, objects: int) -> float:
    """COCO's average precision of the hits and misses of a class, best first: the mean over 101 recalls."""
    if not objects:
        return 0.0
    found = np.cumsum(hits)
    precision = np.append(found / np.arange(1, len(hits) + 1), 0.0)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[np.searchsorted(found / objects, _RECALLS)].mean())
