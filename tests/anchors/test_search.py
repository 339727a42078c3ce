"""The parts that matchers share: images in groups, the best object of an anchor, pieces of the matrix."""

import pytest
import torch
from strategies import random_boxes

from detkit.anchors import search as module
from detkit.anchors.search import (
    best_fit,
    image_groups,
    masked_overlaps,
    matrix_pieces,
    no_matches,
    threshold_labels,
    worth_searching,
)
from detkit.boxes import box_iou
from detkit.structures import IGNORED, NEGATIVE


@pytest.mark.parametrize(
    ("most", "expected"), [(1, [(0, 1), (1, 3), (3, 4)]), (3, [(0, 3), (3, 5)]), (4, [(0, 3), (3, 5)]), (99, [(0, 5)])]
)
def test_groups_hold_consecutive_images_and_all_their_objects(monkeypatch, most, expected):
    monkeypatch.setattr(module, "_OBJECTS_TOGETHER", most)
    objects = torch.zeros(5, 4).bool()
    objects[0, :2] = objects[2, 1:3] = objects[3, 0] = True
    boxes = random_boxes(20).view(5, 4, 4)
    groups = list(image_groups(boxes, objects))
    assert [(group.images.start, group.images.stop) for group in groups] == expected
    found = [(g.images.start + i, row) for g in groups for i, row in zip(g.image.tolist(), g.row.tolist(), strict=True)]
    assert found == [(0, 0), (0, 1), (2, 1), (2, 2), (3, 0)]
    assert torch.equal(torch.cat([group.sides.x2 for group in groups]), boxes[objects][:, 2])


def test_images_without_objects_are_in_no_group():
    assert list(image_groups(torch.zeros(3, 2, 4), torch.zeros(3, 2).bool())) == []


def test_an_anchor_fits_the_object_with_the_highest_overlap_then_the_lower_row():
    cells, rows = torch.tensor([0, 0, 0, 3, 3, 5]), torch.tensor([4, 2, 7, 1, 0, 9])
    overlaps = torch.tensor([0.5, 0.5, 0.4, 0.1, 0.2, 1e-30])
    fit = best_fit(cells, rows, overlaps, torch.full((6,), -1))
    assert fit.row.tolist() == [2, 2, 2, 0, 0, 9]
    assert torch.equal(fit.overlap, overlaps[[0, 0, 0, 4, 4, 5]])


def test_labels_follow_the_thresholds():
    overlap = torch.tensor([0.5, 0.49, 0.4, 0.39, 0.0])
    labels = threshold_labels(torch.tensor([3, 4, 5, 6, 7]), overlap, 0.5, 0.4)
    assert labels.tolist() == [3, IGNORED, IGNORED, NEGATIVE, NEGATIVE]


def test_rows_that_are_no_objects_overlap_less_than_nothing():
    boxes, anchors = random_boxes(6).view(2, 3, 4), random_boxes(5, seed=1)
    objects = torch.tensor([[True, False, True], [False, False, True]])
    overlaps = masked_overlaps(boxes, objects, anchors)
    assert torch.equal(overlaps[objects], box_iou(boxes, anchors)[objects])
    assert (overlaps[~objects] == -1).all()


@pytest.mark.parametrize(("most", "lengths"), [(100, [10]), (60, [10]), (59, [9, 1]), (24, [4, 4, 2]), (1, [1] * 10)])
def test_pieces_of_the_matrix_stay_small_and_cover_all_anchors(monkeypatch, most, lengths):
    monkeypatch.setattr(module, "_MATRIX", {"cpu": most})
    anchors = random_boxes(10)
    pieces = matrix_pieces(torch.ones(2, 3).bool(), anchors)
    assert [len(anchors[piece]) for piece in pieces] == lengths
    assert torch.equal(torch.cat([anchors[piece] for piece in pieces]), anchors)


def test_searching_is_worth_it_for_many_pairs_with_shared_anchors():
    objects = torch.ones(2, 64).bool()
    assert worth_searching(objects, torch.zeros(1024, 4))
    assert not worth_searching(objects, torch.zeros(1023, 4))
    assert not worth_searching(objects, torch.zeros(2, 1024, 4))
    assert not worth_searching(objects.to("meta"), torch.zeros(1024, 4, device="meta"))


def test_no_matches_are_negative_with_quality_zero():
    for anchors in (torch.zeros(5, 4), torch.zeros(2, 5, 4, dtype=torch.float64)):
        matched, quality = no_matches(torch.zeros(2, 3, 4, dtype=torch.float64), anchors)
        assert matched.tolist() == [[-1] * 5] * 2
        assert torch.equal(quality, torch.zeros(2, 5))
        assert quality.dtype == torch.float32
