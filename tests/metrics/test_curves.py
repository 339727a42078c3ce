"""Precision, recall and F1 over the score: equal to counting at each threshold, and to the curve of AP."""

import numpy as np
import pytest
from judged_scenes import NAMES, judged_scenes, scenes

from detkit.metrics import CocoMetrics, pooled_curve, score_curves


@pytest.mark.parametrize("seed", range(4))
def test_every_point_is_what_counting_gives(seed):
    judged = judged_scenes(seed, crowds=True, scores=12)
    curves = [*score_curves(judged), pooled_curve(judged)]
    for label, curve in zip([*range(len(NAMES)), None], curves, strict=True):
        for threshold, precision, recall, f1 in zip(*curve[2:], strict=True):
            hits = kept = objects = 0
            for image in judged.images:
                for score, found, own in zip(
                    image.detections.scores, image.objects, image.detections.labels, strict=True
                ):
                    if score >= threshold and label in (None, own):
                        kept, hits = kept + 1, hits + (found >= 0)
                objects += sum(label in (None, own) for own in image.truth.labels)
            assert curve.objects == objects
            assert precision == hits / kept
            assert recall == (hits / objects if objects else 0)
            assert f1 == 2 * hits / (kept + objects)
        ranked = judged.ranked()
        scores = ranked.scores if label is None else ranked.scores[ranked.labels == label]
        assert curve.thresholds.tolist() == sorted(set(scores.tolist()), reverse=True)


def test_the_envelope_is_the_precision_that_ap_averages():
    detections, targets = scenes(0, count=30, crowds=True)
    metrics = CocoMetrics(NAMES)
    metrics.update(detections, targets)
    for curve, row in zip(score_curves(metrics.judged()), metrics.per_class(), strict=True):
        best = [max(curve.precision[curve.recall >= recall], default=0) for recall in np.linspace(0, 1, 101)]
        assert np.mean(best) == pytest.approx(row.AP50)


def test_the_best_threshold_is_the_highest_of_the_best_f1():
    curve = pooled_curve(judged_scenes(0))
    threshold, f1 = curve.best()
    assert f1 == max(curve.f1) > 0
    assert threshold == max(curve.thresholds[curve.f1 == f1])
    assert pooled_curve(CocoMetrics(NAMES).judged()).best() == (0, 0)
