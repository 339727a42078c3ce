"""Suppression by intersection over the smaller area against the plain greedy loop."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import assert_refused, boxes, crowd, drawn

from detkit.tricks.by_smaller import nms_by_smaller


def greedy(rows, scores, groups, threshold):
    """Every box against every better survivor of its group, in Python floats."""
    kept = []
    for i in sorted(range(len(rows)), key=lambda i: (-scores[i], i)):
        if all(groups[i] != groups[k] or covered(rows[i], rows[k]) <= threshold for k in kept):
            kept.append(i)
    return kept


def covered(one, other):
    (a1, b1, a2, b2), (c1, d1, c2, d2) = one, other
    least = min((a2 - a1) * (b2 - b1), (c2 - c1) * (d2 - d1))
    shared = max(min(a2, c2) - max(a1, c1), 0) * max(min(b2, d2) - max(b1, d1), 0)
    return shared / least if least > 0 else 0.0


@given(st.data(), boxes(most=8, inverted=False, huge=0), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_survivors_are_those_of_the_greedy_loop(data, rows, threshold):
    rows = rows.double()
    scores, groups = drawn(data, rows)
    expected = greedy(rows.tolist(), scores.tolist(), groups.tolist(), threshold)
    assert nms_by_smaller(rows, scores, groups, threshold).tolist() == expected


@pytest.mark.parametrize("ties", [False, True])
def test_survivors_of_a_crowd_are_those_of_the_greedy_loop(ties):
    rows, scores, groups = crowd(200, seed=3, ties=ties)
    expected = greedy(rows.tolist(), scores.tolist(), groups.tolist(), 0.6)
    assert nms_by_smaller(rows, scores, groups, 0.6).tolist() == expected
    assert 3 < len(expected) < 150


def test_numbers_that_are_not_finite_are_refused_by_name():
    rows, groups = torch.tensor([[0.0, 0, 1, 1], [0, 0, float("nan"), 1]]), torch.zeros(2).long()
    assert_refused("NMSFusion: boxes[1, 2] finite", nms_by_smaller, rows, torch.ones(2), groups, 0.5)
    scores = torch.tensor([1.0, float("inf")])
    assert_refused("NMSFusion: scores[1]", nms_by_smaller, rows[:1].repeat(2, 1), scores, groups, 0.5)
