"""Matching by kernels gives what the torch form gives: collected in the interpreter and on a GPU.

``device`` is where the kernels run: the fixture of the folder that collects this.
"""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import boxes, random_boxes, targets_of
from torch import Tensor, nn

from detkit.anchors.assigned import in_crowd
from detkit.anchors.threshold import ThresholdMatcher
from detkit.kernels import disabled
from detkit.kernels import threshold as kernel
from detkit.structures import Anchors, Targets

RULES = [
    {},
    {"low_quality": False},
    {"positive_iou": 0.7, "negative_iou": 0.3},
    {"positive_iou": 1.0, "negative_iou": 0.0},
    {"positive_iou": 0.0, "negative_iou": 0.0},
]


def moved(values: tuple, device: str) -> tuple:
    """A named tuple with all its tensors on the device."""
    return values._replace(
        **{name: value.to(device) for name, value in values._asdict().items() if isinstance(value, Tensor)}
    )


def assert_matches_as_torch(device: str, matcher: nn.Module, anchors: Tensor | Anchors, targets: Targets) -> Tensor:
    """The matcher on the device and, without kernels, on the CPU: the same matches and qualities, to the last bit."""
    with disabled():
        expected = matcher(anchors, targets)
    there = moved(anchors, device) if isinstance(anchors, Anchors) else anchors.to(device)
    found = matcher(there, moved(targets, device))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one.cpu(), other)
    return expected.matched


def crowded(images: int, count: int, *, seed: int = 0) -> Targets:
    """Objects, crowds, padding, and boxes that are NaN, infinite, empty or twice there."""
    rows = torch.stack([random_boxes(count, seed=seed + image) for image in range(images)])
    rows[:, 2::5] = rows[:, :1].clone().expand_as(rows[:, 2::5])
    rows[:, 3::7, 2] = rows[:, 3::7, 0].clone()
    rows[:, 4::9, 1], rows[:, 5::9] = torch.nan, torch.inf
    valid = torch.rand(images, count, generator=torch.Generator().manual_seed(seed)) < 0.8
    ignore = (torch.arange(count) % 6 == 1).expand(images, -1)
    return Targets(rows, torch.zeros_like(valid, dtype=torch.int64), valid, ignore)


@pytest.fixture(autouse=True, scope="module")
def few_programs(device) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if device == "cpu":
            patch.setattr(kernel, "ANCHORS", 1024)
        yield


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize(("count", "length"), [(1, 1), (5, 129), (19, 1025)])
def test_batches_match_as_in_torch(device, rule, count, length):
    anchors = random_boxes(length, seed=90)
    anchors[7::50, 2] = torch.nan
    for some in (anchors, torch.stack((anchors, anchors.flip(0)))):
        assert_matches_as_torch(device, ThresholdMatcher(**rule), some, crowded(2, count))


@given(anchors=boxes(most=12), objects=boxes(most=5), rule=st.sampled_from(RULES))
@settings(max_examples=12)
def test_hostile_boxes_match_as_in_torch(device, anchors, objects, rule):
    assert_matches_as_torch(device, ThresholdMatcher(**rule), anchors, targets_of(objects, objects[:1]))


def test_all_anchors_that_tie_for_an_object_are_forced(device):
    grid = torch.cartesian_prod(torch.arange(0.0, 640, 16), torch.arange(0.0, 640, 16))
    anchors, tiny = torch.cat((grid, grid + 16), dim=1), torch.tensor([[318.0, 318, 322, 322], [100, 100, 104, 104]])
    matched = assert_matches_as_torch(device, ThresholdMatcher(), anchors, targets_of(tiny))
    assert [(matched == row).sum().item() for row in (0, 1)] == [4, 1]


def test_without_objects_or_anchors_nothing_matches(device):
    for anchors in (random_boxes(40), torch.zeros(0, 4)):
        for objects in ([torch.zeros(0, 4)], [torch.zeros(0, 4), random_boxes(2)]):
            assert_matches_as_torch(device, ThresholdMatcher(), anchors, targets_of(*objects))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_boxes_of_other_types_match_as_in_torch(device, dtype):
    targets = crowded(2, 9)
    targets = targets._replace(boxes=targets.boxes.to(dtype))
    assert_matches_as_torch(device, ThresholdMatcher(), random_boxes(300).to(dtype), targets)
    assert_matches_as_torch(device, ThresholdMatcher(), random_boxes(300), targets)


def test_rows_that_do_not_lie_side_by_side_are_read_right(device):
    anchors, targets = random_boxes(200).repeat_interleave(2, 0).to(device), moved(crowded(2, 9), device)
    expected = ThresholdMatcher()(anchors[::2].contiguous(), targets)
    strided = targets._replace(boxes=targets.boxes.transpose(1, 2).contiguous().transpose(1, 2))
    found = ThresholdMatcher()(anchors[::2], strided)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_anchors_in_crowds_are_those_of_torch(device):
    anchors, targets = random_boxes(400, seed=7), crowded(2, 40)
    anchors[::9, 2] = torch.nan
    there = [values.to(device) for values in (anchors, targets.boxes, targets.ignore)]
    with disabled():
        expected = in_crowd(anchors, targets.boxes, targets.ignore)
    assert expected.any(1).all()
    assert torch.equal(in_crowd(*there).cpu(), expected)
