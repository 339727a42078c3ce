"""Box costs, beside their records: with every coder, on the way through a head, and without a Python name for each."""

from functools import partial

import pytest
import torch
from strategies import random_boxes, unhooked

from detkit.boxes import DeltaCoder, DistanceCoder
from detkit.losses import (
    box_iou_loss,
    ciou_cost,
    complete_box_iou_loss,
    diou_cost,
    distance_box_iou_loss,
    generalized_box_iou_loss,
    giou_cost,
    iou_cost,
    l1_cost,
    smooth_l1_cost,
    smooth_l1_loss,
)

LOSS_OF = {
    iou_cost: box_iou_loss,
    giou_cost: generalized_box_iou_loss,
    diou_cost: distance_box_iou_loss,
    ciou_cost: complete_box_iou_loss,
}
COSTS = [l1_cost, smooth_l1_cost, partial(smooth_l1_cost, beta=0.1), *LOSS_OF]
CODERS = [DeltaCoder((10.0, 10.0, 5.0, 5.0)), DistanceCoder(), DistanceCoder(unit=0.125)]


def batch(*, dtype=torch.float64):
    """Ground truth of two images, and anchors that both share."""
    return random_boxes(12, seed=1, dtype=dtype).view(2, 6, 4), random_boxes(6, seed=2, dtype=dtype)


@pytest.mark.parametrize("coder", CODERS, ids=str)
@pytest.mark.parametrize("cost", COSTS)
def test_what_leads_to_the_box_costs_nothing(cost, coder):
    boxes, anchors = batch()
    costs = cost(coder.encode(boxes, anchors), boxes, anchors, coder)
    torch.testing.assert_close(costs, torch.zeros(2, 6, dtype=torch.float64))


@pytest.mark.parametrize("coder", CODERS, ids=str)
@pytest.mark.parametrize("cost", LOSS_OF)
def test_overlap_costs_are_losses_of_decoded_boxes(cost, coder):
    boxes, anchors = batch()
    deltas = torch.randn(2, 6, 4, dtype=torch.float64)
    expected = LOSS_OF[cost](coder.decode(deltas, anchors), boxes)
    assert torch.equal(cost(deltas, boxes, anchors, coder), expected)


@pytest.mark.parametrize("coder", CODERS, ids=str)
def test_delta_costs_are_sums_of_losses_on_encoded_boxes(coder):
    boxes, anchors = batch()
    deltas, wanted = torch.randn(2, 6, 4, dtype=torch.float64), coder.encode(boxes, anchors)
    expected = smooth_l1_loss(deltas, wanted, beta=0.3).sum(-1)
    torch.testing.assert_close(smooth_l1_cost(deltas, boxes, anchors, coder, beta=0.3), expected)
    torch.testing.assert_close(l1_cost(deltas, boxes, anchors, coder), (deltas - wanted).abs().sum(-1))


@pytest.mark.parametrize("cost", COSTS)
def test_a_step_against_the_gradient_costs_less(cost):
    boxes, anchors = batch(dtype=torch.float32)
    boxes = boxes + 2 * (anchors - boxes) / 3  # near enough to overlap
    deltas = torch.zeros(2, 6, 4, requires_grad=True)
    before = cost(deltas, boxes, anchors, CODERS[0]).sum()
    (gradient,) = torch.autograd.grad(before, deltas)
    assert cost(deltas - 1e-3 * gradient, boxes, anchors, CODERS[0]).sum() < before


def test_a_finite_stand_in_keeps_rows_without_a_box_silent():
    boxes, anchors = batch(dtype=torch.float32)
    deltas = torch.full((2, 6, 4), torch.nan)
    deltas[:, 0] = 0.5
    deltas.requires_grad_()
    kept = torch.arange(6) == 0
    for cost in COSTS:
        costs = cost(torch.where(kept[:, None], deltas, 0), boxes, anchors, CODERS[0])
        (gradient,) = torch.autograd.grad(torch.where(kept, costs, 0).sum(), deltas)
        assert gradient.isfinite().all()


def test_a_coder_of_another_width_serves_overlap_costs_only():
    class Doubled:
        def encode(self, boxes, anchors):
            return boxes - anchors

        def decode(self, deltas, anchors):
            return anchors + deltas[..., :4] + deltas[..., 4:]

    boxes, anchors = batch()
    deltas = torch.zeros(2, 6, 8, dtype=torch.float64)
    assert torch.equal(giou_cost(deltas, boxes, anchors, Doubled()), generalized_box_iou_loss(anchors, boxes))
    with pytest.raises(ValueError, match=r"^l1_cost: deltas have shape \(2, 6, 8\)"):
        unhooked(l1_cost)(deltas, boxes, anchors, Doubled())
