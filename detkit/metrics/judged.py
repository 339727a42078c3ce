"""Detections that were judged: which of them find an object at one IoU threshold, and which do not.

Everything that explains a result starts here. The matches are those of COCO's average precision, so that a curve, a
count of errors or a confusion matrix speaks of the same hits as the AP that it explains: crowds, ignored objects and
detections on them are taken out first, as AP leaves them out.
"""

from typing import NamedTuple

import numpy as np

from detkit._door import door
from detkit._ranges import Finite
from detkit.metrics.engines import Match


class Ranked(NamedTuple):
    """All detections of all images, best first: scores (D,), labels (D,), and whether each is a hit (D,) bool."""

    scores: np.ndarray
    labels: np.ndarray
    hits: np.ndarray


class Judged(NamedTuple):
    """What :meth:`CocoMetrics.judged` returns: the names of the classes, how was compared, and a match per image.

    >>> Judged(("cat",), "bbox", 0.5, []).ranked().scores.shape
    (0,)
    """

    names: tuple[str, ...]
    iou_type: str
    iou_threshold: float
    images: list[Match]

    def ranked(self) -> Ranked:
        """All detections, best first; of equal scores in the order of the images, as AP counts them.

        >>> Judged(("cat",), "bbox", 0.5, []).ranked().hits.tolist()
        []
        """
        scores = _joined([image.detections.scores for image in self.images], np.float64)
        labels = _joined([image.detections.labels for image in self.images], np.int64)
        hits = _joined([image.objects >= 0 for image in self.images], bool)
        order = np.argsort(-scores, kind="stable")
        return Ranked(scores[order], labels[order], hits[order])

    def object_counts(self) -> np.ndarray:
        """The number of objects of each class, (C,).

        >>> Judged(("cat", "dog"), "bbox", 0.5, []).object_counts().tolist()
        [0, 0]
        """
        labels = _joined([image.truth.labels for image in self.images], np.int64)
        return np.bincount(labels, minlength=len(self.names))

    @door
    def above(self, score_threshold: Finite) -> "Judged":
        """Without the detections of a lower score. The other matches stay: a better detection chooses before.

        >>> Judged(("cat",), "bbox", 0.5, []).above(0.3).images
        []
        """
        return self._replace(images=[_above(image, score_threshold) for image in self.images])


def _above(image: Match, score_threshold: float) -> Match:
    kept = np.flatnonzero(image.detections.scores >= score_threshold)
    return image._replace(detections=image.detections.take(kept), objects=image.objects[kept])


def _joined(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([*parts, np.empty(0, dtype)])
