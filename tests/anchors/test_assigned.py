"""What an assignment means: labels, boxes and weights of each anchor, and which lie in a crowd."""

import pytest
import torch
from strategies import random_boxes, targets_of

from detkit.anchors import gather_assigned
from detkit.anchors.assigned import ignore_crowds, in_crowd, matched_overlaps, no_matches, threshold_labels
from detkit.structures import IGNORED, NEGATIVE, Assignment


def test_assigned_labels_boxes_weights_and_quality_are_those_of_the_object():
    objects = random_boxes(3)
    quality = torch.tensor([[0.7, 0, 0, 0.9]])
    assignment = Assignment(torch.tensor([[2, -1, -2, 0]]), quality)
    assigned = gather_assigned(assignment, targets_of(objects, weights=[torch.tensor([0.1, 0.2, 0.3])]))
    assert assigned.labels.tolist() == [[2, -1, -2, 0]]
    assert torch.equal(assigned.boxes[0, [0, 3]], objects[[2, 0]])
    torch.testing.assert_close(assigned.weights, torch.tensor([[0.3, 1, 1, 0.1]]))
    assert torch.equal(assigned.quality, quality)
    assert (gather_assigned(assignment, targets_of(objects)).weights == 1).all()


def test_every_image_is_assigned_its_own_objects():
    first, second = random_boxes(2, seed=1), random_boxes(3, seed=2)
    assignment = Assignment(torch.tensor([[1, -1], [2, 0]]), torch.ones(2, 2))
    weights = [torch.tensor([0.1, 0.2]), torch.tensor([0.3, 0.4, 0.5])]
    assigned = gather_assigned(assignment, targets_of(first, second, weights=weights))
    assert torch.equal(assigned.boxes[0, 0], first[1])
    assert torch.equal(assigned.boxes[1], second[[2, 0]])
    torch.testing.assert_close(assigned.weights, torch.tensor([[0.2, 1], [0.5, 0.3]]))


def test_labels_follow_the_thresholds():
    overlap = torch.tensor([0.5, 0.49, 0.4, 0.39, 0.0])
    labels = threshold_labels(overlap, torch.tensor([3, 4, 5, 6, 7]), 0.5, 0.4)
    assert labels.tolist() == [3, IGNORED, IGNORED, NEGATIVE, NEGATIVE]


def test_no_matches_are_negative_with_quality_zero():
    for anchors in (torch.zeros(5, 4), torch.zeros(2, 5, 4, dtype=torch.float64)):
        matched, quality = no_matches(torch.zeros(2, 3, 4, dtype=torch.float64), anchors)
        assert matched.tolist() == [[-1] * 5] * 2
        assert torch.equal(quality, torch.zeros(2, 5))
        assert quality.dtype == torch.float32


def test_the_overlap_of_a_match_is_that_with_its_object():
    overlaps = torch.tensor([[[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], [[0.7, 0.8, 0.9], [0.6, 0.5, 0.4]]])
    matched = torch.tensor([[1, -1, 0], [-2, 1, 0]])
    assert torch.equal(matched_overlaps(overlaps, matched), torch.tensor([[0.4, 0, 0.3], [0, 0.5, 0.9]]))


def test_only_negatives_become_ignored_in_a_crowd():
    anchors = torch.tensor([[1.0, 1, 2, 2], [1, 1, 2, 2], [1, 1, 2, 2], [20, 20, 22, 22]])
    matched = torch.tensor([[0, NEGATIVE, IGNORED, NEGATIVE]])
    region, crowd = torch.tensor([[[0.0, 0, 9, 9]]]), torch.tensor([[True]])
    assert ignore_crowds(matched, anchors, region, crowd).tolist() == [[0, IGNORED, IGNORED, NEGATIVE]]
    assert torch.equal(ignore_crowds(matched, anchors, region, ~crowd), matched)


def crowded(anchors: torch.Tensor, boxes: torch.Tensor, crowds: list[list[bool]]) -> list[list[bool]]:
    return in_crowd(anchors, boxes, torch.tensor(crowds)).tolist()


def test_anchors_with_more_than_half_their_area_in_a_crowd_are_ignored():
    region = torch.tensor([[[0.0, 0, 10, 10], [50, 50, 99, 99]]])
    anchors = torch.tensor([[5.0, 0, 15, 10], [4.9, 0, 14.9, 10], [60, 60, 70, 70], [2, 2, 2, 2], [9, 9, 1, 1]])
    assert crowded(anchors, region, [[True, False]]) == [[False, True, False, False, False]]
    assert crowded(anchors, region, [[False, True]]) == [[False, False, True, False, False]]
    assert crowded(anchors, region, [[True, True]]) == [[False, True, True, False, False]]
    assert crowded(anchors, region, [[False, False]]) == [[False] * 5]


@pytest.mark.parametrize("third", [1 / 3, 0.1, 0.7])
def test_exactly_half_is_not_enough_whatever_the_numbers_round_to(third):
    anchors = torch.tensor([[-third, -third, third, third]])
    assert crowded(anchors, torch.tensor([[[-9.0, -9, 0, 9]]]), [[True]]) == [[False]]
    assert crowded(anchors, torch.tensor([[[-9.0, -9, 1e-7, 9]]]), [[True]]) == [[True]]


def test_crowds_touch_their_own_image_only():
    boxes, anchors = torch.tensor([[[0.0, 0, 9, 9]], [[0, 0, 9, 9]]]), torch.tensor([[1.0, 1, 2, 2]])
    assert crowded(anchors, boxes, [[False], [True]]) == [[False], [True]]
    assert crowded(torch.stack((anchors, anchors + 20)), boxes, [[True], [True]]) == [[True], [False]]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_rows_that_are_not_finite_lie_in_no_crowd(bad):
    anchors = torch.tensor([[0, 0, bad, 5], [1, 1, 2, 2.0]])
    assert crowded(anchors, torch.tensor([[[0.0, 0, 9, 9]]]), [[True]]) == [[False, True]]
    assert crowded(anchors[1:], torch.tensor([[[0.0, 0, torch.nan, 9]]]), [[True]]) == [[False]]
