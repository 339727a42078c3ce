"""IoU in blocks against the plain formula: equal bit for bit, whatever the block boundaries, and only where allowed."""

import pytest
import torch
import torchvision
from hypothesis import given, settings
from strategies import boxes, random_boxes
from thorough import sweep
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from detkit.boxes import box_iou, iou, sides_of
from detkit.boxes import iou_blocks as module
from detkit.boxes.iou_blocks import iou_matrix, suits_blocks


def formula(rows, columns):
    return iou(sides_of(rows).map(lambda values: values[:, None]), sides_of(columns).map(lambda values: values[None]))


@pytest.mark.parametrize("block", [1, 2, 7, 30, 1 << 17])
@pytest.mark.parametrize("shape", [(1, 1), (3, 10), (10, 3), (7, 31), (0, 3), (3, 0)])
def test_any_block_size_gives_the_formula_bit_for_bit(monkeypatch, block, shape):
    monkeypatch.setattr(module, "_BLOCK", block)
    rows, columns = random_boxes(shape[0], seed=1), random_boxes(shape[1], seed=2)
    assert torch.equal(iou_matrix(sides_of(rows), sides_of(columns)), formula(rows, columns))


@pytest.mark.slow(2)
@settings(max_examples=sweep(150))
@given(rows=boxes(), columns=boxes())
def test_hostile_boxes_give_the_formula_bit_for_bit(rows, columns):
    for one, other in ((rows, columns), (rows.double(), columns.double()), (rows * 1e-20, columns * 1e-20)):
        assert suits_blocks(one, other)
        assert torch.equal(box_iou(one, other), formula(one, other))


def test_boxes_that_are_no_numbers_give_the_formula_bit_for_bit():
    rows, columns = random_boxes(4, seed=1), random_boxes(5, seed=2)
    rows[1, 2], rows[2, 0], columns[3, 1] = torch.nan, torch.inf, torch.nan
    found = box_iou(rows, columns)
    assert torch.equal(found, formula(rows, columns))
    assert not found[1].any()
    assert not found[:, 3].any()


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


def test_forward_gradients_and_fake_tensors_see_the_formula():
    rows, columns = random_boxes(3), random_boxes(4, seed=1)
    with forward_ad.dual_level():
        overlaps = box_iou(forward_ad.make_dual(rows, torch.ones_like(rows)), columns)
        assert forward_ad.unpack_dual(overlaps).tangent is not None
    with FakeTensorMode() as mode:
        assert box_iou(mode.from_tensor(rows), mode.from_tensor(columns)).shape == (3, 4)


def test_types_that_differ_are_left_to_the_formula():
    rows, columns = random_boxes(3), random_boxes(4, seed=1)
    mixed = box_iou(rows, columns.double())
    assert mixed.dtype == torch.float64
    torch.testing.assert_close(mixed, box_iou(rows.double(), columns.double()), rtol=1e-5, atol=1e-7)
