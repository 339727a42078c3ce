"""The loss of RetinaNet: focal over all anchors and classes, L1 or GIoU on the boxes of the positives."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from detkit._inputs import check_not_negative, promote
from detkit.boxes import DeltaCoder
from detkit.dist import all_reduce_mean
from detkit.losses.classification import sigmoid_focal_loss
from detkit.losses.labels import check_dense_shapes
from detkit.losses.regression import generalized_box_iou_loss, smooth_l1_loss

Scope = Literal["image", "batch"]
_UNIT_ANCHOR = (0.0, 0.0, 1.0, 1.0)


class RetinaNetLoss(nn.Module):
    """Sigmoid focal loss over all anchors, a box loss over the positives, both per positive.

    Sums of an image are divided by the number of its positives, at least 1, and averaged over the images of all
    processes; with ``scope="batch"`` they are divided by the positives of the whole batch instead, averaged over
    processes. ``alpha`` and ``gamma`` are those of :func:`~detkit.losses.sigmoid_focal_loss`. ``box_cost`` maps deltas
    and their targets (B, N, 4) to costs (B, N): :class:`DeltaL1` (torchvision's first version is ``DeltaL1(beta=0)``,
    the default) or :class:`DeltaGIoU` (its second). ``box_weight`` scales the box loss.
    Source: Lin et al. 2017, "Focal Loss", sections 3 and 4.1. Raises ValueError for another scope or a negative weight.

    >>> logits, deltas = torch.zeros(1, 3, 2), torch.zeros(1, 3, 4)
    >>> losses = RetinaNetLoss(DeltaL1())(logits, deltas, torch.tensor([[1, -1, -2]]), torch.ones(1, 3, 4))
    >>> {name: round(float(loss), 4) for name, loss in losses.items()}
    {'classification': 0.4332, 'box': 4.0}
    """

    def __init__(
        self,
        box_cost: Callable[[Tensor, Tensor], Tensor],
        *,
        alpha: float = 0.25,
        gamma: float = 2.0,
        box_weight: float = 1.0,
        scope: Scope = "image",
    ) -> None:
        super().__init__()
        if scope not in ("image", "batch"):
            raise ValueError(f"RetinaNetLoss: scope={scope!r}; allowed is 'image' or 'batch'")
        check_not_negative("RetinaNetLoss", box_weight=box_weight)
        self.box_cost, self.alpha, self.gamma = box_cost, alpha, gamma
        self.box_weight, self.scope = box_weight, scope

    def forward(
        self,
        logits: Float[Tensor, "B N C"],
        deltas: Float[Tensor, "B N 4"],
        labels: Int[Tensor, "B N"],
        delta_targets: Float[Tensor, "B N 4"],
        weights: Float[Tensor, "B N"] | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """Losses "classification" and "box", weighted.

        logits (B, N, C) without a background column; labels (B, N): class 0..C-1, NEGATIVE or IGNORED; ``weights``
        (B, N) scale each anchor's share. Half precision is promoted. Raises ValueError where shapes disagree, and for a
        label outside the range (on accelerators with ``DETKIT_CHECKS=full``).
        """
        check_dense_shapes("RetinaNetLoss", logits, deltas, labels, delta_targets, weights)
        focal = sigmoid_focal_loss(logits, labels, alpha=self.alpha, gamma=self.gamma).sum(-1)
        positive = labels >= 0
        own = torch.where(positive[..., None], promote(deltas), 0)  # before the formula: a NaN there has a gradient
        box = torch.where(positive, self.box_cost(own, promote(delta_targets)), 0)
        if weights is not None:
            focal, box = focal * weights, box * weights
        share = self._share(labels, focal.dtype)
        return {
            "classification": (focal.sum(1) * share).sum(),
            "box": self.box_weight * (box.sum(1) * share).sum(),
        }

    def scores(self, logits: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """What the logits mean at inference: a probability for each class on its own.

        >>> RetinaNetLoss(DeltaL1()).scores(torch.zeros(1, 1, 2))
        tensor([[[0.5000, 0.5000]]])
        """
        return promote(logits).sigmoid()

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"alpha={self.alpha}, gamma={self.gamma}, box_weight={self.box_weight}, scope={self.scope!r}"

    def _share(self, labels: Tensor, dtype: torch.dtype) -> Float[Tensor, " B"]:
        """By what each image's sum is multiplied."""
        counts = (labels >= 0).sum(1).to(dtype)
        if self.scope == "image":
            images = all_reduce_mean(counts.new_full((), len(labels)))
            return 1 / (counts.clamp(min=1) * images)
        return (1 / all_reduce_mean(counts.sum()).clamp(min=1)).expand_as(counts)


class DeltaL1(nn.Module):
    """Smooth L1 of deltas, summed over the four: the absolute difference with ``beta=0``.

    >>> DeltaL1()(torch.tensor([[0.5, 0.0, 2.0, 0.0]]), torch.zeros(1, 4))
    tensor([2.5000])
    """

    def __init__(self, *, beta: float = 0.0) -> None:
        super().__init__()
        check_not_negative("DeltaL1", beta=beta)
        self.beta = beta

    def forward(self, deltas: Float[Tensor, "*B 4"], targets: Float[Tensor, "*B 4"]) -> Float[Tensor, "*B"]:
        """Costs (...) of deltas (..., 4) against their targets."""
        return smooth_l1_loss(deltas, targets, beta=self.beta).sum(-1)

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"beta={self.beta}"


class DeltaGIoU(nn.Module):
    """``1 - GIoU`` of the boxes that deltas describe; ``coder`` is the one that the detector decodes with.

    GIoU does not change when both boxes are shifted or stretched along an axis, so the anchor need not be known: both
    are decoded from a unit square. Source: Rezatofighi et al. 2019.

    >>> DeltaGIoU(DeltaCoder())(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), torch.zeros(1, 4))
    tensor([1.])
    """

    anchor: Tensor

    def __init__(self, coder: DeltaCoder) -> None:
        super().__init__()
        self.coder = coder
        self.register_buffer("anchor", torch.tensor(_UNIT_ANCHOR, dtype=torch.float64), persistent=False)

    def forward(self, deltas: Float[Tensor, "*B 4"], targets: Float[Tensor, "*B 4"]) -> Float[Tensor, "*B"]:
        """Costs (...) of deltas (..., 4) against their targets."""
        boxes, others = (self.coder.decode(rows, self.anchor.to(rows)) for rows in (deltas, targets))
        return generalized_box_iou_loss(boxes, others)
