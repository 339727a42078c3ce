"""Near pairs: none that overlaps enough is missed, and few others come along."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import boxes, random_boxes

from detkit.boxes import box_iou, sides_of
from detkit.boxes import near as module
from detkit.boxes.near import near_pairs

THRESHOLDS = [0.2, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0]


def missed(rows: torch.Tensor, others: torch.Tensor, threshold: float) -> list[tuple[int, int]]:
    """Pairs above the threshold that near_pairs does not name."""
    first, second = near_pairs(sides_of(rows), sides_of(others), threshold)
    named = set(zip(first.tolist(), second.tolist(), strict=True))
    return [pair for pair in map(tuple, (box_iou(rows, others) > threshold).nonzero().tolist()) if pair not in named]


def with_area(rows: torch.Tensor) -> torch.Tensor:
    sides = sides_of(rows)
    return rows[sides.area > 1e-30]


def jittered(count: int, *, seed: int, spread: float) -> torch.Tensor:
    """Every box a little beside one of few others, so that IoUs of every size occur."""
    generator = torch.Generator().manual_seed(seed)
    base = random_boxes(40, seed=seed)[torch.arange(count) % 40]
    sides = (base[:, 2:] - base[:, :2]).repeat(1, 2)
    return base + torch.randn(count, 4, generator=generator) * sides * spread


@given(rows=boxes(most=10, inverted=False, huge=1e15), threshold=st.sampled_from(THRESHOLDS))
def test_hostile_boxes_miss_no_pair(rows, threshold):
    rows = with_area(rows)
    assert missed(rows, rows.clone(), threshold) == []
    assert missed(rows.double(), rows.double().clone(), threshold) == []


@pytest.mark.slow
@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("spread", [0.01, 0.05, 0.2])
def test_boxes_beside_each_other_miss_no_pair(threshold, spread):
    rows = with_area(jittered(600, seed=1, spread=spread))
    others = with_area(jittered(500, seed=1, spread=spread / 2))
    assert missed(rows, others, threshold) == []


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.75])
def test_pairs_at_the_very_edge_are_found(threshold, scale):
    """One box half as wide, or shifted just so far that the IoU is hardly above the threshold."""
    for k in range(-40, 41):
        side = scale * 1.1**k
        slack = 1 - 1e-4
        shift = side * (1 - threshold) / (1 + threshold) * slack
        inner = side * (threshold + (1 - threshold) * 1e-4)
        one = torch.tensor([[0.3, 0.7, 0.3 + side, 0.7 + side]], dtype=torch.float64)
        others = torch.tensor(
            [[0.3 + shift, 0.7, 0.3 + shift + side, 0.7 + side], [0.3, 0.7 - shift, 0.3 + side, 0.7 - shift + side],
             [0.3, 0.7, 0.3 + inner, 0.7 + side], [0.3 + side - inner, 0.7, 0.3 + side, 0.7 + side],
             [0.3, 0.7, 0.3 + side, 0.7 + inner], [0.3, 0.7 + side - inner, 0.3 + side, 0.7 + side]],
            dtype=torch.float64,
        )  # fmt: skip
        assert (box_iou(one, others) > threshold).all()
        assert missed(one, others, threshold) == []
        assert missed(others, one, threshold) == []


def test_a_set_with_itself_names_each_pair_in_one_order_at_least():
    rows = with_area(jittered(400, seed=2, spread=0.1))
    sides = sides_of(rows)
    first, second = near_pairs(sides, sides, 0.5)
    named = {frozenset(pair) for pair in zip(first.tolist(), second.tolist(), strict=True)}
    above = (box_iou(rows, rows) > 0.5).triu(1).nonzero().tolist()
    assert len(above) > 100
    assert all(frozenset(pair) in named for pair in above)


def test_few_pairs_come_that_are_far_apart():
    rows = random_boxes(4000, extent=4000)
    rows[:, 2:] = rows[:, :2] + 30 + torch.rand(4000, 2, generator=torch.Generator().manual_seed(1)) * 30
    first, _ = near_pairs(sides_of(rows), sides_of(rows.clone()), 0.5)
    assert len(first) < 20 * 4000  # of 4,000 for each


def test_more_pairs_than_allowed_are_not_made():
    rows = sides_of(random_boxes(1).repeat(100, 1))
    assert near_pairs(rows, sides_of(random_boxes(1).repeat(100, 1)), 0.5, most=9_999) is None
    assert len(near_pairs(rows, sides_of(random_boxes(1).repeat(100, 1)), 0.5, most=10_000)[0]) == 10_000


def test_nothing_is_near_nothing():
    some, none = sides_of(random_boxes(3)), sides_of(torch.zeros(0, 4))
    for pair in ((some, none), (none, some), (none, none)):
        assert [len(side) for side in near_pairs(*pair, 0.5)] == [0, 0]


@pytest.mark.parametrize("slots", [1, 2, 64])
def test_the_size_of_the_table_changes_no_answer(monkeypatch, slots):
    monkeypatch.setattr(module, "_SLOTS", slots)
    rows = with_area(jittered(300, seed=3, spread=0.1))
    assert missed(rows, rows.clone(), 0.5) == []


def test_sizes_of_every_magnitude_in_one_set_miss_no_pair():
    scales = 10.0 ** torch.arange(-9, 10)
    rows = torch.cat([with_area(jittered(60, seed=4, spread=0.1)) * scale for scale in scales])
    assert missed(rows, rows.clone(), 0.4) == []
