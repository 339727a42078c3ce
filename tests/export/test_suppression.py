"""Suppression in plain operators finds exactly what the operators find, whatever overlaps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detkit.boxes import multiclass_nms_padded, nms_padded
from detkit.export.suppression import plain_multiclass_nms_padded, plain_nms_padded


def crowd(batch: int, count: int, *, seed: int, side: int = 12) -> tuple[Tensor, Tensor]:
    """Boxes on a coarse grid, many of them equal, some without area, inverted or not finite; scores with ties."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.randint(0, side, (batch, count, 2), generator=generator)
    boxes = torch.cat((low, low + torch.randint(-1, 7, (batch, count, 2), generator=generator)), -1).float()
    scores = torch.randint(0, 9, (batch, count), generator=generator) / 8
    lots = torch.rand(batch, count, generator=generator)
    boxes = torch.where((lots < 0.05)[..., None], torch.inf, boxes)
    return boxes, torch.where(lots > 0.95, torch.nan, scores)


def chain(length: int) -> tuple[Tensor, Tensor]:
    """Each box is suppressed by the one before, if that survives: the fate of the last hangs on all."""
    left = torch.arange(length)[:, None] * torch.tensor([3.0, 0, 3, 0])
    return (left + torch.tensor([0.0, 0, 10, 10]))[None], torch.linspace(1, 0.1, length)[None]


def assert_equal(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@settings(deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 60),
    most=st.sampled_from([1, 3, 100]),
    threshold=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    measure=st.sampled_from(["iou", "diou"]),
    grouped=st.booleans(),
)
def test_the_plain_loop_is_the_operator(seed, count, most, threshold, measure, grouped):
    boxes, scores = crowd(2, count, seed=seed)
    groups = torch.arange(2 * count).view(2, count) % 3 if grouped else None
    valid = torch.arange(count).expand(2, -1) != 1
    expected = nms_padded(boxes, scores, threshold, groups=groups, valid=valid, max_detections=most, measure=measure)
    found = plain_nms_padded(boxes, scores, threshold, groups, valid, most, measure, loops=False)
    assert_equal(found, expected)


@pytest.mark.parametrize("loops", [False, True])
def test_a_chain_of_any_length_is_followed_to_its_end(loops):
    boxes, scores = chain(101)
    found, filled = plain_nms_padded(boxes, scores, 0.5, None, None, 60, "iou", loops=loops)
    assert_equal((found, filled), nms_padded(boxes, scores, 0.5, max_detections=60))
    assert found[0, :51].tolist() == list(range(0, 101, 2))
    assert filled.sum() == 51


@settings(deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 30),
    most=st.sampled_from([1, 4, 100]),
    per_class=st.sampled_from([None, 1, 5, 50]),
    own_boxes=st.booleans(),
)
def test_the_plain_form_of_classes_is_the_operator(seed, count, most, per_class, own_boxes):
    boxes, scores = crowd(2, count * 3, seed=seed)
    boxes = boxes.view(2, count, 3, 4) if own_boxes else boxes[:, :count]
    scores = scores.view(2, count, 3)
    rows, labels, valid = multiclass_nms_padded(
        boxes, scores, 0.4, score_threshold=0.2, candidates_per_class=per_class, max_detections=most
    )
    found = plain_multiclass_nms_padded(boxes, scores, 0.4, 0.2, per_class, most, "iou", loops=False)
    assert_equal(found, (rows * 3 + labels, valid))


def test_of_more_candidates_the_best_are_looked_at():
    boxes, scores = crowd(2, 40, seed=3, side=2)
    scores = scores.nan_to_num()[..., None].expand(-1, -1, 2)
    best = scores.flatten(1).sort(dim=1, descending=True, stable=True).indices[:, :10]
    least = torch.full_like(scores, -1.0).flatten(1).scatter(1, best, scores.flatten(1).gather(1, best))
    rows, labels, valid = multiclass_nms_padded(
        boxes, least.view_as(scores), 0.4, score_threshold=0.0, max_detections=20
    )
    found = plain_multiclass_nms_padded(boxes, scores, 0.4, 0.0, None, 20, "iou", candidates=10, loops=False)
    width = found[0].shape[1]
    assert_equal(found, ((rows * 2 + labels)[:, :width], valid[:, :width]))
    assert 0 < valid.sum() < 20


def test_half_precision_is_promoted():
    boxes, scores = crowd(1, 20, seed=5)
    boxes, scores = boxes.half(), scores.nan_to_num().half()
    expected = nms_padded(boxes, scores, 0.5, max_detections=7)
    assert_equal(plain_nms_padded(boxes, scores, 0.5, None, None, 7, "iou", loops=False), expected)
