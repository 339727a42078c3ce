"""Which pairs of embeddings a metric loss looks at: all that there are, or those that a miner leaves."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from detkit._door import door
from detkit._inputs import on_host, promote
from detkit._ranges import NotNegative
from detkit.retrieval.fused import ones
from detkit.retrieval.labels import same_labels, takes_part

Miner = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class Pairs(NamedTuple):
    """Of every embedding with every reference: whether they are equal, or different, or (neither) no pair at all."""

    positives: Bool[Tensor, "N M"]
    negatives: Bool[Tensor, "N M"]

    @property
    def anchors(self) -> Bool[Tensor, "N"]:
        """Embeddings that are in a pair."""
        return (self.positives | self.negatives).sum(1) > 0


class MetricLoss(nn.Module):
    """A loss that brings equal embeddings together: ``loss(embeddings, labels)``, a scalar.

    embeddings: (N, D); labels: whole numbers (N,), or label sets (N, C), which are equal if they share a label. Rows of
    negative labels take no part, whatever they hold: shapes need not depend on how many objects there are. With
    ``reference_embeddings`` (M, D) and their labels every embedding is compared with these instead of with the others
    of the batch. A batch without anything to learn costs 0, with a gradient of zeros. ``function`` is called with these
    four: a loss of this unit with its settings, ``functools.partial(triplet_loss, margin=0.2)``, or another. For one
    that takes every label for a class, as those of pytorch-metric-learning do, ``takes_padding=False`` leaves out the
    rows of negative labels first. In several processes see :class:`GatheredLoss`.

    >>> MetricLoss(lambda embeddings, labels, *references: embeddings.sum())(torch.ones(2, 3), torch.tensor([0, 1]))
    tensor(6.)
    """

    def __init__(self, function: Callable[..., Tensor], *, takes_padding: bool = True) -> None:
        super().__init__()
        self.function, self.takes_padding = function, takes_padding

    @door
    def forward(
        self,
        embeddings: Float[Tensor, "N D"],
        labels: Shaped[Tensor, "N *C"],
        reference_embeddings: Float[Tensor, "M D"] | None = None,
        reference_labels: Shaped[Tensor, "M *C"] | None = None,
    ) -> Float[Tensor, ""]:
        """The loss of a batch."""
        if not self.takes_padding:
            embeddings, labels = _present(embeddings, labels)
            if reference_embeddings is not None and reference_labels is not None:
                reference_embeddings, reference_labels = _present(reference_embeddings, reference_labels)
            if not len(labels) or (reference_labels is not None and not len(reference_labels)):
                return embeddings.sum() * 0
        return self.function(embeddings, labels, *self._others(reference_embeddings, reference_labels))

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        settings = getattr(self.function, "keywords", {})
        return ", ".join(f"{name}={getattr(value, '__name__', repr(value))}" for name, value in settings.items())

    def _others(self, embeddings: Tensor | None, labels: Tensor | None) -> tuple[Tensor | None, ...]:
        """What the embeddings are compared with."""
        return embeddings, labels


def pairs_of(
    function: str,
    embeddings: Tensor,
    labels: Tensor,
    reference_embeddings: Tensor | None = None,
    reference_labels: Tensor | None = None,
) -> tuple[Tensor, Tensor, Pairs]:
    """Promoted embeddings and references, zeros where they take no part, and their pairs.

    Raises ValueError for shapes that do not fit, naming ``function``.

    >>> embeddings, references, pairs = pairs_of("loss", torch.eye(3), torch.tensor([4, 4, -1]))
    >>> pairs.positives.int().tolist()
    [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
    """
    rows, own = _checked(function, "", embeddings, labels)
    if reference_embeddings is None and reference_labels is None:
        same = same_labels(labels, labels)
        different = (own[:, None] & own & ~same).fill_diagonal_(False)
        return rows, rows, Pairs(same.fill_diagonal_(False), different)
    if reference_embeddings is None or reference_labels is None:
        raise ValueError(f"{function}: of reference_embeddings and reference_labels one is None; give both or neither")
    references, theirs = _checked(function, "reference_", reference_embeddings, reference_labels)
    if references.shape[1] != rows.shape[1]:
        raise ValueError(
            f"{function}: reference_embeddings have {references.shape[1]} numbers each; those of embeddings are "
            f"{rows.shape[1]}"
        )
    same = same_labels(labels, reference_labels)
    return rows, references, Pairs(same, own[:, None] & theirs & ~same)


@door
def hardest_pairs(
    distances: Float[Tensor, "N M"], positives: Bool[Tensor, "N M"], negatives: Bool[Tensor, "N M"]
) -> tuple[Bool[Tensor, "N M"], Bool[Tensor, "N M"]]:
    """The farthest positive and the nearest negative of each embedding; of equal ones the first.

    Source: Hermans et al. 2017, "In Defense of the Triplet Loss", equation 5 ("batch hard").

    >>> same = torch.tensor([[True, True, False, False]])
    >>> hardest_pairs(torch.tensor([[0.5, 0.9, 0.4, 0.7]]), same, ~same)
    (tensor([[False,  True, False, False]]), tensor([[False, False,  True, False]]))
    """
    return _only_largest(distances, positives), _only_largest(-distances, negatives)


@door
def semi_hard_pairs(
    distances: Float[Tensor, "N M"],
    positives: Bool[Tensor, "N M"],
    negatives: Bool[Tensor, "N M"],
    *,
    margin: NotNegative = 1.0,
) -> tuple[Bool[Tensor, "N M"], Bool[Tensor, "N M"]]:
    """The farthest positive of each embedding, and the negatives beyond it by less than ``margin``.

    Source: Schroff et al. 2015, "FaceNet", section 3.2; there of any positive.

    >>> same = torch.tensor([[True, False, False, False]])
    >>> semi_hard_pairs(torch.tensor([[0.5, 0.4, 0.6, 2.0]]), same, ~same)[1]
    tensor([[False, False,  True, False]])
    """
    positives, _ = hardest_pairs(distances, positives, negatives)
    farthest = _largest(distances, positives)
    return positives, negatives & (distances > farthest) & (distances < farthest + margin)


@door
def informative_pairs(
    distances: Float[Tensor, "N M"],
    positives: Bool[Tensor, "N M"],
    negatives: Bool[Tensor, "N M"],
    *,
    epsilon: NotNegative = 0.1,
) -> tuple[Bool[Tensor, "N M"], Bool[Tensor, "N M"]]:
    """Negatives nearer than the farthest positive + ``epsilon``, positives farther than the nearest negative - epsilon.

    Source: Wang et al. 2019, "Multi-Similarity Loss", section 4.1; there of cosine similarities.

    >>> same = torch.tensor([[True, True, False, False]])
    >>> informative_pairs(torch.tensor([[0.1, 0.9, 0.5, 1.1]]), same, ~same)
    (tensor([[False,  True, False, False]]), tensor([[False, False,  True, False]]))
    """
    farthest, nearest = _largest(distances, positives), -_largest(-distances, negatives)
    return positives & (distances > nearest - epsilon), negatives & (distances < farthest + epsilon)


@torch.no_grad()
def mined(miner: Miner | None, distances: Tensor, pairs: Pairs) -> Pairs:
    """The pairs that a miner leaves, all without one. Raises ValueError where it gives other than two masks of them.

    >>> same = torch.tensor([[True, False]])
    >>> mined(None, torch.ones(1, 2), Pairs(same, ~same)).positives
    tensor([[ True, False]])
    """
    if miner is None:
        return pairs
    left = Pairs(*miner(distances.detach(), *pairs))
    for kind, mask in left._asdict().items():
        if mask.dtype != torch.bool or mask.shape != distances.shape:
            raise ValueError(
                f"miner: its {kind} have shape {tuple(mask.shape)} and type {mask.dtype}; allowed are masks of shape "
                f"{tuple(distances.shape)}, torch.bool"
            )
    return left


def mean_over(costs: Float[Tensor, "..."], chosen: Bool[Tensor, "..."]) -> Float[Tensor, ""]:
    """The mean of the chosen costs, 0 if there are none.

    >>> mean_over(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False]))
    tensor(2.)
    """
    weights = ones(chosen, costs.dtype)
    weights /= weights.sum().clamp(min=1)  # first, since a sum of large costs overflows
    return (costs * weights).sum()


def _largest(values: Float[Tensor, "N M"], chosen: Bool[Tensor, "N M"]) -> Float[Tensor, "N 1"]:
    """The largest chosen value of each row, -inf where there is none."""
    return F.pad(torch.where(chosen, values, -torch.inf), (0, 1), value=-torch.inf).amax(1, keepdim=True)


def _only_largest(values: Float[Tensor, "N M"], chosen: Bool[Tensor, "N M"]) -> Bool[Tensor, "N M"]:
    best = chosen & (values == _largest(values, chosen))
    return best & (best.cumsum(1) == 1)


def _checked(function: str, prefix: str, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Promoted embeddings, zeros in padding, and which rows are none."""
    if embeddings.ndim != 2 or labels.ndim not in (1, 2) or len(labels) != len(embeddings):
        raise ValueError(
            f"{function}: {prefix}embeddings have shape {tuple(embeddings.shape)} and {prefix}labels "
            f"{tuple(labels.shape)}; allowed are (N, D) with (N,), or with (N, C) for label sets"
        )
    own = takes_part(labels)
    return without_padding(promote(embeddings), own), own


def _present(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The rows that are no padding."""
    own = takes_part(labels)
    return embeddings[own], labels[own]


def without_padding(embeddings: Float[Tensor, "N D"], own: Bool[Tensor, "N"]) -> Float[Tensor, "N D"]:
    """Embeddings, zeros in padding whatever it holds.

    >>> without_padding(torch.tensor([[2.0], [torch.nan]]), torch.tensor([True, False]))
    tensor([[2.],
            [0.]])
    """
    if on_host(own) and bool(own.all()):
        return embeddings
    return torch.where(own[:, None], embeddings, 0)
