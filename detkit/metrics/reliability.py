"""Whether scores are probabilities: of the detections that score .8, eight of ten should be hits."""

from typing import NamedTuple

import numpy as np

from detkit._door import door
from detkit._ranges import Count
from detkit.metrics.judged import Judged


class Calibration(NamedTuple):
    """Bins of equal width over the scores 0 to 1, and how far score and precision differ.

    error: the expected calibration error, the mean over detections of a bin's distance between its mean score and its
    precision, in [0, 1]; largest: the largest such distance; both -1 without detections. counts (B,) int64: detections
    in each bin; scores and precision (B,): their mean score and the share of hits, NaN in empty bins.
    """

    error: float
    largest: float
    counts: np.ndarray
    scores: np.ndarray
    precision: np.ndarray


@door
def calibration(judged: Judged, *, bins: Count = 10) -> Calibration:
    """The reliability diagram of all detections, and the expected calibration error.

    Source: Guo et al. 2017 (equations 2 to 5), for detections Küppers et al. 2020: what they call accuracy is the
    precision here. A bin holds its lower end, the last one also 1. Raises ValueError for scores outside [0, 1].

    >>> from detkit.metrics import CocoMetrics
    >>> calibration(CocoMetrics(["cat"]).judged()).error
    -1.0
    """
    ranked = judged.ranked()
    if ((ranked.scores < 0) | (ranked.scores > 1)).any():
        low, high = ranked.scores.min(), ranked.scores.max()
        raise ValueError(f"calibration: scores from {low:g} to {high:g}; allowed are probabilities, 0 to 1")
    places = np.minimum((ranked.scores * bins).astype(np.int64), bins - 1)
    counts = np.bincount(places, minlength=bins)
    with np.errstate(invalid="ignore"):
        scores, precision = (
            np.bincount(places, weights=values, minlength=bins) / counts for values in (ranked.scores, ranked.hits)
        )
    filled = counts > 0
    gaps = np.abs(scores - precision)[filled]
    if not len(gaps):
        return Calibration(-1.0, -1.0, counts, scores, precision)
    return Calibration(float(np.average(gaps, weights=counts[filled])), float(gaps.max()), counts, scores, precision)
