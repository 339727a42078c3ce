"""The loss of FCOS: focal loss over all points and classes; GIoU and centerness losses over the positives."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from detkit._door import door
from detkit._inputs import promote
from detkit._ranges import Fraction, NotNegative
from detkit.anchors import Assigned, centerness
from detkit.boxes import DistanceCoder
from detkit.losses.box_costs import BoxCoder, giou_cost
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
)
from detkit.structures import Anchors, DensePredictions


class FCOSLoss(DenseCriterion):
    """Sigmoid focal loss over all points; a box cost and the cross-entropy of the centerness over the positives.

    All three sums are divided by the weight of all positives of the batch, averaged over processes, at least 1.
    ``alpha`` and ``gamma`` are those of :func:`~detkit.losses.sigmoid_focal_loss`; ``box_weight`` and
    ``centerness_weight`` scale the others. With ``label_smoothing`` s a positive learns 1 - s for its class and s for
    each other. The head's quality is the logit of the centerness. Source: Tian et al. 2019,
    equations 2 and 3, with GIoU as in the version of 2020. Raises ValueError for negative weights.

    >>> from detkit.boxes import DistanceCoder
    >>> boxes, ones = torch.tensor([[[0.0, 0, 4, 4]]]).expand(1, 2, 4), torch.ones(1, 2)
    >>> predictions = DensePredictions(torch.zeros(1, 2, 3), torch.ones(1, 2, 4), torch.zeros(1, 2))
    >>> assigned = Assigned(torch.tensor([[1, -1]]), boxes, ones, ones)
    >>> losses = FCOSLoss()(predictions, assigned, boxes[0], DistanceCoder())
    >>> {name: round(float(loss), 4) for name, loss in losses.items()}
    {'classification': 0.6931, 'box': 0.75, 'centerness': 0.6931}
    """

    reads_quality = True

    @door
    def __init__(
        self,
        box_cost: BoxCost = giou_cost,
        *,
        alpha: Fraction = 0.25,
        gamma: NotNegative = 2.0,
        box_weight: NotNegative = 1.0,
        centerness_weight: NotNegative = 1.0,
        label_smoothing: Fraction = 0.0,
    ) -> None:
        super().__init__()
        check_cost("FCOSLoss", box_cost, BOX_COST)
        self.box_cost, self.alpha, self.gamma = box_cost, alpha, gamma
        self.box_weight, self.centerness_weight = box_weight, centerness_weight
        self.label_smoothing = label_smoothing

    @door
    def forward(
        self, predictions: DensePredictions, assigned: Assigned, anchors: Anchors | Tensor, coder: BoxCoder
    ) -> dict[str, Float[Tensor, ""]]:
        """Losses "classification", "box" and "centerness", weighted.

        Logits are (B, N, C); labels 0..C-1, NEGATIVE or IGNORED. Half precision is promoted. Raises ValueError if
        shapes disagree or a label is out of range (on accelerators with ``DETKIT_CHECKS=full``).
        """
        check_predictions(self, predictions, assigned)
        labels, weights = assigned.labels, assigned.weights
        settings = {"alpha": self.alpha, "gamma": self.gamma, "smoothing": self.label_smoothing}
        focal = focal_costs(predictions.logits, labels, **settings)
        box = box_costs(self.box_cost, predictions.deltas, assigned, anchors, coder)
        centered = self._centerness(predictions.quality, assigned, anchors)
        count = mean_count(labels >= 0, focal, weights=weights)
        classification, box, centered = ((cost * weights).sum() / count for cost in (focal, box, centered))
        return {
            "classification": classification,
            "box": self.box_weight * box,
            "centerness": self.centerness_weight * centered,
        }

    @door
    def scores(self, predictions: DensePredictions) -> Float[Tensor, "B N C"]:
        """The geometric mean of class probability and centerness.

        >>> FCOSLoss().scores(DensePredictions(torch.zeros(1, 1, 2), torch.zeros(1, 1, 4), torch.zeros(1, 1)))
        tensor([[[0.5000, 0.5000]]])
        """
        assert predictions.quality is not None
        return (promote(predictions.logits).sigmoid() * promote(predictions.quality).sigmoid()[..., None]).sqrt()

    @door
    def num_classes(self, predictions: DensePredictions) -> int:
        """The number of logits."""
        return predictions.logits.shape[-1]

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        names = "alpha", "gamma", "box_weight", "centerness_weight", "label_smoothing"
        return ", ".join([described(self.box_cost), *(f"{name}={getattr(self, name)}" for name in names)])

    def _centerness(self, logits: Tensor | None, assigned: Assigned, anchors: Anchors | Tensor) -> Float[Tensor, "B N"]:
        """Cross-entropy of each positive's logit with the centerness of its point in the object; 0 for the others."""
        assert logits is not None
        positive = assigned.labels >= 0
        logits = torch.where(positive, promote(logits), 0)
        target = centerness(DistanceCoder().encode(assigned.boxes, anchors)).to(logits)
        return torch.where(positive, F.binary_cross_entropy_with_logits(logits, target, reduction="none"), 0)
