"""Gray anchors: against the rule spelled as a loop; who is positive or negative never changes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import assert_refused, boxes, targets_of

from detkit.anchors import GRAY, IGNORED, NEGATIVE, GrayMatcher, TaskAlignedMatcher, ThresholdMatcher
from detkit.boxes import box_iou

BASE = {"positive_iou": 0.6, "negative_iou": 0.15, "low_quality": False}


def base(**settings) -> ThresholdMatcher:
    return ThresholdMatcher(**BASE | settings)


def slow_match(overlaps: torch.Tensor, plain: list[int], gray: tuple[float, float], touching: bool) -> list[int]:
    """``overlaps`` (objects, anchors), and what the matcher says that knows no gray."""
    lowest, highest = torch.tensor(gray).tolist()
    found = []
    for anchor, said in enumerate(plain):
        best = max((row[anchor] for row in overlaps.tolist()), default=0.0)
        if said == IGNORED and best > 0 and lowest <= best <= highest:
            found.append(GRAY)
        else:
            found.append(IGNORED if said == NEGATIVE and touching and best == 0 else said)
    return found


@given(
    objects=boxes(inverted=False, huge=0),
    anchors=boxes(most=9, huge=0),
    gray=st.sampled_from([(0.25, 0.49), (0.0, 1.0), (0.15, 0.15), (0.5, 0.6)]),
    touching=st.booleans(),
    low_quality=st.booleans(),
)
def test_it_says_what_the_loop_says(objects, anchors, gray, touching, low_quality):
    targets, matcher = targets_of(objects), base(low_quality=low_quality)
    plain = matcher(anchors, targets)
    found = GrayMatcher(matcher, gray=gray, negatives_touch=touching)(anchors, targets)
    expected = slow_match(box_iou(objects, anchors), plain.matched[0].tolist(), gray, touching)
    assert found.matched[0].tolist() == expected
    assert torch.equal(found.quality, plain.quality)


def strips(*shares: float) -> torch.Tensor:
    """Anchors whose IoU with the square [0, 0, 100, 100] is each of the ``shares``."""
    return torch.tensor([[0.0, 0, 100, 100 * share] for share in shares])


def test_the_bands_are_those_of_the_authors_code_with_both_ends_of_gray_inside():
    anchors = strips(0.61, 0.59, 0.5, 0.48, 0.26, 0.24, 0.16, 0.14)
    targets = targets_of(torch.tensor([[0.0, 0, 100, 100]]))
    found = GrayMatcher(base())(anchors, targets).matched[0].tolist()
    assert found == [0, IGNORED, IGNORED, GRAY, GRAY, IGNORED, IGNORED, NEGATIVE]
    ends = GrayMatcher(base(), gray=(0.25, 0.5))(strips(0.25, 0.5), targets).matched[0].tolist()
    assert ends == [GRAY, GRAY]


def test_the_best_anchor_of_an_object_is_not_forced():
    targets = targets_of(torch.tensor([[0.0, 0, 100, 100]]))
    assert GrayMatcher(base())(strips(0.3), targets).matched.tolist() == [[GRAY]]
    assert GrayMatcher(base(low_quality=True))(strips(0.3), targets).matched.tolist() == [[0]]


def test_a_crowd_makes_nothing_gray_and_an_object_in_it_stays_positive():
    rows = torch.tensor([[0.0, 0, 100, 100], [0, 0, 100, 100]])
    targets = targets_of(rows, iscrowd=[torch.tensor([0, 1])])
    assert GrayMatcher(base())(strips(0.9, 0.3), targets).matched.tolist() == [[0, IGNORED]]
    alone = targets_of(rows[:1], iscrowd=[torch.tensor([1])])
    assert GrayMatcher(base())(strips(0.9, 0.3), alone).matched.tolist() == [[IGNORED, IGNORED]]


@pytest.mark.parametrize(("touching", "said"), [(False, NEGATIVE), (True, IGNORED)])
def test_without_objects_all_is_background_or_where_it_must_touch_nothing(touching, said):
    matcher = GrayMatcher(base(), negatives_touch=touching)
    none = targets_of(torch.zeros(0, 4))
    assert matcher(strips(0.9, 0.3), none).matched.tolist() == [[said, said]]
    assert matcher(torch.zeros(0, 4), none).matched.shape == (1, 0)


def test_padding_and_objects_without_weight_make_nothing_gray():
    rows = torch.tensor([[0.0, 0, 100, 100]])
    both = targets_of(rows, torch.zeros(0, 4), weights=[torch.zeros(1), torch.zeros(0)])
    assert GrayMatcher(base())(strips(0.3), both).matched.tolist() == [[NEGATIVE], [NEGATIVE]]


def test_it_reads_predictions_where_its_matcher_does():
    assert not GrayMatcher(base()).reads_predictions
    assert GrayMatcher(TaskAlignedMatcher()).reads_predictions


@pytest.mark.parametrize("gray", [(0.5, 0.4), (0.5,), (0.1, 1.5)])
def test_bounds_that_make_no_sense_are_refused(gray):
    assert_refused("GrayMatcher: gray", GrayMatcher, base(), gray=gray)


def test_printing_shows_the_settings():
    assert "gray=(0.25, 0.49), negatives_touch=False" in repr(GrayMatcher(base()))
