"""Which class was taken for which: the confusion matrix of a detector, with a row and a column for nothing."""

from typing import NamedTuple

import numpy as np

from detkit._door import door
from detkit._ranges import Finite
from detkit.metrics.engines import Match
from detkit.metrics.judged import Judged
from detkit.metrics.overlaps import overlaps


class ConfusionMatrix(NamedTuple):
    """Counts (C + 1, C + 1) int64: rows are the true classes, columns the detected ones, the last of both nothing.

    So the last column counts the objects that were missed, the last row the detections where nothing was.
    """

    names: tuple[str, ...]
    counts: np.ndarray

    def shares(self) -> np.ndarray:
        """Each row as shares of its sum, in [0, 1]; rows without anything are 0.

        >>> ConfusionMatrix(("cat",), np.array([[3, 1], [0, 0]])).shares().tolist()
        [[0.75, 0.25], [0.0, 0.0]]
        """
        return self.counts / np.maximum(1, self.counts.sum(axis=1, keepdims=True))


@door
def confusion_matrix(judged: Judged, *, score_threshold: Finite) -> ConfusionMatrix:
    """The confusion matrix of the detections that score at least ``score_threshold``.

    First the hits count, which are those of average precision: a detection of the right class has an object before one
    of another class, whatever they score. Of the other detections each, best first, takes the object of any class that
    it overlaps most among those still free, if their IoU reaches the threshold of ``judged``. Crowds, ignored objects
    and the detections on them are left out. Raises ValueError for keypoints, which are not compared across classes.

    >>> from detkit.metrics import CocoMetrics
    >>> confusion_matrix(CocoMetrics(["cat"]).judged(), score_threshold=0.5).counts.tolist()
    [[0, 0], [0, 0]]
    """
    nothing = len(judged.names)
    cells = [np.empty((2, 0), np.int64)]
    for image in judged.above(score_threshold).images:
        objects = _paired(image, overlaps(image, judged.iou_type), judged.iou_threshold)
        missed = np.delete(image.truth.labels, objects[objects >= 0])
        truth = np.append(image.truth.labels, nothing)[objects]
        cells += [np.stack([truth, image.detections.labels]), np.stack([missed, np.full(len(missed), nothing)])]
    rows, columns = np.concatenate(cells, axis=1)
    counts = np.bincount(rows * (nothing + 1) + columns, minlength=(nothing + 1) ** 2)
    return ConfusionMatrix(judged.names, counts.reshape(nothing + 1, nothing + 1))


def _paired(image: Match, overlap: np.ndarray, iou_threshold: float) -> np.ndarray:
    """The object of each detection (D,), of its own class or of another; -1 for none."""
    objects = image.objects.copy()
    free = np.ones(len(image.truth.labels), bool)
    free[objects[objects >= 0]] = False
    for row in np.flatnonzero(objects < 0):
        candidates = np.where(free, overlap[row], -1.0)
        best = int(candidates.argmax()) if free.any() else -1
        if best >= 0 and candidates[best] >= iou_threshold:
            objects[row], free[best] = best, False
    return objects
