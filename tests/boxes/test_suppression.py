"""The engine's ways, short, kernel and blocks, against each other and against the greedy loop."""

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from strategies import boxes, random_boxes

from detkit.boxes import box_iou, diou, distance_box_iou, iou
from detkit.boxes import suppression as module
from detkit.boxes.suppression import resolve, round_down, survivors


def scattered(count: int, *, objects: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    base = random_boxes(objects, seed=seed, extent=500)[torch.randint(objects, (count,), generator=generator)]
    sides = (base[:, 2:] - base[:, :2]).repeat(1, 2)
    moved = base + torch.randn(count, 4, generator=generator) * sides * 0.2
    return torch.cat((torch.minimum(moved[:, :2], moved[:, 2:]), torch.maximum(moved[:, :2], moved[:, 2:])), dim=1)


def kernel(rows: torch.Tensor, threshold: float) -> list[bool]:
    kept = torchvision.ops.nms(rows, torch.arange(len(rows), 0, -1).to(rows), threshold)
    return torch.zeros(len(rows), dtype=torch.bool).index_fill_(0, kept, True).tolist()


def greedy(rows: torch.Tensor, threshold: float, measure=distance_box_iou) -> list[bool]:
    measures = measure(rows, rows).tolist()
    keep: list[bool] = []
    for i in range(len(rows)):
        keep.append(all(measures[j][i] <= threshold for j in range(i) if keep[j]))
    return keep


@pytest.fixture
def tiny_blocks(monkeypatch):
    """Every way is taken by a few hundred rows."""
    for name, value in {"_SHORT": 4, "_LONG": 8, "_BLOCK": 16, "_LONGEST_BLOCK": 64, "_FEW": 3}.items():
        monkeypatch.setattr(module, name, value)


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.2, 0.45, 0.5, 0.6, 0.7, 0.95, 1.0])
@pytest.mark.parametrize("objects", [1, 5, 40, 400])
def test_one_long_segment_is_decided_as_by_the_kernel(tiny_blocks, objects, threshold):
    rows = scattered(400, objects=objects)
    assert survivors(rows, [400], threshold).tolist() == kernel(rows, threshold)


@pytest.mark.parametrize(("count", "objects"), [(3000, 100), (6000, 3000), (4000, 3)])
@pytest.mark.slow
def test_long_segments_with_the_real_constants_too(count, objects):
    rows = scattered(count, objects=objects)
    for threshold in (0.3, 0.5, 0.8):
        assert survivors(rows, [count], threshold).tolist() == kernel(rows, threshold)


@given(
    lengths=st.lists(st.sampled_from([0, 1, 2, 3, 5, 31, 64, 65, 130]), max_size=6),
    threshold=st.sampled_from([0.0, 0.3, 0.5, 0.7]),
)
def test_segments_never_meet(lengths, threshold):
    rows = scattered(sum(lengths), objects=3)
    expected = [kept for part in rows.split(lengths) for kept in kernel(part, threshold)] if lengths else []
    assert survivors(rows, lengths, threshold).tolist() == expected


@given(rows=boxes(most=9, inverted=False, huge=1e30), threshold=st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_hostile_boxes_survive_as_in_the_greedy_loop_on_every_way(rows, threshold):
    rows = rows[(rows.abs().amax(1) >= 1e-12) | (rows == 0).all(1)]  # box_iou reads unions below 1e-36 as empty
    expected = greedy(rows, threshold, box_iou)
    assert survivors(rows, [len(rows)], threshold).tolist() == expected
    assert survivors(torch.cat((rows, rows)), [len(rows)] * 2, threshold).tolist() == expected * 2


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.3, 0.5, 0.7])
def test_diou_suppresses_as_its_greedy_loop_on_every_way(tiny_blocks, threshold):
    for count, objects in ((3, 1), (12, 2), (300, 20)):
        rows = scattered(count, objects=objects)
        expected = greedy(rows, threshold)
        assert survivors(rows, [count], threshold, diou).tolist() == expected
        assert survivors(torch.cat((rows, rows)), [count] * 2, threshold, diou).tolist() == expected * 2


def test_diou_spares_what_lies_off_center():
    rows = torch.tensor([[0.0, 0, 10, 10], [4, 0, 14, 10], [0, 0, 10, 9]])
    between = (0.4286 + 0.3745) / 2  # IoU and DIoU of the first two
    assert survivors(rows[:2], [2], between).tolist() == [True, False]
    assert survivors(rows[:2], [2], between, diou).tolist() == [True, True]


@pytest.mark.slow
@pytest.mark.parametrize("measure", [iou, diou])
@pytest.mark.parametrize("most", [1, 50, 2000])
def test_blocks_with_too_many_pairs_are_decided_all_the_same(tiny_blocks, monkeypatch, measure, most):
    rows = torch.cat((scattered(100, objects=100), scattered(100, objects=1, seed=1) + 2000))
    for threshold in (0.1, 0.5):
        expected = survivors(rows, [200], threshold, measure)
        with monkeypatch.context() as patch:
            patch.setattr(module, "_MOST_PAIRS", most)
            assert torch.equal(survivors(rows, [200], threshold, measure), expected)


def test_rows_without_area_are_kept_and_suppress_nothing():
    rows = torch.tensor([[0.0, 0, 9, 9], [3, 3, 3, 9], [0, 0, 9, 8], [9, 9, 0, 0], [1e-30, 0, 2e-30, 1e-30]])
    assert survivors(rows, [5], 0.5).tolist() == [True, True, False, True, True]
    assert survivors(rows, [1, 4], 0.5).tolist() == [True] * 5
    assert survivors(rows[[3, 1]], [2], 0.0).tolist() == [True, True]


def test_boxes_too_large_for_float_areas_are_compared_as_bounded_ones():
    rows = torch.tensor([[0.0, 0, 1e30, 1e30], [0, 0, 1e30, 1e30], [-1e30, 0, 0, 1e30]])
    assert survivors(rows, [3], 0.5).tolist() == [True, False, True]


def test_a_chain_of_conflicts_is_settled_from_its_head():
    better, worse = torch.arange(9), torch.arange(1, 10)
    assert resolve(10, better, worse).tolist() == [True, False] * 5
    assert resolve(3, torch.tensor([0, 0, 1]), torch.tensor([1, 1, 2])).tolist() == [True, False, True]
    assert resolve(0, better[:0], worse[:0]).tolist() == []


@pytest.mark.parametrize("threshold", [0.45, 0.5, 0.6, 0.7, 1 / 3, 0.1])
def test_a_double_threshold_is_rounded_down_so_that_float_overlaps_compare_the_same(threshold):
    rounded = round_down(threshold, torch.float32)
    above = torch.tensor(rounded).nextafter(torch.tensor(2.0)).item()
    assert rounded <= threshold < above
    assert round_down(threshold, torch.float64) == threshold


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_nothing(threads):
    rows, before = scattered(1000, objects=40), torch.get_num_threads()
    lengths = [300, 100, 0, 1, 599]
    try:
        torch.set_num_threads(threads)
        found = survivors(rows, lengths, 0.5).tolist()
    finally:
        torch.set_num_threads(before)
    assert found == [kept for part in rows.split(lengths) for kept in kernel(part, 0.5)]


def test_nothing_in_gives_nothing_out():
    for lengths in ([], [0], [0, 0]):
        assert survivors(torch.zeros(0, 4), lengths, 0.5).tolist() == []


@pytest.mark.parametrize("shift", [0.2, 2.0])
@pytest.mark.parametrize("falling", [True, False])
def test_long_chains_are_settled_as_by_the_kernel(shift, falling):
    left = torch.arange(5000.0) * shift
    rows = torch.stack((left, torch.zeros(5000), left + 10, torch.full((5000,), 10.0)), dim=1)
    rows = rows if falling else rows.flip(0)
    assert survivors(rows, [5000], 0.5).tolist() == kernel(rows, 0.5)


def test_chains_longer_than_the_rounds_are_settled_row_by_row(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    better, worse = torch.randint(0, 60, (2, 90), generator=generator).sort(dim=0).values
    better, worse = better[better < worse], worse[better < worse]
    expected = resolve(60, better, worse)
    monkeypatch.setattr(module, "_ROUNDS", 0)
    assert torch.equal(resolve(60, better, worse), expected)
    assert not expected.all()


@pytest.mark.parametrize("threshold", [0.5, 0.95, 0.99, 0.999, 1.0])
def test_crowds_at_tight_thresholds_are_decided_as_by_the_kernel(threshold):
    rows = torch.tensor([100.0, 100, 200, 200]) + torch.rand(4000, 4, generator=torch.Generator().manual_seed(0)) * 8
    assert survivors(rows, [4000], threshold).tolist() == kernel(rows, threshold)


@pytest.mark.slow
@pytest.mark.parametrize("measure", [iou, diou])
def test_boxes_as_small_as_the_rounding_of_their_place_are_decided_at_once(measure):
    generator = torch.Generator().manual_seed(0)
    corner = 2.0**56 + torch.randint(0, 1000, (2100, 2), generator=generator).double() * 16
    rows = torch.cat((corner, corner + 16 * torch.randint(1, 3, (2100, 2), generator=generator)), dim=1)
    expected = kernel(rows, 0.9) if measure is iou else greedy(rows, 0.9)
    assert survivors(rows, [2100], 0.9, measure).tolist() == expected


@pytest.mark.parametrize("most", [1, 3, 20, 1000])
@pytest.mark.parametrize("measure", [iou, diou])
@pytest.mark.parametrize("objects", [2, 40, 400])
def test_where_few_are_wanted_the_first_of_each_segment_are_those_of_the_whole(tiny_blocks, objects, measure, most):
    rows, lengths = scattered(400, objects=objects), [3, 7, 190, 200]
    rows[::17, 2:] = rows[::17, :2]  # without area
    whole, few = (survivors(rows, lengths, 0.4, measure, wanted).split(lengths) for wanted in (None, most))
    for expected, found in zip(whole, few, strict=True):
        assert torch.equal(found.nonzero()[:most], expected.nonzero()[:most])


def test_where_few_are_wanted_the_kernel_does_not_see_the_rest(monkeypatch):
    lengths, run = [], torchvision.ops.nms
    monkeypatch.setattr(torchvision.ops, "nms", lambda rows, *rest: lengths.append(len(rows)) or run(rows, *rest))
    rows = torch.arange(1000.0)[:, None] * 10 + torch.tensor([0.0, 0, 9, 9])
    assert int(survivors(rows, [1000], 0.5, iou, 100).sum()) >= 100
    assert lengths == [150]


@pytest.mark.parametrize("pairs", [1, 50, 1 << 20])
def test_short_segments_are_decided_alike_however_many_pairs_are_looked_at_together(monkeypatch, pairs):
    monkeypatch.setattr(module, "_PAIRS_AT_ONCE", pairs)
    lengths = [64, 1, 2, 63, 30, 30, 10]
    rows = scattered(sum(lengths), objects=4)
    expected = [kept for part in rows.split(lengths) for kept in kernel(part, 0.5)]
    assert survivors(rows, lengths, 0.5).tolist() == expected
