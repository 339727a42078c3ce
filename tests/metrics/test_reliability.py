"""Calibration: equal to a loop over bins, and to hotcoco's."""

import numpy as np
import pytest
import torch
from judged_scenes import NAMES, judged_scenes

from detkit.metrics import CocoMetrics, calibration


@pytest.mark.parametrize("bins", [1, 7, 10])
def test_every_bin_is_that_of_a_loop(bins):
    for seed in range(4):
        judged = judged_scenes(seed, crowds=True, scores=20)
        found = calibration(judged, bins=bins)
        error, total = 0.0, len(judged.ranked().scores)
        for place in range(bins):
            inside = [
                (score, hit)
                for score, _, hit in zip(*judged.ranked(), strict=True)
                if min(int(score * bins), bins - 1) == place
            ]
            assert found.counts[place] == len(inside)
            if inside:
                score, precision = (np.mean(column) for column in zip(*inside, strict=True))
                assert (found.scores[place], found.precision[place]) == pytest.approx((score, precision))
                error += len(inside) / total * abs(score - precision)
        assert found.error == pytest.approx(error)
        assert found.largest == pytest.approx(np.nanmax(abs(found.scores - found.precision)))


def test_it_is_hotcocos():
    hotcoco = pytest.importorskip("hotcoco")
    truth = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10], "area": 100, "iscrowd": 0}
    others = [[0, 0, 10, 10], [0, 0, 9, 9], [50, 50, 9, 9], [70, 50, 9, 9]]
    rows = [
        truth | {"id": i, "bbox": box, "score": score}
        for i, (box, score) in enumerate(zip(others, (0.93, 0.91, 0.34, 1.0), strict=True), 1)
    ]
    shared = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "cat"}]}
    judge = hotcoco.COCOeval(*(hotcoco.COCO(shared | {"annotations": side}) for side in ([truth], rows)), "bbox")
    judge.evaluate()
    theirs = judge.calibration()
    metrics = CocoMetrics.from_json(shared | {"annotations": [truth]}, rows)
    ours = calibration(metrics.judged())
    assert (ours.error, ours.largest) == pytest.approx((theirs["ece"], theirs["mce"]))
    assert ours.counts.tolist() == [row["count"] for row in theirs["bins"]]


def test_scores_that_are_no_probabilities_are_refused_and_no_scores_have_no_error():
    assert calibration(CocoMetrics(NAMES).judged()).error == -1
    metrics = CocoMetrics(1)
    box = {"boxes": torch.tensor([[0.0, 0, 9, 9]]), "labels": torch.tensor([0])}
    metrics.update([box | {"scores": torch.tensor([1.5])}], [box])
    with pytest.raises(ValueError, match=r"calibration: scores from 1.5 to 1.5; allowed are probabilities, 0 to 1"):
        calibration(metrics.judged())
    with pytest.raises(ValueError, match="bins"):
        calibration(metrics.judged(), bins=0)
