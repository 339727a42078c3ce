"""The loss of SSD: softmax cross-entropy with hard negatives, smooth L1 on the deltas of the positives."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from detkit._door import door
from detkit._inputs import on_host, promote
from detkit._ranges import Fraction, NotNegative, Whole
from detkit.anchors import Assigned, HardNegativeSampler
from detkit.anchors.sample import Scope
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
    softmax_scores,
)
from detkit.structures import NEGATIVE, Anchors, DensePredictions


class MultiBoxLoss(DenseCriterion):
    """Cross-entropy over positives and hard negatives and a box cost over positives, normalized by the positives.

    Both sums are divided by the weight of all positives of the batch, averaged over processes, at least 1. The loss of
    a batch without positives is 0, but gradients still flow. Logits are (B, N, C + 1) with background last.
    ``negatives_per_positive``, ``scope`` and ``minimum`` are those of :class:`~detkit.anchors.HardNegativeSampler`;
    ``box_weight`` is SSD's alpha; ``label_smoothing`` is the mass moved from the true class to the others, background
    included, as in :func:`~detkit.losses.label_smoothed_cross_entropy`. Source: Liu et al. 2016, equations 1 to 3.

    >>> from detkit.boxes import DeltaCoder
    >>> boxes, ones = torch.tensor([[[0.0, 0, 4, 4]]]).expand(1, 4, 4), torch.ones(1, 4)
    >>> predictions = DensePredictions(torch.zeros(1, 4, 3), torch.ones(1, 4, 4))
    >>> assigned = Assigned(torch.tensor([[1, -1, -1, -2]]), boxes, ones, ones)
    >>> losses = MultiBoxLoss()(predictions, assigned, boxes[0], DeltaCoder())
    >>> {name: round(float(loss), 4) for name, loss in losses.items()}
    {'classification': 3.2958, 'box': 2.0}
    """

    has_background = True

    @door
    def __init__(
        self,
        box_cost: BoxCost = smooth_l1_cost,
        *,
        negatives_per_positive: NotNegative = 3.0,
        scope: Scope = "image",
        minimum: Whole = 0,
        box_weight: NotNegative = 1.0,
        label_smoothing: Fraction = 0.0,
    ) -> None:
        super().__init__()
        self.sampler = HardNegativeSampler(negatives_per_positive, scope=scope, minimum=minimum)
        check_cost("MultiBoxLoss", box_cost, BOX_COST)
        self.box_cost, self.box_weight, self.label_smoothing = box_cost, box_weight, label_smoothing

    @door
    def forward(
        self, predictions: DensePredictions, assigned: Assigned, anchors: Anchors | Tensor, coder: BoxCoder
    ) -> dict[str, Float[Tensor, ""]]:
        """Losses "classification" and "box", weighted.

        Labels are 0..C-1, NEGATIVE or IGNORED. Half precision is promoted. Raises ValueError if shapes disagree or a
        label is out of range (on accelerators with ``DETKIT_CHECKS=full``).
        """
        check_predictions(self, predictions, assigned)
        labels, weights = assigned.labels, assigned.weights
        logits, positive = promote(predictions.logits), labels >= 0
        chosen_alone = on_host(logits)  # elsewhere the number of chosen rows would be a sync
        costs = self._classification(logits.detach() if chosen_alone else logits, labels)
        chosen = positive | self.sampler(costs.detach(), labels, weights=weights)
        if chosen_alone:  # the other rows need no gradient, and nothing of them is kept
            costs = torch.zeros_like(costs).masked_scatter(chosen, self._classification(logits[chosen], labels[chosen]))
        box = box_costs(self.box_cost, predictions.deltas, assigned, anchors, coder)
        count = mean_count(positive, costs, weights=weights)
        return {
            "classification": (torch.where(chosen, costs, 0) * weights).sum() / count,
            "box": self.box_weight * (box * weights).sum() / count,
        }

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

    def _classification(self, logits: Float[Tensor, "*B Q"], labels: Int[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        targets = torch.where(labels == NEGATIVE, logits.shape[-1] - 1, labels)
        return label_smoothed_cross_entropy(logits, targets, smoothing=self.label_smoothing)
