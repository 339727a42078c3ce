"""The loss of SSD: softmax over classes with hard negatives, smooth L1 on the deltas of the positives."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from detkit._inputs import check_fraction, check_not_negative, promote
from detkit.anchors import HardNegativeSampler
from detkit.anchors.sample import Scope
from detkit.dist import all_reduce_mean
from detkit.losses.classification import label_smoothed_cross_entropy
from detkit.losses.labels import check_dense_shapes, check_labels
from detkit.losses.regression import smooth_l1_loss
from detkit.structures import NEGATIVE


class MultiBoxLoss(nn.Module):
    """Cross-entropy over positives and hard negatives, plus smooth L1 over positives, per positive of the batch.

    Both sums are divided by the number of positives of the whole batch, averaged over processes, at least 1. A batch
    without positives costs nothing but keeps its gradients. ``negatives_per_positive``, ``scope`` and ``minimum`` are
    those of :class:`~detkit.anchors.HardNegativeSampler`; ``box_weight`` is SSD's alpha; ``beta`` the bend of smooth
    L1; ``label_smoothing`` the mass taken from the true class, shared by the others, of which background is one, as
    in :func:`~detkit.losses.label_smoothed_cross_entropy`.
    Source: Liu et al. 2016, equations 1 to 3.

    >>> logits, deltas = torch.zeros(1, 4, 3), torch.zeros(1, 4, 4)
    >>> labels = torch.tensor([[1, -1, -1, -2]])
    >>> losses = MultiBoxLoss()(logits, deltas, labels, torch.ones(1, 4, 4))
    >>> {name: round(float(loss), 4) for name, loss in losses.items()}
    {'classification': 3.2958, 'box': 2.0}
    """

    def __init__(
        self,
        *,
        negatives_per_positive: float = 3.0,
        scope: Scope = "image",
        minimum: int = 0,
        box_weight: float = 1.0,
        beta: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.sampler = HardNegativeSampler(negatives_per_positive, scope=scope, minimum=minimum)
        check_not_negative("MultiBoxLoss", box_weight=box_weight, beta=beta)
        check_fraction(label_smoothing, name="label_smoothing", function="MultiBoxLoss")
        self.box_weight, self.beta, self.label_smoothing = box_weight, beta, label_smoothing

    def forward(
        self,
        logits: Float[Tensor, "B N classes"],
        deltas: Float[Tensor, "B N 4"],
        labels: Int[Tensor, "B N"],
        delta_targets: Float[Tensor, "B N 4"],
        weights: Float[Tensor, "B N"] | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """Losses "classification" and "box", weighted.

        logits (B, N, C + 1) with background last; labels (B, N): class 0..C-1, NEGATIVE or IGNORED; ``weights`` (B, N)
        scale each anchor's share, as mixup wants. Half precision is promoted. Raises ValueError where shapes disagree,
        and for a label outside the range (on accelerators with ``DETKIT_CHECKS=full``).
        """
        check_dense_shapes("MultiBoxLoss", logits, deltas, labels, delta_targets, weights, outputs="C + 1")
        check_labels(labels, logits.shape[-1] - 1, lowest=NEGATIVE, function="MultiBoxLoss", name="labels")
        logits, deltas, delta_targets = promote(logits), promote(deltas), promote(delta_targets)
        positive = labels >= 0
        share = torch.ones_like(labels, dtype=torch.float32) if weights is None else promote(weights)
        count = all_reduce_mean(positive.sum().to(share)).clamp(min=1)
        costs = self._classification(logits, labels)
        chosen = positive | self.sampler(costs.detach(), labels)
        box_costs = smooth_l1_loss(deltas, delta_targets, beta=self.beta).sum(-1)
        return {
            "classification": (torch.where(chosen, costs, 0) * share).sum() / count,
            "box": self.box_weight * (torch.where(positive, box_costs, 0) * share).sum() / count,
        }

    def scores(self, logits: Float[Tensor, "B N classes"]) -> Float[Tensor, "B N C"]:
        """What the logits mean at inference: softmax probabilities of the C classes, background left out.

        >>> MultiBoxLoss().scores(torch.zeros(1, 1, 4))
        tensor([[[0.2500, 0.2500, 0.2500]]])
        """
        return promote(logits).softmax(dim=-1)[..., :-1]

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"box_weight={self.box_weight}, beta={self.beta}, label_smoothing={self.label_smoothing}"

    def _classification(self, logits: Tensor, labels: Tensor) -> Tensor:
        background = logits.shape[-1] - 1
        targets = torch.where(labels == NEGATIVE, background, labels)
        return label_smoothed_cross_entropy(logits, targets, smoothing=self.label_smoothing)
