"""The loss of the hourglass RPN: object, gray or background, and a box; of each level, summed over the levels."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from detkit._door import door
from detkit._inputs import promote
from detkit._ranges import NotNegative
from detkit.anchors import Assigned
from detkit.losses.box_costs import BoxCoder, smooth_l1_cost
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
from detkit.structures import GRAY, IGNORED, NEGATIVE, Anchors, DensePredictions


class HourglassLoss(DenseCriterion):
    """Cross-entropy of object, gray and background per sampled anchor, a box cost per positive; summed over the levels.

    On each level, costs are divided by the weight of the anchors that are judged there, box costs by that of the
    positives, both of the whole batch, averaged over processes, at least 1; negatives and gray ones weigh 1. Logits are
    (B, N, 3): object of any class, gray, background. Without ``gray`` they are (B, N, 2), and GRAY anchors teach
    nothing. ``box_weight`` scales the box cost. The score of an anchor is the probability of an object.
    The source does not say what its normalizers count. Source: Li et al. 2016, "Do We Really Need More Training Data
    For Object Localization", training loss.

    >>> from detkit.boxes import DeltaCoder
    >>> boxes, ones = torch.tensor([[[0.0, 0, 4, 4]]]).expand(1, 4, 4), torch.ones(1, 4)
    >>> predictions = DensePredictions(torch.zeros(1, 4, 3), torch.ones(1, 4, 4))
    >>> assigned = Assigned(torch.tensor([[0, -1, -2, -3]]), boxes, ones, ones)
    >>> losses = HourglassLoss()(predictions, assigned, boxes[0], DeltaCoder())
    >>> {name: round(float(loss), 4) for name, loss in losses.items()}
    {'objectness': 1.0986, 'box': 2.0}
    """

    has_background = True
    levels_apart = True

    @door
    def __init__(self, box_cost: BoxCost = smooth_l1_cost, *, gray: bool = True, box_weight: NotNegative = 1.0) -> None:
        super().__init__()
        check_cost("HourglassLoss", box_cost, BOX_COST)
        self.box_cost, self.reads_gray, self.box_weight = box_cost, gray, box_weight

    @door
    def forward(
        self, predictions: DensePredictions, assigned: Assigned, anchors: Anchors | Tensor, coder: BoxCoder
    ) -> dict[str, Float[Tensor, ""]]:
        """Losses "objectness" and "box", weighted, over the levels that ``anchors`` count.

        Labels are those of the objects, NEGATIVE, IGNORED or GRAY. Half precision is promoted. Raises ValueError if
        shapes disagree.
        """
        labels, weights, outputs = assigned.labels, assigned.weights, 2 + self.reads_gray
        if predictions.logits.shape[-1] != outputs:
            raise ValueError(
                f"HourglassLoss: logits have shape {tuple(predictions.logits.shape)}; allowed is (B, N, {outputs})"
            )
        assigned = assigned._replace(labels=torch.where(labels == GRAY, IGNORED, labels.clamp(max=0)))
        check_predictions(self, predictions, assigned)
        judged = (labels >= NEGATIVE) | ((labels == GRAY) & self.reads_gray)
        classes = torch.where(labels >= 0, 0, torch.where(labels == GRAY, 1, outputs - 1))
        logits = torch.where(judged[..., None], promote(predictions.logits), 0)
        costs = torch.where(judged, F.cross_entropy(logits.mT, classes, reduction="none"), 0) * weights
        boxes = box_costs(self.box_cost, predictions.deltas, assigned, anchors, coder) * weights
        counts = list(Anchors.of(anchors).counts)
        return {
            "objectness": _sum_of_means(costs, judged, weights, counts),
            "box": self.box_weight * _sum_of_means(boxes, labels >= 0, weights, counts),
        }

    @door
    def scores(self, predictions: DensePredictions) -> Float[Tensor, "B N 1"]:
        """The probability of an object."""
        return softmax_scores(predictions)[..., :1]

    @door
    def num_classes(self, predictions: DensePredictions) -> int:
        """One, an object of any class, of as many logits as there must be."""
        return predictions.logits.shape[-1] - 1 - self.reads_gray

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"{described(self.box_cost)}, gray={self.reads_gray}, box_weight={self.box_weight}"


def _sum_of_means(costs: Tensor, rows: Tensor, weights: Tensor, counts: list[int]) -> Float[Tensor, ""]:
    """The weighted ``costs`` of each level, over the weight of its ``rows``; the levels summed."""
    columns = zip(*(values.split(counts, dim=1) for values in (costs, rows, weights)), strict=True)
    return torch.stack([own.sum() / mean_count(some, own, weights=weight) for own, some, weight in columns]).sum()
