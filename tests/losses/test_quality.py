"""QualityLoss against loops: GFL, VarifocalNet, TOOD; and distributions."""

import math

import pytest
import torch
from dense_rows import Plain, assigned_to, judge
from strategies import assert_refused

from detkit.boxes import DistanceCoder, DistributionCoder, paired_box_iou
from detkit.losses import (
    QualityLoss,
    distribution_focal_loss,
    generalized_box_iou_loss,
    quality_focal_loss,
    varifocal_loss,
)
from detkit.structures import DensePredictions

LABELS = torch.tensor([[0, -1, 1, -2], [-1, -1, 1, -1]])


def batch(*, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of 2 classes, predicted boxes and wanted ones that overlap them."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(2, 4, 2, generator=generator, dtype=torch.float64) * 4
    boxes = torch.cat((corners, corners + 5), -1)
    noise = torch.rand(2, 4, 4, generator=generator, dtype=torch.float64)
    return torch.randn(2, 4, 2, generator=generator, dtype=torch.float64), boxes, boxes + noise


def slow(logits, boxes, wanted, cost, qualities):
    """Sums of classes and boxes, anchor by anchor; the number of positives and the sum of qualities."""
    classes = weighted = positives = total = 0.0
    for image, anchor in ((b, n) for b in range(2) for n in range(4)):
        label = LABELS[image, anchor].item()
        if label == -2:
            continue
        target = torch.zeros(2, dtype=torch.float64)
        if label >= 0:
            quality = qualities[image, anchor].item()
            target[label] = quality
            weighted += quality * generalized_box_iou_loss(boxes[image, anchor], wanted[image, anchor]).item()
            positives, total = positives + 1, total + quality
        classes += cost(logits[image, anchor], target).sum().item()
    return classes, weighted, positives, total


@pytest.mark.parametrize("cost", [quality_focal_loss, varifocal_loss])
def test_the_quality_of_a_positive_is_the_iou_of_its_predicted_box(cost):
    logits, boxes, wanted = batch()
    losses = judge(QualityLoss(cost, box_weight=2.0), logits, boxes, LABELS, wanted)
    classes, weighted, positives, total = slow(logits, boxes, wanted, cost, paired_box_iou(boxes, wanted))
    assert positives == 3
    assert 1 < total < 3
    assert losses["classification"].item() == pytest.approx(classes / positives)
    assert losses["box"].item() == pytest.approx(2 * weighted / total)


def test_or_what_the_matcher_says_and_then_classes_are_divided_by_its_sum():
    logits, boxes, wanted = batch()
    quality = torch.rand(2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.5 + 0.5
    criterion = QualityLoss(varifocal_loss, quality="assigned", box_weight=1.0)
    assigned = assigned_to(LABELS, wanted, quality=quality)
    losses = criterion(DensePredictions(logits, boxes), assigned, torch.zeros(4, 4), Plain())
    classes, weighted, _, total = slow(logits, boxes, wanted, varifocal_loss, quality)
    assert losses["classification"].item() == pytest.approx(classes / total)
    assert losses["box"].item() == pytest.approx(weighted / total)


def test_distributions_learn_the_distances_of_the_wanted_boxes():
    coder, points = (
        DistributionCoder(DistanceCoder(), bins=8),
        torch.tensor([[3.0, 3], [4, 4], [2, 2], [3, 4]]).double(),
    )
    logits, _, wanted = batch()
    deltas = torch.randn(2, 4, 36, generator=torch.Generator().manual_seed(2), dtype=torch.float64).requires_grad_()
    criterion = QualityLoss(distribution_weight=0.25)
    assert criterion.reads_distributions
    losses = criterion(DensePredictions(logits, deltas), assigned_to(LABELS, wanted), points, coder)
    boxes, distances = coder.decode(deltas, points).detach(), DistanceCoder().encode(wanted, points)
    total = weighted = 0.0
    for image, anchor in (LABELS >= 0).nonzero().tolist():
        quality = paired_box_iou(boxes[image, anchor], wanted[image, anchor]).item()
        own = distribution_focal_loss(deltas[image, anchor].detach().view(4, 9), distances[image, anchor])
        total, weighted = total + quality, weighted + quality * own.mean().item()
    assert losses["distribution"].item() == pytest.approx(0.25 * weighted / max(total, 1))
    sum(losses.values()).backward()
    assert (deltas.grad[LABELS >= 0] != 0).any()
    assert not deltas.grad[LABELS < 0].any()


def test_quality_is_no_way_to_a_gradient():
    logits, boxes, wanted = batch()
    boxes.requires_grad_()
    judge(QualityLoss(), logits, boxes, LABELS, wanted)["classification"].requires_grad_().backward()
    assert boxes.grad is None


def test_wrong_settings_are_named():
    assert_refused("QualityLoss: quality='both'", QualityLoss.__init__, QualityLoss(), quality="both")
    assert_refused("QualityLoss: distribution_weight=nan", QualityLoss, distribution_weight=math.nan)
