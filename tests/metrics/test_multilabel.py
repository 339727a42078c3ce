"""Multi-label AP: scikit-learn's, a loop over thresholds, and classes without positives named."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from strategies import unhooked

from detkit.metrics import MultiLabelMetrics


def drawn(rows: int = 60, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    truth = torch.from_numpy(rng.integers(0, 2, (rows, classes)))
    truth[:, 3] = 0
    return torch.from_numpy(rng.integers(0, 20, (rows, classes)) / 10.0).float(), truth


def by_hand(scores: list[float], truth: list[int]) -> float:
    """The sum over thresholds of precision times the gain in recall."""
    total, recall = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        kept = [t for s, t in zip(scores, truth, strict=True) if s >= threshold]
        gained = sum(kept) / sum(truth)
        total += (gained - recall) * sum(kept) / len(kept)
        recall = gained
    return total


def test_it_is_scikit_learns_and_a_loops_in_any_number_of_parts():
    scores, truth = drawn()
    metrics = MultiLabelMetrics(5)
    for some, true in zip(scores.split(13), truth.split(13), strict=True):
        metrics.update(some, true)
    for c, row in enumerate(metrics.per_class()):
        assert row.positives == truth[:, c].sum()
        if c == 3:
            assert row.AP == -1
            continue
        assert pytest.approx(by_hand(scores[:, c].tolist(), truth[:, c].tolist()), abs=1e-9) == row.AP
    kept = [0, 1, 2, 4]
    expected = average_precision_score(truth[:, kept].numpy(), scores[:, kept].numpy(), average="macro")
    assert metrics.compute() == {"mAP": pytest.approx(expected, abs=1e-9), "classes_without_positives": 1}
    metrics.reset()
    assert metrics.compute() == {"mAP": -1.0, "classes_without_positives": 5}


def test_what_is_wrong_is_named():
    metrics = MultiLabelMetrics(["cat", "dog"])
    for scores, truth, message in (
        (torch.zeros(3, 2), torch.zeros(3, 3), r"label_sets \(3, 3\); allowed is \(N, 2\) for both"),
        (torch.zeros(1, 2), torch.tensor([[0, 2]]), "label_sets hold other numbers than 0 and 1"),
    ):
        with pytest.raises(ValueError, match=message):
            unhooked(metrics.update)(scores, truth)
    assert [row.name for row in metrics.per_class()] == ["cat", "dog"]
