"""The losses of two-stage detectors: objectness and boxes (RPN), then classes and refined boxes (R-CNN).

Both are computed over the rows that a sampler chose: rows it left out are labeled IGNORED and do not count.
"""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from detkit._door import door
from detkit._inputs import promote
from detkit._ranges import Fraction, NotNegative
from detkit.anchors import Assigned
from detkit.losses.box_costs import BoxCoder, smooth_l1_cost
from detkit.losses.classification import label_smoothed_cross_entropy
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
    softmax_scores,
)
from detkit.structures import IGNORED, NEGATIVE, Anchors, DensePredictions

sharp_l1_cost = partial(smooth_l1_cost, beta=1 / 9)
"""Smooth L1 of both stages: beta 1/9 is the RPN's sigma of 3, which torchvision uses for both."""


class RPNLoss(DenseCriterion):
    """Binary cross-entropy over the sampled anchors, a box cost over the positives, both per sampled anchor.

    The sums over the whole batch are divided by the weight of all sampled anchors, averaged over processes, at least 1;
    negatives weigh 1. Logits are (B, N, 1): any class from 0 up is an object. ``box_weight`` scales the box cost.
    Source: Ren et al. 2015, section 3.1.2, with the normalizer of torchvision.

    >>> from detkit.boxes import DeltaCoder
    >>> boxes, ones = torch.tensor([[[0.0, 0, 4, 4]]]).expand(1, 4, 4), torch.ones(1, 4)
    >>> predictions = DensePredictions(torch.zeros(1, 4, 1), torch.ones(1, 4, 4))
    >>> assigned = Assigned(torch.tensor([[0, -1, -2, -2]]), boxes, ones, ones)
    >>> losses = RPNLoss()(predictions, assigned, boxes[0], DeltaCoder())
    >>> {name: round(float(loss), 4) for name, loss in losses.items()}
    {'objectness': 0.6931, 'box': 1.8889}
    """

    @door
    def __init__(self, box_cost: BoxCost = sharp_l1_cost, *, box_weight: NotNegative = 1.0) -> None:
        super().__init__()
        check_cost("RPNLoss", box_cost, BOX_COST)
        self.box_cost, self.box_weight = box_cost, box_weight

    @door
    def forward(
        self, predictions: DensePredictions, assigned: Assigned, anchors: Anchors | Tensor, coder: BoxCoder
    ) -> dict[str, Float[Tensor, ""]]:
        """Losses "objectness" and "box", weighted. Half precision is promoted.

        Raises ValueError if shapes disagree.
        """
        assigned = assigned._replace(labels=assigned.labels.clamp(max=0))  # an object, of whatever class
        check_predictions(self, predictions, assigned)
        if predictions.logits.shape[2] != 1:
            raise ValueError(f"RPNLoss: logits have shape {tuple(predictions.logits.shape)}; allowed is (B, N, 1)")
        labels, judged = assigned.labels, assigned.labels != IGNORED
        logits = torch.where(judged, promote(predictions.logits)[..., 0], 0)
        costs = F.binary_cross_entropy_with_logits(logits, (labels >= 0).to(logits), reduction="none")
        return _per_sampled(self, {"objectness": costs}, predictions, assigned, anchors, coder)

    @door
    def scores(self, predictions: DensePredictions) -> Float[Tensor, "B N 1"]:
        """The probability of an object."""
        return sigmoid_scores(predictions)

    @door
    def num_classes(self, predictions: DensePredictions) -> int:
        """One: an object of any class."""
        return 1

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"{described(self.box_cost)}, box_weight={self.box_weight}"


class RCNNLoss(DenseCriterion):
    """Cross-entropy over the sampled boxes, a box cost over the positives, both per sampled box.

    The sums over the whole batch are divided by the weight of all sampled boxes, averaged over processes, at least 1;
    negatives weigh 1. Logits are (B, N, C + 1) with background last; deltas are those of each box's class.
    ``box_weight`` scales the box cost; the paper's is smooth L1 with ``beta=1``. ``label_smoothing`` is the mass moved
    from the true class to the others, background included, as in :func:`~detkit.losses.label_smoothed_cross_entropy`.
    Source: Girshick 2015, "Fast R-CNN", section 2.3, with torchvision's beta and normalizer.

    >>> from detkit.boxes import DeltaCoder
    >>> boxes, ones = torch.tensor([[[0.0, 0, 4, 4]]]).expand(1, 4, 4), torch.ones(1, 4)
    >>> predictions = DensePredictions(torch.zeros(1, 4, 3), torch.ones(1, 4, 4))
    >>> assigned = Assigned(torch.tensor([[1, -1, -2, -2]]), boxes, ones, ones)
    >>> losses = RCNNLoss()(predictions, assigned, boxes[0], DeltaCoder())
    >>> {name: round(float(loss), 4) for name, loss in losses.items()}
    {'classification': 1.0986, 'box': 1.8889}
    """

    @door
    def __init__(
        self, box_cost: BoxCost = sharp_l1_cost, *, box_weight: NotNegative = 1.0, label_smoothing: Fraction = 0.0
    ) -> None:
        super().__init__()
        check_cost("RCNNLoss", box_cost, BOX_COST)
        self.box_cost, self.box_weight, self.label_smoothing = box_cost, box_weight, label_smoothing

    @door
    def forward(
        self, predictions: DensePredictions, assigned: Assigned, anchors: Anchors | Tensor, coder: BoxCoder
    ) -> dict[str, Float[Tensor, ""]]:
        """Losses "classification" and "box", weighted.

        Labels are 0..C-1, NEGATIVE, or IGNORED if not sampled. Half precision is promoted. Raises ValueError if shapes
        disagree or a label is out of range (on accelerators with ``DETKIT_CHECKS=full``).
        """
        check_predictions(self, predictions, assigned)
        labels, background = assigned.labels, self.num_classes(predictions)
        classes = torch.where(labels == NEGATIVE, background, labels)
        costs = label_smoothed_cross_entropy(predictions.logits, classes, smoothing=self.label_smoothing)
        return _per_sampled(self, {"classification": costs}, predictions, assigned, anchors, coder)

    @door
    def scores(self, predictions: DensePredictions) -> Float[Tensor, "B N C"]:
        """Softmax probabilities of the C classes, without background."""
        return softmax_scores(predictions)

    @door
    def num_classes(self, predictions: DensePredictions) -> int:
        """One less than the number of logits: the last one is background."""
        return predictions.logits.shape[-1] - 1

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"{described(self.box_cost)}, box_weight={self.box_weight}, label_smoothing={self.label_smoothing}"


def _per_sampled(
    criterion: RPNLoss | RCNNLoss,
    costs: dict[str, Float[Tensor, "B N"]],
    predictions: DensePredictions,
    assigned: Assigned,
    anchors: Anchors | Tensor,
    coder: BoxCoder,
) -> dict[str, Float[Tensor, ""]]:
    """``costs`` and box costs, each summed over the sampled rows and divided by their weight."""
    sampled = assigned.labels != IGNORED
    box = criterion.box_weight * box_costs(criterion.box_cost, predictions.deltas, assigned, anchors, coder)
    weights = torch.where(sampled, assigned.weights, 0)
    count = mean_count(sampled, box, weights=weights)
    return {name: (cost * weights).sum() / count for name, cost in {**costs, "box": box}.items()}
