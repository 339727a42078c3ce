"""The loss of detectors that predict objectness and classes separately: YOLOX and similar ones."""

import torch
from jaxtyping import Float
from torch import Tensor

from detkit._door import door
from detkit._inputs import looked_at, promote
from detkit._ranges import Fraction, NotNegative
from detkit.anchors import Assigned
from detkit.losses.box_costs import BoxCoder, iou_cost
from detkit.losses.dense import (
    BOX_COST,
    BoxCost,
    DenseCriterion,
    box_costs,
    check_cost,
    check_predictions,
    described,
    judged_entropy,
    mean_count,
)
from detkit.structures import IGNORED, Anchors, DensePredictions
from detkit.structures.smoothing import smoothed_levels


class ObjectnessLoss(DenseCriterion):
    """Cross-entropy of objectness over all anchors; cross-entropy of the classes and a box cost over the positives.

    The head's quality is the logit of objectness. All three sums are divided by the weight of all positives of the
    batch, averaged over processes, at least 1; ``box_weight``, ``objectness_weight`` and ``class_weight`` scale them.
    With ``soft_classes`` the class target of a positive is the quality of its assignment instead of 1: with
    :class:`~detkit.anchors.SimOTAMatcher` that is the IoU of its predicted box, as in YOLOX. ``label_smoothing`` s
    turns a class target y into y (1 - s) + (1 - y) s. Source: Ge et al. 2021
    (YOLOX), section 2; the release's weights are the defaults. Raises ValueError for negative weights.

    >>> from detkit.boxes import DeltaCoder
    >>> boxes, ones = torch.tensor([[[0.0, 0, 4, 4]]]).expand(1, 3, 4), torch.ones(1, 3)
    >>> predictions = DensePredictions(torch.zeros(1, 3, 2), torch.zeros(1, 3, 4), torch.zeros(1, 3))
    >>> assigned = Assigned(torch.tensor([[1, -1, -2]]), boxes, ones, ones)
    >>> losses = ObjectnessLoss()(predictions, assigned, boxes[0], DeltaCoder())
    >>> {name: round(float(loss), 4) for name, loss in losses.items()}
    {'objectness': 1.3863, 'classification': 1.3863, 'box': 0.0}
    """

    reads_quality = True

    @door
    def __init__(
        self,
        box_cost: BoxCost = iou_cost,
        *,
        box_weight: NotNegative = 5.0,
        objectness_weight: NotNegative = 1.0,
        class_weight: NotNegative = 1.0,
        soft_classes: bool = True,
        label_smoothing: Fraction = 0.0,
    ) -> None:
        super().__init__()
        check_cost("ObjectnessLoss", box_cost, BOX_COST)
        self.box_cost, self.soft_classes, self.label_smoothing = box_cost, soft_classes, label_smoothing
        self.box_weight, self.objectness_weight, self.class_weight = box_weight, objectness_weight, class_weight

    @door
    def forward(
        self, predictions: DensePredictions, assigned: Assigned, anchors: Anchors | Tensor, coder: BoxCoder
    ) -> dict[str, Float[Tensor, ""]]:
        """Losses "objectness", "classification" and "box", weighted.

        Logits are (B, N, C); labels 0..C-1, NEGATIVE or IGNORED. Half precision is promoted. Raises ValueError if
        shapes disagree or a label is out of range (on accelerators with ``DETKIT_CHECKS=full``).
        """
        check_predictions(self, predictions, assigned)
        labels, weights = assigned.labels, assigned.weights
        assert predictions.quality is not None
        positive, judged = labels >= 0, labels != IGNORED
        objectness = judged_entropy(promote(predictions.quality), positive, judged)
        box = box_costs(self.box_cost, predictions.deltas, assigned, anchors, coder)
        classes = self._class_costs(promote(predictions.logits), assigned)
        count = mean_count(positive, objectness, weights=weights)
        return {
            "objectness": self.objectness_weight * (objectness * weights).sum() / count,
            "classification": self.class_weight * classes.sum() / count,
            "box": self.box_weight * (box * weights).sum() / count,
        }

    @door
    def scores(self, predictions: DensePredictions) -> Float[Tensor, "B N C"]:
        """Objectness times class probability.

        >>> ObjectnessLoss().scores(DensePredictions(torch.zeros(1, 1, 2), torch.zeros(1, 1, 4), torch.zeros(1, 1)))
        tensor([[[0.2500, 0.2500]]])
        """
        assert predictions.quality is not None
        return promote(predictions.logits).sigmoid() * promote(predictions.quality).sigmoid()[..., None]

    @door
    def num_classes(self, predictions: DensePredictions) -> int:
        """The number of logits."""
        return predictions.logits.shape[-1]

    def _class_costs(self, logits: Float[Tensor, "B N C"], assigned: Assigned) -> Float[Tensor, "..."]:
        """The weighted costs of the positives, alone where the host sees which they are: few anchors are positive."""
        labels, quality, weights = assigned.labels, assigned.quality, assigned.weights
        if looked_at(labels):
            positive = labels >= 0
            logits, labels, quality, weights = (part[positive] for part in (logits, labels, quality, weights))
        own = labels[..., None] == torch.arange(logits.shape[-1], device=labels.device)
        hit = quality.clamp(0, 1)[..., None] if self.soft_classes else 1.0
        on, off = smoothed_levels(self.label_smoothing, logits.shape[-1], "each")
        targets = off + torch.where(own, hit, 0.0) * (on - off)
        return judged_entropy(logits, targets, labels[..., None] >= 0).sum(-1) * weights

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        names = "box_weight", "objectness_weight", "class_weight", "soft_classes", "label_smoothing"
        return ", ".join([described(self.box_cost), *(f"{name}={getattr(self, name)}" for name in names)])
