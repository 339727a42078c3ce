"""The loss of FCOS: focal over all points and classes, GIoU on the boxes of the positives, and their centerness."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from detkit._inputs import check_not_negative, promote
from detkit.anchors.center import centerness
from detkit.dist import all_reduce_mean
from detkit.losses.classification import sigmoid_focal_loss
from detkit.losses.labels import check_dense_shapes
from detkit.losses.regression import generalized_box_iou_loss


class FCOSLoss(nn.Module):
    """Sigmoid focal loss over all points; GIoU and the cross-entropy of the centerness over the positives.

    All three sums are divided by the number of positives of the whole batch, averaged over processes, at least 1.
    ``alpha`` and ``gamma`` are those of :func:`~detkit.losses.sigmoid_focal_loss`; ``box_weight`` and
    ``centerness_weight`` scale the others. Source: Tian et al. 2019, equations 2 and 3, with GIoU as in the version of
    2020. Raises ValueError for negative weights.

    >>> logits, distances = torch.zeros(1, 2, 3), torch.ones(1, 2, 4)
    >>> losses = FCOSLoss()(logits, distances, torch.zeros(1, 2), torch.tensor([[1, -1]]), 2 * distances)
    >>> {name: round(float(loss), 4) for name, loss in losses.items()}
    {'classification': 0.6931, 'box': 0.75, 'centerness': 0.6931}
    """

    def __init__(
        self, *, alpha: float = 0.25, gamma: float = 2.0, box_weight: float = 1.0, centerness_weight: float = 1.0
    ) -> None:
        super().__init__()
        check_not_negative("FCOSLoss", box_weight=box_weight, centerness_weight=centerness_weight)
        self.alpha, self.gamma = alpha, gamma
        self.box_weight, self.centerness_weight = box_weight, centerness_weight

    def forward(
        self,
        logits: Float[Tensor, "B N C"],
        distances: Float[Tensor, "B N 4"],
        center_logits: Float[Tensor, "B N"],
        labels: Int[Tensor, "B N"],
        distance_targets: Float[Tensor, "B N 4"],
        weights: Float[Tensor, "B N"] | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """Losses "classification", "box" and "centerness", weighted.

        ``distances`` (B, N, 4) to left, top, right and bottom, and their targets, are in one unit, whichever; labels
        (B, N): class 0..C-1, NEGATIVE or IGNORED; ``weights`` (B, N) scale each point's share. Half precision is
        promoted. Raises ValueError where shapes disagree, and for a label outside the range (on accelerators with
        ``DETKIT_CHECKS=full``).
        """
        check_dense_shapes("FCOSLoss", logits, distances, labels, distance_targets, weights)
        if center_logits.shape != labels.shape:
            raise ValueError(
                f"FCOSLoss: center_logits have shape {tuple(center_logits.shape)}; allowed is {tuple(labels.shape)}"
            )
        focal = sigmoid_focal_loss(logits, labels, alpha=self.alpha, gamma=self.gamma).sum(-1)
        positive, targets = (labels >= 0), promote(distance_targets).detach()
        own = torch.where(positive[..., None], promote(distances), 0)  # before the formula: a NaN there has a gradient
        box = torch.where(positive, generalized_box_iou_loss(_boxes(own), _boxes(targets)), 0)
        logit = torch.where(positive, promote(center_logits), 0)
        entropy = F.binary_cross_entropy_with_logits(logit, centerness(targets).to(logit), reduction="none")
        costs = focal, box, torch.where(positive, entropy, 0)
        if weights is not None:
            costs = tuple(cost * weights for cost in costs)
        count = all_reduce_mean(positive.sum().to(focal.dtype)).clamp(min=1)
        classification, box, center = (cost.sum() / count for cost in costs)
        return {
            "classification": classification,
            "box": self.box_weight * box,
            "centerness": self.centerness_weight * center,
        }

    def scores(self, logits: Float[Tensor, "B N C"], center_logits: Float[Tensor, "B N"]) -> Float[Tensor, "B N C"]:
        """What the logits mean at inference: the geometric mean of class probability and centerness.

        >>> FCOSLoss().scores(torch.zeros(1, 1, 2), torch.zeros(1, 1))
        tensor([[[0.5000, 0.5000]]])
        """
        return (promote(logits).sigmoid() * promote(center_logits).sigmoid()[..., None]).sqrt()

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        names = "alpha", "gamma", "box_weight", "centerness_weight"
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)


def _boxes(distances: Float[Tensor, "B N 4"]) -> Float[Tensor, "B N 4"]:
    """Boxes xyxy around a point at 0: GIoU does not change with where it is, nor with the unit."""
    return torch.cat((-distances[..., :2], distances[..., 2:]), dim=-1)
