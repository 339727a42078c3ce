"""Suppression by kernels gives what the torch form gives: collected in the interpreter and on a GPU.

``device`` is where the kernels run: the fixture of the folder that collects this.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import boxes, random_boxes
from torch import Tensor

from detkit.boxes import batched_nms, multiclass_nms_padded, nms, nms_padded
from detkit.boxes.measures import coordinate_limit, diou, iou, smallest_union
from detkit.boxes.suppression import round_down, survivors
from detkit.kernels import disabled
from detkit.kernels import nms as kernel

COUNTS = (0, 1, 2, 32, 33, 65, 150)
HALF = (torch.float16, torch.bfloat16)
MEASURES = {"iou": iou, "diou": diou}


@pytest.fixture
def sizes(monkeypatch) -> None:
    """Blocks and tiles so small that few rows fill several of them, and programs that take several tiles."""
    monkeypatch.setattr(kernel, "BLOCK", 64)
    monkeypatch.setattr(kernel, "TILE", 32)
    monkeypatch.setattr(kernel, "_PROGRAMS", 3)


def crowd(count: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Boxes near each other, some of them twice, inverted or without area, and scores with many ties."""
    generator = torch.Generator().manual_seed(seed)
    rows = random_boxes(count // 8 + 1, seed=seed).repeat(8, 1)[:count]
    rows = rows + torch.rand(count, 4, generator=generator) * 3
    rows[3::7] = rows[:1].clone().expand_as(rows[3::7])
    rows[5::11, 2] = rows[5::11, 0].clone()
    return rows, torch.randint(0, 12, (count,), generator=generator) / 12


def assert_equal_to_torch(device: str, function, *arguments, **settings) -> object:
    """``function`` of the arguments on the device and, without kernels, on the CPU: the same, to the last bit."""
    with disabled():
        expected = function(*arguments, **settings)
    moved = [value.to(device) if isinstance(value, Tensor) else value for value in arguments]
    named = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in settings.items()}
    found = function(*moved, **named)
    pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
    for one, other in pairs:
        assert one.dtype == other.dtype
        assert torch.equal(one.cpu(), other)
    return expected


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("count", COUNTS)
def test_one_set_survives_as_in_torch(device, sizes, count, measure):
    rows, scores = crowd(count)
    rows = torch.cat((torch.minimum(rows[:, :2], rows[:, 2:]), torch.maximum(rows[:, :2], rows[:, 2:])), dim=1)
    for threshold in (0.0, 0.45):
        assert_equal_to_torch(device, nms, rows, scores, threshold, measure=measure)


def test_an_iou_of_just_the_threshold_does_not_suppress(device):
    rows = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 4], [20, 0, 28, 8], [20, 0, 28, 5]])
    kept = assert_equal_to_torch(device, nms, rows, torch.tensor([0.9, 0.8, 0.7, 0.6]), 0.5)
    assert kept.tolist() == [0, 1, 2]


@pytest.mark.parametrize("count", [1025, 4097])
def test_a_long_set_survives_as_in_torch(device, monkeypatch, count):
    if device == "cpu":
        monkeypatch.setattr(kernel, "TILE", 512)  # the interpreter is fast with few large tiles only
    rows, scores = random_boxes(count, extent=1000.0), torch.rand(count, generator=torch.Generator().manual_seed(3))
    assert len(assert_equal_to_torch(device, nms, rows, scores, 0.3)) > count // 9


@pytest.mark.parametrize("measure", MEASURES)
def test_segments_of_every_length_survive_as_in_torch(device, sizes, measure):
    lengths = [0, 1, 1, 40, 0, 64, 65, 2, 130, 1, 0, 3]
    rows, _ = crowd(sum(lengths))
    counts = torch.tensor(lengths)
    owners = torch.arange(len(lengths)).repeat_interleave(counts)
    segments = kernel.Segments(
        *(values.to(device) for values in (counts.cumsum(0) - counts, counts, owners)), longest=140
    )
    dtype = rows.dtype
    rule = kernel.Rule(
        round_down(0.4, dtype), measure == "diou", coordinate_limit(dtype), smallest_union(dtype), len(rows)
    )
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    found = kernel.surviving_rows(rows[order].to(device), order.argsort().to(device), segments, rule)
    assert torch.equal(found.cpu(), survivors(rows, lengths, 0.4, MEASURES[measure]))


@given(
    data=st.data(),
    rows=boxes(most=10, inverted=False, huge=1e30),
    threshold=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    measure=st.sampled_from(sorted(MEASURES)),
)
@settings(max_examples=15)
def test_hostile_boxes_survive_as_in_torch(device, data, rows, threshold, measure):
    count = len(rows)
    scores = torch.tensor(data.draw(st.lists(st.sampled_from([0.0, -0.0, 0.5, 1.0]), min_size=count, max_size=count)))
    groups = torch.tensor(data.draw(st.lists(st.integers(-2, 2), min_size=count, max_size=count))).long()
    assert_equal_to_torch(device, nms, rows, scores, threshold, measure=measure)
    assert_equal_to_torch(device, batched_nms, rows, scores, groups, threshold, measure=measure)


@pytest.mark.parametrize("measure", MEASURES)
def test_boxes_with_hardly_an_area_do_not_take_part(device, measure):
    rows = torch.tensor(
        [[0.0, 0, 8e-19, 8e-19], [0, 0, 1.4e-18, 1.4e-18], [0, 0, 1.4e-18, 1.3e-18], [0, 0, 8e-19, 8e-19]]
    )
    kept = assert_equal_to_torch(device, nms, rows, torch.tensor([0.9, 0.8, 0.7, 0.6]), 0.2, measure=measure)
    assert kept.tolist() == [0, 1, 3]


@pytest.mark.parametrize(("threshold", "kept"), [(0.6, [0]), (0.7, [0, 1]), (0.45, [0, 1])])
def test_an_iou_that_float32_rounds_to_the_threshold_is_compared_with_the_number_that_was_given(
    device, threshold, kept
):
    part = torch.tensor([[0.0, 0, 100, 1], [0, 0, round(threshold * 100), 1]]).to(device)
    assert nms(part, torch.tensor([0.9, 0.8]).to(device), threshold).tolist() == kept


@pytest.mark.parametrize("count", COUNTS)
def test_groups_are_suppressed_apart_as_in_torch(device, sizes, count):
    rows, scores = crowd(count, seed=count)
    rows[:, 2:] = rows[:, :2] + 20
    for groups in (torch.arange(count) % 3, torch.arange(count) // 64 * -(2**40)):
        assert_equal_to_torch(device, batched_nms, rows, scores, groups, 0.5)


@pytest.mark.parametrize("bad", [torch.nan, -torch.inf])
def test_rows_that_are_not_finite_are_refused_or_dropped(device, sizes, bad):
    rows, scores = crowd(50)
    rows[:, 2:] = rows[:, :2] + 20
    rows[7, 2], scores[40] = bad, bad
    assert_equal_to_torch(device, nms, rows, scores, 0.5, nonfinite="drop")
    assert_equal_to_torch(device, batched_nms, rows, scores, torch.arange(50) % 4, 0.5, nonfinite="drop")
    finite = torch.where(rows.isfinite(), rows, rows[7, 0] + 20)
    with pytest.raises(ValueError, match=rf"^nms: boxes\[7, 2\]={bad:g}.*1.*200"):
        nms(rows.to(device), scores.to(device), 0.5)
    with pytest.raises(ValueError, match=rf"^batched_nms: scores\[40\]={bad:g}"):
        batched_nms(finite.to(device), scores.to(device), torch.arange(50).to(device), 0.5)


def test_an_inverted_box_is_named(device):
    with pytest.raises(ValueError, match=r"nms: boxes\[1\]: x2 < x1 \(0 < 10\); 1 box is inverted"):
        nms(torch.tensor([[0.0, 0, 1, 1], [10, 0, 0, 10]]).to(device), torch.ones(2).to(device), 0.5)


def batch(images: int, count: int, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Boxes (B, N, 4) and scores (B, N, C), some of each not finite."""
    rows, scores = zip(*(crowd(count * classes, seed=seed) for seed in range(images)), strict=True)
    rows, scores = torch.stack(rows)[:, :count], torch.stack(scores).view(images, count, classes)
    rows[:, 4::13, 1], scores[:, 6::17, 0] = torch.nan, torch.inf
    return rows, scores


@pytest.mark.parametrize(
    ("dtype", "most"),
    [*((torch.float32, most) for most in (1, 5, 500)), *((dtype, 40) for dtype in HALF), (torch.float64, 40)],
)
def test_padded_batches_keep_what_torch_keeps(device, sizes, dtype, most):
    rows, scores = (values.to(dtype) for values in batch(3, 100))
    groups, valid = torch.arange(100) % 4 - 1, torch.arange(100) % 9 > 0
    ways = (
        {"groups": groups.expand(3, -1), "valid": valid.expand(3, -1)},
        {"valid": torch.stack((valid, ~valid, valid & False)), "measure": "diou"},
        {"groups": groups.to(torch.uint8).expand(3, -1)},
    )
    for options in ways if dtype == torch.float32 else ways[:1]:
        assert_equal_to_torch(device, nms_padded, rows, scores[..., 1], 0.4, max_detections=most, **options)


@pytest.mark.parametrize(("images", "count"), [(0, 5), (2, 0), (1, 1), (2, 3)])
def test_small_and_empty_batches_keep_what_torch_keeps(device, images, count):
    rows, scores = torch.rand(images, count, 4).cumsum(-1), torch.rand(images, count, 2)
    assert_equal_to_torch(device, nms_padded, rows, scores[..., 0], 0.5, max_detections=4)
    options = {"score_threshold": 0.1, "max_detections": 4}
    assert_equal_to_torch(device, multiclass_nms_padded, rows, scores, 0.5, **options)
    assert_equal_to_torch(device, multiclass_nms_padded, rows, scores[..., :0], 0.5, **options)


@pytest.mark.parametrize(
    ("dtype", "most", "candidates"),
    [
        *((torch.float32, *limits) for limits in ((1, None), (30, 5), (400, None))),
        *((dtype, 30, 70) for dtype in (*HALF, torch.float64)),
    ],
)
def test_the_best_pairs_are_those_of_torch(device, sizes, dtype, most, candidates):
    rows, scores = (values.to(dtype) for values in batch(2, 100))
    own = torch.stack((rows, rows + 2, rows - 2), dim=2)
    settings = {"score_threshold": 0.3, "candidates_per_class": candidates, "max_detections": most}
    assert_equal_to_torch(device, multiclass_nms_padded, own, scores, 0.4, **settings)
    if dtype == torch.float32:
        assert_equal_to_torch(device, multiclass_nms_padded, rows, scores, 0.4, measure="diou", **settings)
        same = rows[:, :, None].expand(-1, -1, 3, -1)
        assert_equal_to_torch(device, multiclass_nms_padded, same, scores, 0.4, **settings)


def test_rows_that_do_not_lie_side_by_side_are_read_right(device, sizes):
    rows, scores = batch(2, 80)
    strided, transposed = rows.repeat_interleave(2, 1), scores.transpose(1, 2).contiguous().transpose(1, 2)
    settings = {"score_threshold": 0.2, "max_detections": 50}
    assert_equal_to_torch(device, multiclass_nms_padded, strided.to(device)[:, ::2].cpu(), transposed, 0.4, **settings)
    found = nms_padded(strided.to(device)[:, ::2], scores.to(device)[..., 1], 0.4, max_detections=50)
    expected = assert_equal_to_torch(device, nms_padded, rows, scores[..., 1].contiguous(), 0.4, max_detections=50)
    assert all(torch.equal(one.cpu(), other) for one, other in zip(found, expected, strict=True))


def test_what_is_ranked_at_once_is_bounded(device, monkeypatch):
    from detkit.boxes import segments

    rows, scores = batch(3, 40)
    monkeypatch.setattr(segments, "_MOST_PAIRS", 200)
    assert_equal_to_torch(device, multiclass_nms_padded, rows, scores, 0.4, score_threshold=0.2, max_detections=50)
