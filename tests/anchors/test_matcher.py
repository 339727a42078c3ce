"""All matchers have one call; and what they are given is read, and refused, in one way."""

import pytest
import torch
from strategies import assert_refused, random_boxes, targets_of, unhooked

from detkit.anchors import (
    ATSSMatcher,
    BipartiteMatcher,
    CenterMatcher,
    HungarianMatcher,
    SimOTAMatcher,
    TaskAlignedMatcher,
    ThresholdMatcher,
)
from detkit.anchors.matcher import check_rows, read_boxes, read_predictions
from detkit.structures import Anchors, Predictions, Targets

BLIND = [ThresholdMatcher(), BipartiteMatcher(), ATSSMatcher(), CenterMatcher()]
SEEING = [TaskAlignedMatcher(), SimOTAMatcher(), HungarianMatcher()]


def scene() -> tuple[Anchors, Targets, Predictions]:
    """Cells of two grids of 4 x 4 and 2 x 2 over one unit square, two images, and predictions of the cells."""
    steps = torch.arange(4) / 4
    fine = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).reshape(-1, 2)
    fine = torch.cat((fine, fine + 0.25), 1)
    boxes = torch.cat((fine, 2 * fine[[0, 1, 4, 5]]))
    anchors = Anchors(boxes, boxes[:, 2:] - boxes[:, :2], (16, 4))
    targets = targets_of(torch.tensor([[0.0, 0, 0.5, 0.5], [0.5, 0.5, 0.75, 0.8]]), torch.tensor([[0.1, 0.1, 0.9, 1]]))
    logits = torch.randn(2, 20, 3, generator=torch.Generator().manual_seed(0))
    return anchors, targets, Predictions(boxes.repeat(2, 1, 1), logits.sigmoid(), logits)


@pytest.mark.parametrize("matcher", [*BLIND, *SEEING], ids=str)
def test_every_matcher_is_called_with_anchors_targets_and_predictions(matcher):
    anchors, targets, predictions = scene()
    assignment = matcher(anchors, targets, predictions)
    assert assignment.matched.shape == assignment.quality.shape == (2, 20)
    assert ((assignment.matched >= 0).any(1)).all()
    again = matcher(anchors=anchors, targets=targets, predictions=predictions)
    assert torch.equal(again.matched, assignment.matched)


@pytest.mark.parametrize("matcher", BLIND, ids=str)
def test_a_matcher_that_reads_no_predictions_does_without_them(matcher):
    anchors, targets, predictions = scene()
    assert not matcher.reads_predictions
    found, expected = matcher(anchors, targets), matcher(anchors, targets, predictions)
    assert torch.equal(found.matched, expected.matched)
    assert torch.equal(found.quality, expected.quality)


@pytest.mark.parametrize("matcher", SEEING, ids=str)
def test_a_matcher_that_reads_predictions_says_so_and_refuses_to_do_without(matcher):
    anchors, targets, _ = scene()
    assert matcher.reads_predictions
    with pytest.raises(ValueError, match=rf"^{type(matcher).__name__}: .*matcher\(anchors, targets, Predictions\("):
        matcher(anchors, targets)


@pytest.mark.parametrize("matcher", [ThresholdMatcher(), BipartiteMatcher(), CenterMatcher()], ids=str)
def test_plain_boxes_do_as_well_as_anchors(matcher):
    anchors, targets, _ = scene()
    assert torch.equal(matcher(anchors.boxes, targets).matched, matcher(anchors, targets).matched)


@pytest.mark.parametrize("matcher", [ThresholdMatcher, BipartiteMatcher])
@pytest.mark.parametrize(
    ("message", "thresholds"),
    [
        ("positive_iou=1.5 [0, 1]", {"positive_iou": 1.5}),
        ("negative_iou=-0.1 [0, 1]", {"negative_iou": -0.1}),
        ("negative_iou=0.6 positive_iou=0.5", {"negative_iou": 0.6}),
    ],
)
def test_thresholds_that_make_no_sense_are_refused(matcher, message, thresholds):
    assert_refused(f"{matcher.__name__}: {message}", matcher, **thresholds)


@pytest.mark.parametrize("field", ["scores", "logits"])
def test_missing_predictions_are_named_with_the_repair(field):
    for missing in (None, Predictions(torch.zeros(1, 2, 4)), torch.zeros(1, 2, 4)):
        assert_refused(f"Some: Predictions(boxes, {field}={field})", read_predictions, "Some", missing, field)
    given = Predictions(torch.ones(1, 2, 4), torch.zeros(1, 2, 3), torch.zeros(1, 2, 4))
    boxes, values = read_predictions("Some", given, field)
    assert boxes is given.boxes
    assert values is getattr(given, field)


def test_shapes_that_do_not_fit_are_named():
    targets = targets_of(random_boxes(2), random_boxes(1))
    assert_refused("Some: anchors (3, 5) (..., 4)", read_boxes, "Some", torch.zeros(3, 5), targets)
    for shape in ((4,), (3, 7, 4), (1, 7, 4), (1, 2, 7, 4)):
        for anchors in (torch.zeros(shape), Anchors(torch.zeros(shape), torch.zeros(shape)[..., :2], (1,))):
            assert_refused(
                f"Some: anchors {shape} (N, 4) (2, N, 4)",
                read_boxes,
                "Some",
                anchors,
                targets,
            )
    wrong = targets._replace(boxes=targets.boxes[..., :3])
    assert_refused("Some: targets.boxes (2, 2, 3) (..., 4)", read_boxes, "Some", random_boxes(1), wrong)


def test_targets_without_a_row_are_refused():
    empty = Targets(*(torch.zeros(2, 0, *rest) for rest in ((4,), (), (), ())))
    message = "Some: targets 0 rows 1 pad_targets"
    assert_refused(message, unhooked(check_rows), "Some", empty)
    assert_refused(message, read_boxes, "Some", random_boxes(2), empty)


def test_boxes_are_promoted_and_rows_that_are_not_finite_become_nan():
    targets = targets_of(torch.tensor([[0.0, 0, 1, 1], [0, torch.inf, 1, 1]]))
    boxes, read = read_boxes("Some", torch.tensor([[0.0, 0, 8, 4], [0, 0, torch.nan, 4]]).half(), targets)
    assert boxes.dtype == torch.float32
    assert boxes.isnan().tolist() == [[False] * 4, [True] * 4]
    assert read.boxes.isnan().tolist() == [[[False] * 4, [True] * 4]]


def test_an_empty_list_of_anchors_is_none():
    assert read_boxes("Some", torch.zeros(0), targets_of(random_boxes(1)))[0].shape == (0, 4)


@pytest.mark.parametrize("matcher", [*BLIND, *SEEING[:2]], ids=str)
def test_no_anchors_and_no_predictions_of_them_give_an_empty_assignment(matcher):
    predictions = Predictions(torch.zeros(1, 0, 4), torch.zeros(1, 0, 3))
    for anchors in (torch.zeros(0), torch.zeros(0, 4), Anchors(torch.zeros(0, 4), torch.zeros(0, 2), ())):
        found = unhooked(type(matcher).forward)(matcher, anchors, targets_of(random_boxes(1)), predictions)
        assert found.matched.shape == (1, 0)
