"""IoU in blocks, and of pairs, against the plain formula: equal bit for bit, whatever the block boundaries."""

import pytest
import torch
import torchvision
from hypothesis import given, settings
from strategies import boxes, random_boxes
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from detkit.boxes import box_iou, paired_box_iou
from detkit.boxes import overlap as module
from detkit.boxes.iou import _sides, iou_formula
from detkit.boxes.overlap import coordinate_limit, iou_matrix, is_plain, mirror, paired_above, smallest_union


def formula(rows, columns):
    return iou_formula(_sides(rows.unsqueeze(-2)), _sides(columns.unsqueeze(-3)))


@pytest.mark.parametrize("block", [1, 2, 7, 30, 1 << 17])
@pytest.mark.parametrize("shape", [(1, 1), (3, 10), (10, 3), (7, 31)])
def test_any_block_size_gives_the_formula_bit_for_bit(monkeypatch, block, shape):
    monkeypatch.setattr(module, "_BLOCK", block)
    rows, columns = random_boxes(shape[0], seed=1), random_boxes(shape[1], seed=2)
    assert torch.equal(iou_matrix(mirror(rows), mirror(columns)), formula(rows, columns))


@settings(max_examples=150)
@given(rows=boxes(), columns=boxes())
def test_hostile_boxes_give_the_formula_bit_for_bit(rows, columns):
    assert torch.equal(box_iou(rows, columns), formula(rows, columns))
    assert torch.equal(box_iou(rows.double(), columns.double()), formula(rows.double(), columns.double()))


def test_ten_thousand_pairs_equal_torchvision_bit_for_bit():
    rows, columns = random_boxes(100, seed=3), random_boxes(100, seed=4)
    assert torch.equal(box_iou(rows, columns), torchvision.ops.box_iou(rows, columns))


def test_whoever_differentiates_gets_the_formula_and_its_gradient():
    rows = random_boxes(5).requires_grad_()
    overlaps = box_iou(rows, random_boxes(4, seed=1))
    assert overlaps.requires_grad
    overlaps.sum().backward()
    assert rows.grad is not None
    assert rows.grad.abs().sum() > 0
    with torch.no_grad():
        assert not box_iou(rows, rows).requires_grad


def test_functional_transforms_see_the_formula():
    rows, columns = random_boxes(6).view(2, 3, 4), random_boxes(4, seed=1)
    assert torch.equal(torch.vmap(lambda some: box_iou(some, columns))(rows), box_iou(rows, columns))


def test_types_that_differ_are_left_to_the_formula():
    rows, columns = random_boxes(3), random_boxes(4, seed=1)
    mixed = box_iou(rows, columns.double())
    assert mixed.dtype == torch.float64
    torch.testing.assert_close(mixed, box_iou(rows.double(), columns.double()), rtol=1e-5, atol=1e-7)


def test_mirrored_boxes_are_sides_and_areas_and_come_back():
    rows = torch.tensor([[1.0, 2, 4, 6], [3, 3, 1, 9], [-1, -1, -1, 5]])
    mirrored = mirror(rows)
    assert mirrored.sides.T.tolist() == [[-1, -2, 4, 6], [-3, -3, 1, 9], [1, 1, -1, 5]]
    assert mirrored.area.tolist() == [12, 0, 0]
    assert torch.equal(mirrored.corners(), rows)
    assert torch.equal(mirrored.take(torch.tensor([2, 0])).corners(), rows[[2, 0]])
    assert torch.equal(mirrored.cut(1, 3).corners(), rows[1:3])
    assert mirrored.cut(1, 3).area.tolist() == [0, 0]
    assert rows[0].tolist() == [1, 2, 4, 6]  # the input is left alone


def test_coordinates_are_bounded_so_that_areas_do_not_overflow():
    limit = coordinate_limit(torch.float32)
    mirrored = mirror(torch.tensor([[-3e38, -torch.inf, 3e38, torch.inf]]))
    assert mirrored.sides.flatten().tolist() == pytest.approx([limit] * 4)
    assert mirrored.area.isfinite().all()


def test_plain_is_what_has_no_nan_and_no_vanishing_area():
    smallest = smallest_union(torch.float32)
    assert is_plain(mirror(torch.tensor([[0.0, 0, 1, 1], [5, 5, 5, 5]])))
    assert is_plain(mirror(torch.zeros(0, 4)))
    assert is_plain(mirror(torch.tensor([[0.0, 0, 2 * smallest, 1]])))
    assert not is_plain(mirror(torch.tensor([[0.0, 0, smallest, 1]])))
    assert not is_plain(mirror(torch.tensor([[0.0, 0, 1, 1], [0, torch.nan, 1, 1]])))


def test_pairs_are_above_a_threshold_strictly():
    first, second = random_boxes(200, seed=1), random_boxes(200, seed=2)
    overlaps = paired_box_iou(first, second)
    for threshold in (0.0, 0.1, overlaps.max().item()):
        assert torch.equal(paired_above(mirror(first), mirror(second), threshold), overlaps > threshold)


def test_forward_gradients_and_fake_tensors_see_the_formula():
    rows, columns = random_boxes(3), random_boxes(4, seed=1)
    with forward_ad.dual_level():
        overlaps = box_iou(forward_ad.make_dual(rows, torch.ones_like(rows)), columns)
        assert forward_ad.unpack_dual(overlaps).tangent is not None
    with FakeTensorMode() as mode:
        assert box_iou(mode.from_tensor(rows), mode.from_tensor(columns)).shape == (3, 4)
