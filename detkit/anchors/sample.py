"""Samplers: which anchors enter the loss, as there are far more negatives than positives.

A sampler returns a mask (B, N), True for each sampled anchor; the labels tell positives from negatives.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from detkit._door import door
from detkit._noise import uniform_like
from detkit._ranges import Count, Fraction, NotNegative, Whole
from detkit._ranking import stable_topk
from detkit.structures import GRAY, NEGATIVE
from detkit.structures.labels import check_weights

Scope = Literal["image", "batch"]
_PARTS = 1024  # of a positive: sums of weights are rounded to these
_MANY = 2.0**53  # more than there are anchors, and int64 holds it


class HardNegativeSampler(nn.Module):
    """Hard negative mining: samples the negatives with the highest loss, a few for every positive.

    It samples ``negatives_per_positive`` times the weight of the positives, at least ``minimum``, but no negative with
    loss 0. ``scope="image"`` counts and ranks within each image (Caffe, torchvision), ``"batch"`` over the whole batch
    (Keras ports). Ties go to the lower index. Source: Liu et al. 2016, section 2.2 ("Hard negative mining").

    Raises ValueError for a negative or infinite ratio, a negative minimum, or another scope.

    >>> losses, labels = torch.tensor([[9.0, 0.1, 0.3, 0.2]]), torch.tensor([[4, -1, -1, -1]])
    >>> HardNegativeSampler(2.0)(losses, labels)
    tensor([[False, False,  True,  True]])
    """

    @door
    def __init__(
        self, negatives_per_positive: NotNegative = 3.0, *, scope: Scope = "image", minimum: Whole = 0
    ) -> None:
        super().__init__()
        if scope not in ("image", "batch"):
            raise ValueError(f"HardNegativeSampler: scope={scope!r}; allowed is 'image' or 'batch'")
        self.negatives_per_positive, self.scope, self.minimum = negatives_per_positive, scope, minimum

    @door
    @torch.no_grad()
    def forward(
        self,
        losses: Float[Tensor, "B N"],
        labels: Int[Tensor, "B N"],
        *,
        weights: Float[Tensor, "B N"] | None = None,
    ) -> Bool[Tensor, "B N"]:
        """True for each sampled negative.

        losses (B, N): the loss of each anchor as background; labels (B, N): its class, NEGATIVE or IGNORED; weights
        (B, N): as how many positives each one counts, by default 1; a negative or NaN one of a positive is a
        ValueError.
        """
        shapes = [tuple(given.shape) for given in (labels, weights) if given is not None]
        if any(shape != tuple(losses.shape) for shape in shapes):
            raise ValueError(
                f"HardNegativeSampler: losses have shape {tuple(losses.shape)}, labels and weights {shapes}; "
                "they must be equal"
            )
        if weights is None:
            weights = torch.ones_like(losses)
        else:
            check_weights(torch.where(labels >= 0, weights, 1), function="HardNegativeSampler")
        shape = losses.shape
        if self.scope == "batch":
            losses, labels, weights = (rows.reshape(1, -1) for rows in (losses, labels, weights))
        eligible = (labels == NEGATIVE) & (losses > 0)
        positives = torch.where(labels >= 0, weights.float(), 0).sum(1)
        positives = (positives * _PARTS).round() / _PARTS  # weights that add up to a whole number are that number
        wanted = positives * min(self.negatives_per_positive, _MANY)
        wanted = wanted.clamp(max=_MANY).long().clamp(min=self.minimum)
        order = torch.where(eligible, losses, -torch.inf).sort(dim=1, descending=True, stable=True).indices
        places = torch.arange(order.shape[1], device=order.device).expand_as(order)
        rank = torch.empty_like(order).scatter_(1, order, places)
        return (eligible & (rank < wanted[:, None])).reshape(shape)

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"{self.negatives_per_positive}, scope={self.scope!r}, minimum={self.minimum}"


class BalancedSampler(nn.Module):
    """Samples up to ``count`` anchors of each image at random, of which at most a fraction are positive.

    It samples int(count * positive_fraction) positives, or all if there are fewer, and fills up to ``count`` with
    negatives, or all if there are fewer; never IGNORED anchors. Sampling is uniform and without replacement. Defaults
    are those of RPN; Faster R-CNN's second stage uses (512, positive_fraction=0.25). Source: Ren et al. 2015, section
    3.1.3, and Girshick 2015, section 2.3.

    With ``negatives_per_positive`` it stops at so many negatives for each sampled positive, and at count / 4 in an
    image without any. With ``gray_per_other`` it samples GRAY anchors beyond ``count``: so many for each that is
    sampled besides, and that share of count / 4 in an image where none is. The hourglass RPN uses (300,
    negatives_per_positive=2.0, gray_per_other=0.5), and all numbers are rounded down. Source: Li et al. 2016, "Do We
    Really Need More Training Data For Object Localization", remark (b), with the numbers of the authors' code.

    Raises ValueError for a count below 0 and a fraction outside [0, 1].

    >>> labels = torch.tensor([[3, 3, -1, -2, 0, -1]])
    >>> chosen = BalancedSampler(4)(labels)
    >>> (chosen & (labels >= 0)).sum(1), (chosen & (labels == NEGATIVE)).sum(1)
    (tensor([2]), tensor([2]))
    """

    @door
    def __init__(
        self,
        count: Count = 256,
        *,
        positive_fraction: Fraction = 0.5,
        negatives_per_positive: NotNegative | None = None,
        gray_per_other: Fraction = 0.0,
    ) -> None:
        super().__init__()
        self.count, self.positive_fraction = count, positive_fraction
        self.negatives_per_positive, self.gray_per_other = negatives_per_positive, gray_per_other

    @property
    def most_positives(self) -> int:
        """The largest number of positives sampled in an image."""
        return int(self.count * self.positive_fraction)

    @property
    def most(self) -> int:
        """The largest number of anchors sampled in an image: what it is padded to."""
        return self.count + int(self.count * self.gray_per_other)

    @door
    @torch.no_grad()
    def forward(self, labels: Int[Tensor, "B N"], *, generator: torch.Generator | None = None) -> Bool[Tensor, "B N"]:
        """True for each sampled anchor, positive, negative or gray.

        labels (B, N): each anchor's class or object (from 0), NEGATIVE, IGNORED or GRAY. The same ``generator`` state
        gives the same sample, whatever the number of threads; under fullgraph compilation it must be None.
        """
        lots = 1 - uniform_like(labels, generator, dtype=torch.float32)  # in (0, 1]: ineligible anchors get 0
        positives = _best(lots, labels >= 0, self.most_positives)
        sampled = positives.sum(1, keepdim=True)
        room = self.count - sampled
        if self.negatives_per_positive is not None:
            wanted = (sampled * min(self.negatives_per_positive, self.count)).long()
            room = torch.where(sampled > 0, torch.minimum(room, wanted), self.count // 4)
        chosen = positives | _best(lots, labels == NEGATIVE, self.count, room)
        if self.gray_per_other == 0:
            return chosen
        others = chosen.sum(1, keepdim=True)
        room = (torch.where(others > 0, others, self.count / 4) * self.gray_per_other).long()
        return chosen | _best(lots, labels == GRAY, self.most - self.count, room)

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        shown = f"{self.count}, positive_fraction={self.positive_fraction}"
        if self.negatives_per_positive is not None:
            shown += f", negatives_per_positive={self.negatives_per_positive}"
        return shown + (f", gray_per_other={self.gray_per_other}" if self.gray_per_other else "")


def sampled_rows(
    chosen: Bool[Tensor, "B N"], labels: Int[Tensor, "B N"], count: int
) -> tuple[Int[Tensor, "B K"], Bool[Tensor, "B K"]]:
    """Indices (B, K) of the sampled anchors, positives first, padded to one length, and which of them are valid.

    ``chosen`` (B, N) is a sampler's mask of at most ``count`` anchors per image, ``labels`` (B, N) what it sampled
    from; K = min(count, N). Indices rise within positives and within negatives.

    >>> chosen, labels = torch.tensor([[True, False, True]]), torch.tensor([[-1, -1, 4]])
    >>> sampled_rows(chosen, labels, 2)
    (tensor([[2, 0]]), tensor([[True, True]]))
    """
    rows = stable_topk(chosen.float() * (1 + (labels >= 0)), count)
    return rows, chosen.gather(1, rows)


def _best(
    lots: Float[Tensor, "B N"], eligible: Bool[Tensor, "B N"], most: int, room: Int[Tensor, "B 1"] | None = None
) -> Bool[Tensor, "B N"]:
    """True for the eligible with the highest lots above 0 in each row: at most ``most``, and at most ``room``."""
    padded = F.pad(eligible, (0, most))  # there are always ``most`` then: no branch in compiled code
    winners = torch.where(padded, F.pad(lots, (0, most)), 0).topk(most, dim=1).indices
    taken = padded.gather(1, winners)
    if room is not None:
        taken &= torch.arange(most, device=lots.device) < room
    return torch.zeros_like(padded).scatter(1, winners, taken)[:, : lots.shape[1]]
