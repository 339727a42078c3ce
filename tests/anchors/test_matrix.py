"""The matrix of overlaps, and its pieces."""

import pytest
import torch
from strategies import random_boxes

from detkit.anchors import matrix as module
from detkit.anchors.matrix import matrix_pieces, overlap_matrix
from detkit.boxes import box_iou


def test_rows_that_are_no_objects_overlap_less_than_nothing():
    boxes, anchors = random_boxes(6).view(2, 3, 4), random_boxes(5, seed=1)
    objects = torch.tensor([[True, False, True], [False, False, True]])
    overlaps = overlap_matrix(boxes, objects, anchors)
    assert torch.equal(overlaps[objects], box_iou(boxes, anchors)[objects])
    assert (overlaps[~objects] == -1).all()


@pytest.mark.parametrize(("most", "lengths"), [(100, [10]), (60, [10]), (59, [9, 1]), (24, [4, 4, 2]), (1, [1] * 10)])
def test_pieces_of_the_matrix_stay_small_and_cover_all_anchors(monkeypatch, most, lengths):
    monkeypatch.setattr(module, "_ENTRIES", most)
    anchors = random_boxes(10)
    pieces = matrix_pieces(torch.ones(2, 3).bool(), anchors)
    assert [len(anchors[piece]) for piece in pieces] == lengths
    assert torch.equal(torch.cat([anchors[piece] for piece in pieces]), anchors)
