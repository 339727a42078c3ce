"""The loss of RetinaNet: focal loss over all anchors and classes, a box cost over the positives."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from detkit._door import door
from detkit._ranges import Fraction, NotNegative
from detkit.anchors import Assigned
from detkit.dist import all_reduce_mean
from detkit.losses.box_costs import BoxCoder, l1_cost
from detkit.losses.dense import (
    BOX_COST,
    BoxCost,
    DenseCriterion,
    box_costs,
    check_cost,
    check_predictions,
    described,
    focal_costs,
    mean_count,
    sigmoid_scores,
)
from detkit.structures import Anchors, DensePredictions

Scope = Literal["image", "batch"]


class RetinaNetLoss(DenseCriterion):
    """Sigmoid focal loss over all anchors and a box cost over the positives, both normalized by the positives.

    Each image's sum is divided by the weight of its positives, at least 1, and averaged over the images of all
    processes. With ``scope="batch"`` the sums are divided by that of the whole batch instead, averaged over processes.
    ``alpha`` and ``gamma`` are those of :func:`~detkit.losses.sigmoid_focal_loss`. torchvision's first version uses the
    default ``box_cost``, L1, its second version GIoU; ``box_weight`` scales it. With ``label_smoothing`` s a positive
    learns 1 - s for its class and s for each other.
    Source: Lin et al. 2017, "Focal Loss", sections 3 and 4.1. Raises ValueError for another scope or a negative weight.

    >>> import torch
    >>> from detkit.boxes import DeltaCoder
    >>> boxes, ones = torch.tensor([[[0.0, 0, 4, 4]]]).expand(1, 3, 4), torch.ones(1, 3)
    >>> predictions = DensePredictions(torch.zeros(1, 3, 2), torch.ones(1, 3, 4))
    >>> assigned = Assigned(torch.tensor([[1, -1, -2]]), boxes, ones, ones)
    >>> losses = RetinaNetLoss()(predictions, assigned, boxes[0], DeltaCoder())
    >>> {name: round(float(loss), 4) for name, loss in losses.items()}
    {'classification': 0.4332, 'box': 4.0}
    """

    @door
    def __init__(
        self,
        box_cost: BoxCost = l1_cost,
        *,
        alpha: Fraction = 0.25,
        gamma: NotNegative = 2.0,
        box_weight: NotNegative = 1.0,
        scope: Scope = "image",
        label_smoothing: Fraction = 0.0,
    ) -> None:
        super().__init__()
        if scope not in ("image", "batch"):
            raise ValueError(f"RetinaNetLoss: scope={scope!r}; allowed is 'image' or 'batch'")
        check_cost("RetinaNetLoss", box_cost, BOX_COST)
        self.box_cost, self.alpha, self.gamma = box_cost, alpha, gamma
        self.box_weight, self.scope, self.label_smoothing = box_weight, scope, label_smoothing

    @door
    def forward(
        self, predictions: DensePredictions, assigned: Assigned, anchors: Anchors | Tensor, coder: BoxCoder
    ) -> dict[str, Float[Tensor, ""]]:
        """Losses "classification" and "box", weighted.

        Logits are (B, N, C) without a background column; labels 0..C-1, NEGATIVE or IGNORED. Half precision is
        promoted. Raises ValueError if shapes disagree or a label is out of range (on accelerators with
        ``DETKIT_CHECKS=full``).
        """
        check_predictions(self, predictions, assigned)
        labels, weights = assigned.labels, assigned.weights
        settings = {"alpha": self.alpha, "gamma": self.gamma, "smoothing": self.label_smoothing}
        focal = focal_costs(predictions.logits, labels, **settings) * weights
        box = box_costs(self.box_cost, predictions.deltas, assigned, anchors, coder) * weights
        share = self._share(labels >= 0, weights.to(focal))
        return {
            "classification": (focal.sum(1) * share).sum(),
            "box": self.box_weight * (box.sum(1) * share).sum(),
        }

    @door
    def scores(self, predictions: DensePredictions) -> Float[Tensor, "B N C"]:
        """An independent probability for each class."""
        return sigmoid_scores(predictions)

    @door
    def num_classes(self, predictions: DensePredictions) -> int:
        """The number of logits."""
        return predictions.logits.shape[-1]

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        names = "alpha", "gamma", "box_weight", "scope", "label_smoothing"
        return ", ".join([described(self.box_cost), *(f"{name}={getattr(self, name)!r}" for name in names)])

    def _share(self, positive: Bool[Tensor, "B N"], weights: Float[Tensor, "B N"]) -> Float[Tensor, " B"]:
        """The factor that multiplies each image's sum."""
        if self.scope == "batch":
            return (1 / mean_count(positive, weights, weights=weights)).expand(len(positive))
        images = all_reduce_mean(weights.new_full((), len(positive)))
        return 1 / (torch.where(positive, weights, 0).sum(1).clamp(min=1) * images)
