"""Precision, recall and F1 over the score threshold, which show where to set it."""

from typing import NamedTuple

import numpy as np

from detkit._door import door
from detkit.metrics.judged import Judged


class ScoreCurve(NamedTuple):
    """Precision, recall and F1 of the detections that score at least each of N thresholds, which fall.

    The thresholds are the scores that occur. All arrays are (N,), in [0, 1] but for the thresholds. Without ``objects``
    recall and F1 are 0.
    """

    name: str
    objects: int
    thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray

    def best(self) -> tuple[float, float]:
        """The threshold of the highest F1, and that F1; of equal ones the highest threshold; without hits (0, 0).

        >>> curve = np.array([0.5, 0.4])
        >>> ScoreCurve("cat", 2, np.array([0.9, 0.3]), curve, curve, curve).best()
        (0.9, 0.5)
        """
        if not self.f1.any():
            return 0.0, 0.0
        row = int(self.f1.argmax())
        return float(self.thresholds[row]), float(self.f1[row])


@door
def score_curves(judged: Judged) -> list[ScoreCurve]:
    """A curve of each class.

    >>> from detkit.metrics import CocoMetrics
    >>> [curve.name for curve in score_curves(CocoMetrics(["cat", "dog"]).judged())]
    ['cat', 'dog']
    """
    ranked, objects = judged.ranked(), judged.object_counts().tolist()
    members = (ranked.labels == label for label in range(len(judged.names)))
    return [
        _curve(name, count, ranked.scores[rows], ranked.hits[rows])
        for name, count, rows in zip(judged.names, objects, members, strict=True)
    ]


@door
def pooled_curve(judged: Judged) -> ScoreCurve:
    """The curve of all classes together, in which each detection counts the same: one threshold for all.

    >>> from detkit.metrics import CocoMetrics
    >>> pooled_curve(CocoMetrics(["cat", "dog"]).judged()).best()
    (0.0, 0.0)
    """
    ranked = judged.ranked()
    return _curve("all classes", int(judged.object_counts().sum()), ranked.scores, ranked.hits)


def _curve(name: str, objects: int, scores: np.ndarray, hits: np.ndarray) -> ScoreCurve:
    last = np.flatnonzero(np.diff(scores, append=-np.inf))  # a threshold lets in all detections of its score
    found, kept = np.cumsum(hits)[last], last + 1
    return ScoreCurve(name, objects, scores[last], found / kept, found / max(1, objects), 2 * found / (kept + objects))
