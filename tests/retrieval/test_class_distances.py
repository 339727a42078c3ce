"""Distances within and between classes: the golden of the definition, and all pairs by loops."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import assert_refused

from detkit.retrieval import class_distances


def distance(one: list[float], other: list[float]) -> float:
    product = sum(a * b for a, b in zip(one, other, strict=True))
    lengths = [math.sqrt(sum(a * a for a in vector)) for vector in (one, other)]
    return 1 - product / (lengths[0] * lengths[1])


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def slow(embeddings: torch.Tensor, labels: torch.Tensor) -> tuple[list[float], float, float]:
    """Within each class, and the two means, by loops over all pairs."""
    members: dict[int, list[list[float]]] = {}
    for row, label in zip(embeddings.double().tolist(), labels.tolist(), strict=True):
        if label >= 0:
            members.setdefault(label, []).append(row)
    within, centers = [], []
    for _, rows in sorted(members.items()):
        within.append(mean([distance(one, two) for i, one in enumerate(rows) for two in rows[:i]]))
        centers.append([mean(list(column)) for column in zip(*rows, strict=True)])
    inner = mean([value for value in within if not math.isnan(value)])
    inter = mean([distance(one, two) for i, one in enumerate(centers) for two in centers[:i]])
    return within, inner, inter


def test_the_golden_of_three_vectors():
    found = class_distances(torch.tensor([[1.0, 0], [1, 1], [0, 1]]), torch.tensor([5, 6, 9]))
    assert found.classes.tolist() == [5, 6, 9]
    apart = [found.between[0, 1].item(), found.between[0, 2].item(), found.between[1, 2].item()]
    assert apart == pytest.approx([0.292893, 1, 0.292893], abs=1e-6)
    assert found.inter == pytest.approx(sum(apart) / 3)
    assert math.isnan(found.inner)
    one = class_distances(torch.tensor([[1.0, 0], [1, 1], [0, 1]]), torch.zeros(3).long())
    assert one.inner == pytest.approx(sum(apart) / 3)
    assert math.isnan(one.inter)


@given(
    labels=st.lists(st.integers(-1, 3), min_size=1, max_size=14).filter(lambda rows: max(rows) >= 0),
    seed=st.integers(0, 99),
    scale=st.sampled_from([1e-12, 1.0, 1e12]),
)
def test_it_is_what_all_pairs_say(labels, seed, scale):
    rows = torch.randn(len(labels), 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = class_distances(rows * scale, torch.tensor(labels))
    within, inner, inter = slow(rows, torch.tensor(labels))
    assert found.within.tolist() == pytest.approx(within, nan_ok=True, abs=1e-9)
    assert (found.inner, found.inter) == pytest.approx((inner, inter), nan_ok=True, abs=1e-9)


def test_the_length_of_an_embedding_matters_to_its_class_mean_only():
    rows, labels = torch.tensor([[1.0, 0], [0, 1], [0, -1]]), torch.tensor([0, 0, 1])
    long = class_distances(rows * torch.tensor([[1.0], [9], [1]]), labels)
    assert long.inner == class_distances(rows, labels).inner == 1
    assert long.inter > class_distances(rows, labels).inter


def test_opposite_classes_are_farther_than_rectified_ones_can_be():
    assert class_distances(torch.tensor([[1.0, 0], [-1, 0]]), torch.tensor([0, 1])).inter == 2


def test_half_precision_is_promoted():
    rows = torch.tensor([[60000.0, 0], [60000, 60000]])
    assert class_distances(rows.half(), torch.tensor([0, 0])).inner == pytest.approx(0.292893, abs=1e-6)


@pytest.mark.parametrize(
    ("message", "rows", "labels"),
    [
        ("class_distances: embeddings (2, 3) labels (1,)", torch.ones(2, 3), torch.zeros(1).long()),
        ("class_distances: embeddings[0, 0]=nan", torch.full((1, 3), torch.nan), torch.zeros(1).long()),
        ("class_distances: embeddings[1]", torch.tensor([[1.0], [0]]), torch.zeros(2).long()),
        ("class_distances: class means[0]", torch.tensor([[1.0], [-1]]), torch.zeros(2).long()),
    ],
)
def test_what_has_no_direction_or_no_partner_is_refused(message, rows, labels):
    assert_refused(message, class_distances, rows, labels)
    hidden = class_distances(torch.tensor([[1.0], [0]]), torch.tensor([0, -1]))  # padding may be anything
    assert math.isnan(hidden.inner)
