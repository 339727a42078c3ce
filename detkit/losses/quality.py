"""Losses that train the class score to predict the quality of the box: generalized focal loss, VarifocalNet, TOOD."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from detkit._door import door
from detkit._inputs import promote
from detkit._ranges import NotNegative
from detkit.anchors import Assigned
from detkit.boxes import paired_box_iou
from detkit.dist import all_reduce_mean
from detkit.losses.box_costs import BoxCoder, giou_cost
from detkit.losses.classification import distribution_focal_loss, quality_focal_loss
from detkit.losses.dense import (
    BOX_COST,
    BoxCost,
    DenseCriterion,
    box_costs,
    check_cost,
    check_predictions,
    described,
    mean_count,
    sigmoid_scores,
)
from detkit.structures import IGNORED, Anchors, DensePredictions

ClassCost = Callable[[Tensor, Tensor], Tensor]


class QualityLoss(DenseCriterion):
    """A positive's score for its class is trained to predict its quality, all others 0; box losses weigh by quality.

    ``class_cost`` maps logits and targets in [0, 1], both (B, N, C), to costs (B, N, C):
    :func:`~detkit.losses.quality_focal_loss` or :func:`~detkit.losses.varifocal_loss`. The quality of a positive is the
    IoU of its predicted box (``quality="iou"``; GFL, VarifocalNet) or the one that the matcher assigned
    (``"assigned"``; TOOD with :class:`~detkit.anchors.TaskAlignedMatcher`). Class costs are divided by the weight of
    all positives, or by the sum of assigned qualities; box costs are weighted by quality and divided by its sum. In
    both sums, which are of the whole batch, averaged over processes, at least 1, each positive counts by its weight.
    With ``distribution_weight`` the head predicts distributions for :class:`~detkit.boxes.DistributionCoder`, trained
    by distribution focal loss.

    Sources: Li et al. 2020 (GFL), equations 5 to 8, whose release weights boxes by the predicted score instead; Zhang
    et al. 2021 (VarifocalNet), section 3.4; Feng et al. 2021 (TOOD), section 3.2. Raises ValueError for another quality
    and negative weights.

    >>> from detkit.boxes import DistanceCoder
    >>> boxes, ones = torch.tensor([[[0.0, 0, 4, 4]]]).expand(1, 2, 4), torch.ones(1, 2)
    >>> predictions = DensePredictions(torch.zeros(1, 2, 3), torch.full((1, 2, 4), 2.0))
    >>> assigned = Assigned(torch.tensor([[1, -1]]), boxes, ones, ones)
    >>> losses = QualityLoss()(predictions, assigned, boxes[0], DistanceCoder())
    >>> {name: round(float(loss), 4) for name, loss in losses.items()}
    {'classification': 1.0397, 'box': 0.0}
    """

    @door
    def __init__(
        self,
        class_cost: ClassCost = quality_focal_loss,
        box_cost: BoxCost = giou_cost,
        *,
        quality: Literal["iou", "assigned"] = "iou",
        box_weight: NotNegative = 2.0,
        distribution_weight: NotNegative = 0.0,
    ) -> None:
        super().__init__()
        if quality not in ("iou", "assigned"):
            raise ValueError(f"QualityLoss: quality={quality!r}; allowed is 'iou' or 'assigned'")
        check_cost("QualityLoss", class_cost, "logits, targets", name="class_cost")
        check_cost("QualityLoss", box_cost, BOX_COST)
        self.class_cost, self.box_cost, self.quality = class_cost, box_cost, quality
        self.box_weight, self.distribution_weight = box_weight, distribution_weight
        self.reads_distributions = distribution_weight > 0

    @door
    def forward(
        self, predictions: DensePredictions, assigned: Assigned, anchors: Anchors | Tensor, coder: BoxCoder
    ) -> dict[str, Float[Tensor, ""]]:
        """Losses "classification", "box" and, if boxes are distributions, "distribution", weighted.

        Logits are (B, N, C); labels 0..C-1, NEGATIVE or IGNORED. Half precision is promoted. Raises ValueError if
        shapes disagree or a label is out of range (on accelerators with ``DETKIT_CHECKS=full``).
        """
        check_predictions(self, predictions, assigned)
        labels, weights = assigned.labels, assigned.weights
        quality = self._qualities(predictions.deltas, assigned, anchors, coder)
        total = all_reduce_mean((quality * weights).sum()).clamp(min=1)
        count = total if self.quality == "assigned" else mean_count(labels >= 0, quality, weights=weights)
        classes = self._class_costs(promote(predictions.logits), labels, quality)
        box = box_costs(self.box_cost, predictions.deltas, assigned, anchors, coder)
        losses = {
            "classification": (classes * weights).sum() / count,
            "box": self.box_weight * (box * quality * weights).sum() / total,
        }
        if self.reads_distributions:
            costs = box_costs(_distribution_cost, predictions.deltas, assigned, anchors, coder)
            losses["distribution"] = self.distribution_weight * (costs * quality * weights).sum() / total
        return losses

    @door
    def scores(self, predictions: DensePredictions) -> Float[Tensor, "B N C"]:
        """An independent score for each class, which also predicts the quality of the box."""
        return sigmoid_scores(predictions)

    @door
    def num_classes(self, predictions: DensePredictions) -> int:
        """The number of logits."""
        return predictions.logits.shape[-1]

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        weights = f"box_weight={self.box_weight}, distribution_weight={self.distribution_weight}"
        return f"{described(self.class_cost)}, {described(self.box_cost)}, quality={self.quality!r}, {weights}"

    @torch.no_grad()
    def _qualities(
        self, deltas: Tensor, assigned: Assigned, anchors: Anchors | Tensor, coder: BoxCoder
    ) -> Float[Tensor, "B N"]:
        """The target of each positive's score, in [0, 1]; 0 for the others."""
        positive = assigned.labels >= 0
        if self.quality == "assigned":
            return torch.where(positive, assigned.quality, 0).to(promote(deltas).dtype)
        boxes = coder.decode(torch.where(positive[..., None], promote(deltas), 0), anchors)
        return torch.where(positive, paired_box_iou(boxes, assigned.boxes), 0)

    def _class_costs(self, logits: Float[Tensor, "B N C"], labels: Tensor, quality: Tensor) -> Float[Tensor, "B N"]:
        judged = labels != IGNORED
        logits = torch.where(judged[..., None], logits, 0)  # before the formula: a NaN there has a gradient
        own = labels[..., None] == torch.arange(logits.shape[-1], device=labels.device)
        costs = self.class_cost(logits, torch.where(own, quality[..., None], 0).to(logits))
        return torch.where(judged, costs.sum(-1), 0)


def _distribution_cost(
    deltas: Tensor, boxes: Tensor, anchors: Anchors | Tensor, coder: BoxCoder
) -> Float[Tensor, "B N"]:
    """Distribution focal loss, averaged over the four sides of each box."""
    return distribution_focal_loss(deltas.unflatten(-1, (4, -1)), coder.encode(boxes, anchors)).mean(-1)
