"""The losses of two-stage detectors: is it an object (RPN), and then which class and where exactly (R-CNN).

Both judge the rows that a sampler chose: whatever it left out comes as IGNORED and counts for nothing.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from detkit._inputs import check_not_negative, promote
from detkit.dist import all_reduce_mean
from detkit.losses.labels import check_dense_shapes, check_labels
from detkit.losses.regression import smooth_l1_loss
from detkit.structures import IGNORED, NEGATIVE

BETA = 1 / 9
"""Where smooth L1 bends, in both stages: the RPN's sigma of 3 as a beta, which torchvision uses for both."""


class RPNLoss(nn.Module):
    """Binary cross-entropy over the sampled anchors, smooth L1 over the positives, both per sampled anchor.

    The sums over the whole batch are divided by the number of sampled anchors, averaged over processes, at least 1.
    ``box_weight`` scales the second, ``beta`` is the bend of smooth L1.
    Source: Ren et al. 2015, section 3.1.2, with the normalizer of torchvision.

    >>> logits, deltas = torch.zeros(1, 4, 1), torch.zeros(1, 4, 4)
    >>> losses = RPNLoss()(logits, deltas, torch.tensor([[0, -1, -2, -2]]), torch.ones(1, 4, 4))
    >>> {name: round(float(loss), 4) for name, loss in losses.items()}
    {'objectness': 0.6931, 'box': 1.8889}
    """

    def __init__(self, *, box_weight: float = 1.0, beta: float = BETA) -> None:
        super().__init__()
        check_not_negative("RPNLoss", box_weight=box_weight, beta=beta)
        self.box_weight, self.beta = box_weight, beta

    def forward(
        self,
        logits: Float[Tensor, "B N 1"],
        deltas: Float[Tensor, "B N 4"],
        labels: Int[Tensor, "B N"],
        delta_targets: Float[Tensor, "B N 4"],
        weights: Float[Tensor, "B N"] | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """Losses "objectness" and "box", weighted.

        labels (B, N): any class from 0 up is an object, NEGATIVE is none, IGNORED was not sampled. ``weights`` (B, N)
        scale each anchor's share. Half precision is promoted. Raises ValueError where shapes disagree.
        """
        check_dense_shapes("RPNLoss", logits, deltas, labels, delta_targets, weights, outputs="outputs")
        if logits.shape[2] != 1:
            raise ValueError(f"RPNLoss: logits have shape {tuple(logits.shape)}; allowed is (B, N, 1)")
        logits, share, count = _only(labels != IGNORED, logits), _share(labels, weights), _count(labels)
        costs = F.binary_cross_entropy_with_logits(logits[..., 0], (labels >= 0).to(logits), reduction="none")
        return {
            "objectness": (costs * share).sum() / count,
            "box": self.box_weight * _box_sum(deltas, delta_targets, labels, share, self.beta) / count,
        }

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"box_weight={self.box_weight}, beta={self.beta:.4g}"


class RCNNLoss(nn.Module):
    """Cross-entropy over the sampled boxes, smooth L1 over the positives, both per sampled box.

    The sums over the whole batch are divided by the number of sampled boxes, averaged over processes, at least 1.
    ``box_weight`` scales the second, ``beta`` is the bend of smooth L1 (the paper's 1 by ``beta=1``).
    Source: Girshick 2015, "Fast R-CNN", section 2.3, with the bend and the normalizer of torchvision.

    >>> logits, deltas = torch.zeros(1, 4, 3), torch.zeros(1, 4, 4)
    >>> losses = RCNNLoss()(logits, deltas, torch.tensor([[1, -1, -2, -2]]), torch.ones(1, 4, 4))
    >>> {name: round(float(loss), 4) for name, loss in losses.items()}
    {'classification': 1.0986, 'box': 1.8889}
    """

    def __init__(self, *, box_weight: float = 1.0, beta: float = BETA) -> None:
        super().__init__()
        check_not_negative("RCNNLoss", box_weight=box_weight, beta=beta)
        self.box_weight, self.beta = box_weight, beta

    def forward(
        self,
        logits: Float[Tensor, "B N classes"],
        deltas: Float[Tensor, "B N 4"],
        labels: Int[Tensor, "B N"],
        delta_targets: Float[Tensor, "B N 4"],
        weights: Float[Tensor, "B N"] | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """Losses "classification" and "box", weighted.

        logits (B, N, C + 1) with background last; deltas (B, N, 4) those of each box's class; labels (B, N): class
        0..C-1, NEGATIVE, or IGNORED where not sampled. ``weights`` (B, N) scale each box's share. Half precision is
        promoted. Raises ValueError where shapes disagree, and for a label outside the range (on accelerators with
        ``DETKIT_CHECKS=full``).
        """
        check_dense_shapes("RCNNLoss", logits, deltas, labels, delta_targets, weights, outputs="outputs")
        background = logits.shape[-1] - 1
        check_labels(labels, background, lowest=NEGATIVE, function="RCNNLoss", name="labels")
        classes = torch.where(labels >= 0, labels, background)
        logits = _only(labels != IGNORED, logits)
        costs = -logits.log_softmax(dim=-1).gather(2, classes[..., None]).squeeze(2)
        share, count = _share(labels, weights), _count(labels)
        return {
            "classification": (costs * share).sum() / count,
            "box": self.box_weight * _box_sum(deltas, delta_targets, labels, share, self.beta) / count,
        }

    def scores(self, logits: Float[Tensor, "B N classes"]) -> Float[Tensor, "B N C"]:
        """What the logits mean at inference: softmax probabilities of the C classes, background left out.

        >>> RCNNLoss().scores(torch.zeros(1, 1, 4))
        tensor([[[0.2500, 0.2500, 0.2500]]])
        """
        return promote(logits).softmax(dim=-1)[..., :-1]

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"box_weight={self.box_weight}, beta={self.beta:.4g}"


def _share(labels: Tensor, weights: Tensor | None) -> Tensor:
    share = torch.ones_like(labels, dtype=torch.float32) if weights is None else promote(weights)
    return torch.where(labels != IGNORED, share, 0)


def _count(labels: Tensor) -> Tensor:
    return all_reduce_mean((labels != IGNORED).sum().float()).clamp(min=1)


def _box_sum(deltas: Tensor, delta_targets: Tensor, labels: Tensor, share: Tensor, beta: float) -> Tensor:
    deltas, delta_targets = (_only(labels >= 0, values) for values in (deltas, delta_targets))
    return (smooth_l1_loss(deltas, delta_targets, beta=beta).sum(-1) * share).sum()


def _only(rows: Tensor, values: Tensor) -> Tensor:
    """``values`` promoted, zeros where ``rows`` is False: a NaN there must reach neither loss nor gradient."""
    return torch.where(rows[..., None], promote(values), 0)
