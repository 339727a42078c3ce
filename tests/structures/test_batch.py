"""The padded structures themselves: rows gathered, endings padded, anchors of plain boxes."""

import pytest
import torch
import torchvision.tv_tensors as tv_tensors
from strategies import random_boxes, unhooked

from detkit.structures import Anchors, Detections, take_rows


@pytest.mark.parametrize("rest", [(), (4,), (2, 3)])
def test_rows_are_taken_image_by_image(rest):
    values, rows = torch.rand(2, 5, *rest), torch.tensor([[4, 0, 0], [1, 2, 3]])
    expected = torch.stack([values[i, own] for i, own in enumerate(rows)])
    assert torch.equal(take_rows(values, rows), expected)


def test_rows_that_are_not_valid_hold_zeros():
    valid = torch.tensor([[True, False, True]])
    boxes, scores, labels = random_boxes(3)[None], torch.rand(1, 3), torch.tensor([[1, 2, 3]])
    found = Detections.padded(boxes, scores, labels, valid)
    for given, rows in ((boxes, found.boxes), (scores, found.scores), (labels, found.labels)):
        assert torch.equal(rows[valid], given[valid])
        assert not rows[~valid].any()
    assert found.valid is valid


def test_plain_boxes_are_anchors_of_one_level_in_cells_of_their_size():
    boxes = random_boxes(3)
    anchors = Anchors.of(boxes)
    assert anchors.boxes is boxes
    assert torch.equal(anchors.strides, boxes[:, 2:] - boxes[:, :2])
    assert anchors.counts == (3,)
    assert Anchors.of(anchors) is anchors


@pytest.mark.parametrize("shape", [(0,), (4,), (3, 2)])
def test_boxes_that_are_no_rows_of_four_are_no_anchors(shape):
    with pytest.raises(ValueError, match=r"^Anchors\.of: boxes have shape .*; allowed is \(N, 4\)"):
        unhooked(Anchors.of)(torch.zeros(shape))


def test_anchors_of_another_format_are_converted():
    boxes = tv_tensors.BoundingBoxes([[4.0, 4, 2, 6]], format="CXCYWH", canvas_size=(9, 9))
    anchors = Anchors.of(boxes)
    assert anchors.boxes.tolist() == [[3, 1, 5, 7]]
    assert anchors.strides.tolist() == [[2, 6]]
    with pytest.raises(TypeError, match=r"Anchors.of: boxes is a list"):
        unhooked(Anchors.of)([[0, 0, 1, 1]])
