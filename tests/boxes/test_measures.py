"""Sides of boxes and the parts of measures; the values of the measures are tested on boxes: test_overlap."""

import pytest
import torch
from hypothesis import given
from strategies import assert_refused, boxes, random_boxes

from detkit.boxes import (
    all_pairs,
    ciou,
    diou,
    giou,
    hull,
    intersection_and_union,
    iou,
    paired,
    ratio,
    sides_of,
)
from detkit.boxes.measures import coordinate_limit, smallest_union

MEASURES = [iou, giou, diou, ciou]


def test_boxes_become_sides_and_areas_and_come_back():
    rows = torch.tensor([[1.0, 2, 4, 6], [3, 3, 1, 9], [-1, -1, -1, 5]])
    sides = sides_of(rows)
    assert [values.tolist() for values in sides] == [[1, 3, -1], [2, 3, -1], [4, 1, -1], [6, 9, 5], [12, 0, 0]]
    assert (sides.width.tolist(), sides.height.tolist()) == ([3, 0, 0], [4, 6, 6])
    assert torch.equal(sides.corners(), rows)
    assert torch.equal(sides.take(torch.tensor([2, 0])).corners(), rows[[2, 0]])
    assert torch.equal(sides.take(torch.tensor([[2], [0]])).corners(), rows[[2, 0]][:, None])
    assert torch.equal(sides.map(lambda values: values[1:3]).corners(), rows[1:3])
    assert [piece.area.tolist() for piece in sides.split(2)] == [[12, 0], [0]]
    assert sides_of(rows.view(3, 1, 4)).area.shape == (3, 1)


def test_sides_are_promoted_and_bounded_so_that_areas_do_not_overflow():
    limit = coordinate_limit(torch.float32)
    sides = sides_of(torch.tensor([-3e38, -torch.inf, 3e38, torch.inf]))
    assert torch.stack(sides[:4]).tolist() == pytest.approx([-limit, -limit, limit, limit])
    assert sides.area.isfinite()
    assert sides_of(torch.tensor([[0, 0, 100_000, 100_000]])).area.item() == 1e10
    assert sides_of(torch.tensor([0.0, 0, 4, 4]).half()).area.dtype == torch.float32
    assert_refused("sides_of: boxes (2, 5)", sides_of, torch.zeros(2, 5))


@pytest.mark.parametrize("place", range(4))
def test_a_nan_box_counts_as_a_point_and_takes_no_gradient(place):
    rows = random_boxes(3)
    rows[1, place] = torch.nan
    rows.requires_grad_()
    sides = sides_of(rows)
    assert [values[1].item() for values in sides] == [0] * 5
    sum(values.sum() for values in sides).backward()
    assert rows.grad[1].tolist() == [0, 0, 0, 0]
    assert rows.grad[[0, 2]].abs().sum() > 0


@pytest.mark.parametrize("measure", MEASURES)
def test_a_nan_box_leaves_the_gradient_of_its_partners_alone(measure):
    rows, columns = random_boxes(3, seed=1), random_boxes(3, seed=2)
    rows[1, 2] = torch.nan
    columns.requires_grad_()
    all_pairs(measure)(rows, columns)[[0, 2]].sum().backward()
    expected, columns.grad = columns.grad, None
    found = all_pairs(measure)(rows, columns)
    assert found.isfinite().all()
    found[[0, 2]].sum().backward()
    assert torch.equal(columns.grad, expected)


def test_a_ratio_of_what_is_no_safe_denominator_is_0_without_a_gradient():
    smallest = smallest_union(torch.float32)
    denominator = torch.tensor([2.0, smallest * 2, smallest, 0.0, -0.0, -3.0], requires_grad=True)
    numerator = torch.tensor([1.0, smallest, smallest, 0.0, 5.0, 5.0], requires_grad=True)
    found = ratio(numerator, denominator)
    assert found.tolist() == [0.5, 0.5, 0, 0, 0, 0]
    found.sum().backward()
    assert numerator.grad.tolist() == [0.5, 1 / (2 * smallest), 0, 0, 0, 0]
    assert denominator.grad[0].item() == -0.25
    assert denominator.grad[2:].tolist() == [0, 0, 0, 0]


def test_ratios_are_differentiated_as_often_as_wanted():
    numerator, denominator = torch.tensor([1.0, 2.0]).double(), torch.tensor([3.0, 5.0]).double()
    assert torch.autograd.gradgradcheck(ratio, (numerator.requires_grad_(), denominator.requires_grad_()))


@given(rows=boxes(most=5), columns=boxes(most=5))
def test_intersection_union_and_hull_contain_each_other(rows, columns):
    a, b = sides_of(rows.double()), sides_of(columns.double())
    a, b = a.map(lambda values: values[:, None]), b.map(lambda values: values[None])
    intersection, union = intersection_and_union(a, b)
    width, height = hull(a, b)
    slack = 1e-9 * (a.area + b.area)
    assert (intersection <= torch.minimum(a.area, b.area) + slack).all()
    assert (union >= torch.maximum(a.area, b.area) - slack).all()
    assert ((width >= 0) & (height >= 0)).all()
    upright = (a.area > 0) & (b.area > 0)
    assert (width * height >= union - slack)[upright].all()


@pytest.mark.parametrize("measure", MEASURES)
def test_sides_of_any_shape_that_broadcasts_are_measured(measure):
    rows, columns = random_boxes(6, seed=1), random_boxes(6, seed=2)
    expected = paired(measure)(rows, columns)
    found = measure(sides_of(rows.view(2, 3, 4)), sides_of(columns.view(2, 3, 4)))
    assert torch.equal(found, expected.view(2, 3))
    assert torch.equal(measure(sides_of(rows), sides_of(columns[0])), all_pairs(measure)(rows, columns[:1])[:, 0])


@pytest.mark.parametrize("measure", MEASURES)
def test_functional_transforms_see_the_measures(measure):
    rows, columns = random_boxes(4, seed=1, dtype=torch.float64), random_boxes(4, seed=2, dtype=torch.float64)
    single = paired(measure)
    jacobian = torch.func.vmap(torch.func.grad(single))(rows, columns)
    rows.requires_grad_()
    single(rows, columns).sum().backward()
    torch.testing.assert_close(jacobian, rows.grad)
    assert torch.func.hessian(single)(rows[0].detach(), columns[0]).isfinite().all()
