"""Cluster agreement: scikit-learn's scores of scikit-learn's clusters, and what takes part."""

import pytest
import torch
from sklearn.metrics import adjusted_mutual_info_score
from strategies import unhooked

from detkit.retrieval import cluster_agreement

POINTS = torch.tensor([[0.0], [0.1], [5.0], [5.1], [9.0], [9.1]])


def test_clusters_that_are_the_labels_agree_and_padding_takes_no_part():
    labels = torch.tensor([3, 3, 1, 1, -1, -1])
    assert cluster_agreement(POINTS, labels) == pytest.approx((1, 1))


def test_labels_across_the_clusters_agree_as_chance_would():
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    found = cluster_agreement(POINTS, labels, clusters=3)
    assert found.normalized == pytest.approx(0, abs=1e-9)
    assert found.adjusted == pytest.approx(adjusted_mutual_info_score(labels, [0, 0, 1, 1, 2, 2]))


def test_what_is_wrong_is_named():
    labels = torch.zeros(6, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"clusters=7 of 6 embeddings; allowed is 1..6"):
        cluster_agreement(POINTS, labels, clusters=7)
    with pytest.raises(ValueError, match=r"embeddings\[0, 0\]"):
        cluster_agreement(POINTS / 0, labels)
    with pytest.raises(ValueError, match=r"labels \(6, 2\)"):
        unhooked(cluster_agreement)(POINTS, torch.zeros(6, 2))
