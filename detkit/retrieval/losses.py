"""Losses of pairs and triplets of embeddings: contrastive, triplet, supervised contrastive, multi-similarity.

Each is a function, and a module that holds its settings. All are scalars of a whole batch: see :class:`MetricLoss`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from detkit._door import door
from detkit._gradient import with_gradient
from detkit._inputs import check_broadcast, promote
from detkit._ranges import Finite, NotNegative, Positive
from detkit.retrieval import fused
from detkit.retrieval.distances import EuclideanDistance, directions, inner_products
from detkit.retrieval.pairs import MetricLoss, Miner, Pairs, mean_over, mined, pairs_of

Measure = Callable[[Tensor, Tensor], Tensor]
Reduction = Literal["all", "active"]
_EUCLIDEAN = EuclideanDistance()


@door
def contrastive_cost(
    distances: Float[Tensor, "..."], same: Bool[Tensor, "..."], *, margin: NotNegative = 1.0, squared: bool = True
) -> Float[Tensor, "..."]:
    """Half the squared distance of equal pairs, half the squared lack of ``margin`` of different ones; unreduced.

    Not ``squared``: the distance and the lack themselves. Source: Hadsell et al. 2006, "Dimensionality Reduction by
    Learning an Invariant Mapping", equation 4.

    >>> contrastive_cost(torch.tensor([1.0, 0.5]), torch.tensor([True, False])).mean()
    tensor(0.3125)
    """
    distances, same = _costed("contrastive_cost", distances, same)
    return with_gradient(_contrasted, fused.contrasted, distances, same, margin=margin, squared=squared)


def _contrasted(distances: Tensor, same: Tensor, *, margin: float, squared: bool) -> Tensor:
    costs = torch.where(same, distances, (margin - distances).relu())
    return costs.square() / 2 if squared else costs


@door
def chopra_cost(
    distances: Float[Tensor, "..."], same: Bool[Tensor, "..."], *, bound: Positive = 1.0
) -> Float[Tensor, "..."]:
    """2 / Q E^2 of equal pairs, 2 Q exp(-2.77 E / Q) of different ones, unreduced: Q bounds the distance E.

    There E is the L1 distance, ``distance=functools.partial(torch.cdist, p=1)`` of :func:`contrastive_loss`.
    Source: Chopra et al. 2005, "Learning a Similarity Metric Discriminatively", equation 8.

    >>> chopra_cost(torch.tensor([1.0, 0.0]), torch.tensor([True, False]), bound=2.0)
    tensor([1., 4.])
    """
    distances, same = _costed("chopra_cost", distances, same)
    return torch.where(same, 2 / bound * distances.square(), 2 * bound * (-2.77 * distances / bound).exp())


def _costed(function: str, distances: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """Promoted distances and which are of equal pairs, of one shape."""
    if same.dtype != torch.bool:
        raise ValueError(f"{function}: same has type {same.dtype}; allowed is torch.bool")
    allowed = "one truth value for each distance"
    check_broadcast(function, allowed, distances=distances.shape, same=same.shape)
    distances, same = torch.broadcast_tensors(promote(distances), same)
    return distances, same


@door
def contrastive_loss(
    embeddings: Float[Tensor, "N D"],
    labels: Shaped[Tensor, "N *C"],
    reference_embeddings: Float[Tensor, "M D"] | None = None,
    reference_labels: Shaped[Tensor, "M *C"] | None = None,
    *,
    cost: Callable[[Tensor, Tensor], Tensor] = contrastive_cost,
    distance: Measure = _EUCLIDEAN,
    miner: Miner | None = None,
    reduction: Reduction = "all",
) -> Float[Tensor, ""]:
    """The mean of ``cost(distances, same)`` over all pairs, see :class:`MetricLoss`.

    Another margin: ``cost=functools.partial(contrastive_cost, margin=0.5)``.
    ``reduction="active"``: the mean over the equal pairs that cost something, plus that over the different ones.
    ``miner(distances, positives, negatives)`` leaves some of the pairs, as :func:`hardest_pairs` does.

    >>> contrastive_loss(torch.tensor([[0.0, 0], [0.6, 0]]), torch.tensor([1, 2]))
    tensor(0.0800)
    """
    rows, references, pairs = pairs_of("contrastive_loss", embeddings, labels, reference_embeddings, reference_labels)
    distances = distance(rows, references)
    pairs = mined(miner, distances, pairs)
    costs = cost(distances, pairs.positives)
    if _is_all("contrastive_loss", reduction):
        return mean_over(costs, pairs.positives | pairs.negatives)
    return sum((mean_over(costs, kind & (costs > 0)) for kind in pairs), costs.new_zeros(()))


@door
def triplet_cost(
    to_positives: Float[Tensor, "..."], to_negatives: Float[Tensor, "..."], *, margin: NotNegative = 1.0
) -> Float[Tensor, "..."]:
    """By how much the positive is not nearer than the negative by ``margin``; unreduced.

    Source: Schroff et al. 2015, "FaceNet", equation 2; there of squared distances.

    >>> triplet_cost(torch.tensor(1.0), torch.tensor(1.5))
    tensor(0.5000)
    """
    return (promote(to_positives) - promote(to_negatives) + margin).relu()


@door
def triplet_loss(
    embeddings: Float[Tensor, "N D"],
    labels: Shaped[Tensor, "N *C"],
    reference_embeddings: Float[Tensor, "M D"] | None = None,
    reference_labels: Shaped[Tensor, "M *C"] | None = None,
    *,
    margin: NotNegative = 1.0,
    distance: Measure = _EUCLIDEAN,
    miner: Miner | None = None,
    reduction: Reduction = "active",
) -> Float[Tensor, ""]:
    """The mean :func:`triplet_cost` over all triplets of an anchor, an equal and a different embedding.

    By default over the ``"active"`` ones, which cost something, since those that cost nothing are soon nearly all, and
    would scale the gradient away. Triplets are counted by sorting, never formed: memory is that of the pairs.

    >>> embeddings = torch.tensor([[0.0, 0], [0.6, 0.8], [1.5, 0]])
    >>> round(triplet_loss(embeddings, torch.tensor([0, 0, 1])).item(), 4)
    0.6479
    """
    rows, references, pairs = pairs_of("triplet_loss", embeddings, labels, reference_embeddings, reference_labels)
    distances = distance(rows, references)
    pairs = mined(miner, distances, pairs)
    pushes = _pushes(distances.detach() + margin, distances.detach(), pairs)
    active = torch.where(pairs.positives, pushes, 0).sum()
    count = active
    if _is_all("triplet_loss", reduction):
        count = (pairs.positives.sum(1, dtype=distances.dtype) * pairs.negatives.sum(1)).sum()
    return ((pushes * distances).sum() + margin * active) / count.clamp(min=1)


@torch.no_grad()
def _pushes(reach: Float[Tensor, "N M"], distances: Float[Tensor, "N M"], pairs: Pairs) -> Float[Tensor, "N M"]:
    """How often each pair is in an active triplet: positive for equal pairs, negative for different ones.

    A triplet is active if its negative lies strictly within the ``reach`` of its positive. The sum of all costs is
    linear in the distances with these numbers as factors, which are therefore its gradient, too.
    """
    negatives = torch.where(pairs.negatives, distances, torch.inf).sort(1).values
    reaches = torch.where(pairs.positives, reach, torch.inf).sort(1).values
    within = torch.searchsorted(negatives, reach.contiguous())
    beyond = torch.searchsorted(reaches, distances.contiguous(), right=True)
    reached = pairs.positives.sum(1, keepdim=True) - beyond
    return torch.where(pairs.positives, within, torch.where(pairs.negatives, -reached, 0)).to(distances.dtype)


@door
def supervised_contrastive_loss(
    embeddings: Float[Tensor, "N D"],
    labels: Shaped[Tensor, "N *C"],
    reference_embeddings: Float[Tensor, "M D"] | None = None,
    reference_labels: Shaped[Tensor, "M *C"] | None = None,
    *,
    temperature: Positive = 0.1,
    miner: Miner | None = None,
) -> Float[Tensor, ""]:
    """The cross-entropy of each positive among all pairs of its anchor, by cosine / ``temperature``.

    The mean over the positives of an anchor, then over the anchors that have some. Source: Khosla et al. 2020,
    "Supervised Contrastive Learning", equation 2.

    >>> supervised_contrastive_loss(torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]]), torch.tensor([0, 0, 1, 1]))
    tensor(9.0...e-05)
    """
    name = "supervised_contrastive_loss"
    rows, references, pairs = pairs_of(name, embeddings, labels, reference_embeddings, reference_labels)
    cosines = cosines_of(rows, references)
    pairs = mined(miner, 1 - cosines, pairs)
    costs = with_gradient(_mean_entropies, fused.mean_entropies, cosines, *pairs, temperature=temperature)
    return mean_over(costs, pairs.positives.sum(1) > 0)


def _mean_entropies(cosines: Tensor, positives: Tensor, negatives: Tensor, *, temperature: float) -> Float[Tensor, "N"]:
    """The mean cross-entropy of each row's positives among all its pairs."""
    logits = cosines / temperature
    near = torch.where(positives, logits, 0).sum(1) / positives.sum(1).clamp(min=1)
    return log_sum(logits, positives | negatives) - near


@door
def multi_similarity_loss(
    embeddings: Float[Tensor, "N D"],
    labels: Shaped[Tensor, "N *C"],
    reference_embeddings: Float[Tensor, "M D"] | None = None,
    reference_labels: Shaped[Tensor, "M *C"] | None = None,
    *,
    alpha: Positive = 2.0,
    beta: Positive = 50.0,
    base: Finite = 0.5,
    miner: Miner | None = None,
) -> Float[Tensor, ""]:
    """Soft maxima of how far positives' cosines lie below ``base``, and negatives' above it; the mean over anchors.

    The paper's miner is :func:`informative_pairs`. Source: Wang et al. 2019, "Multi-Similarity Loss", equation 15.

    >>> multi_similarity_loss(torch.tensor([[1.0, 0], [1, 0], [0, 1]]), torch.tensor([0, 0, 1]))
    tensor(0.1044)
    """
    name = "multi_similarity_loss"
    rows, references, pairs = pairs_of(name, embeddings, labels, reference_embeddings, reference_labels)
    part = pairs.anchors
    cosines = cosines_of(rows, references)
    pairs = mined(miner, 1 - cosines, pairs)
    near = soft_extremes(cosines, pairs.positives, steepness=-alpha, base=base)
    far = soft_extremes(cosines, pairs.negatives, steepness=beta, base=base)
    return mean_over(far - near, part)


class ContrastiveLoss(MetricLoss):
    """:func:`contrastive_loss` with its settings; the margin is the cost's.

    >>> ContrastiveLoss(cost=partial(contrastive_cost, margin=0.5))(torch.eye(2), torch.tensor([1, 2]))
    tensor(0.)
    >>> ContrastiveLoss()(torch.tensor([[0.0, 0], [0.6, 0]]), torch.tensor([1, 2]))
    tensor(0.0800)
    """

    @door
    def __init__(
        self,
        *,
        cost: Callable[[Tensor, Tensor], Tensor] = contrastive_cost,
        distance: Measure = _EUCLIDEAN,
        miner: Miner | None = None,
        reduction: Reduction = "all",
    ) -> None:
        _is_all("ContrastiveLoss", reduction)
        super().__init__(partial(contrastive_loss, cost=cost, distance=distance, miner=miner, reduction=reduction))


class TripletLoss(MetricLoss):
    """:func:`triplet_loss` with its settings.

    >>> TripletLoss(margin=0.2)
    TripletLoss(margin=0.2, distance=EuclideanDistance(), miner=None, reduction='active')
    """

    @door
    def __init__(
        self,
        *,
        margin: NotNegative = 1.0,
        distance: Measure = _EUCLIDEAN,
        miner: Miner | None = None,
        reduction: Reduction = "active",
    ) -> None:
        _is_all("TripletLoss", reduction)
        super().__init__(partial(triplet_loss, margin=margin, distance=distance, miner=miner, reduction=reduction))


class SupervisedContrastiveLoss(MetricLoss):
    """:func:`supervised_contrastive_loss` with its settings.

    >>> SupervisedContrastiveLoss()
    SupervisedContrastiveLoss(temperature=0.1, miner=None)
    """

    @door
    def __init__(self, *, temperature: Positive = 0.1, miner: Miner | None = None) -> None:
        super().__init__(partial(supervised_contrastive_loss, temperature=temperature, miner=miner))


class MultiSimilarityLoss(MetricLoss):
    """:func:`multi_similarity_loss` with its settings.

    >>> MultiSimilarityLoss()
    MultiSimilarityLoss(alpha=2.0, beta=50.0, base=0.5, miner=None)
    """

    @door
    def __init__(
        self, *, alpha: Positive = 2.0, beta: Positive = 50.0, base: Finite = 0.5, miner: Miner | None = None
    ) -> None:
        super().__init__(partial(multi_similarity_loss, alpha=alpha, beta=beta, base=base, miner=miner))


def soft_extremes(
    cosines: Float[Tensor, "N M"], chosen: Bool[Tensor, "N M"], *, steepness: float, base: float
) -> Float[Tensor, "N"]:
    """log(1 + sum exp(steepness * (cosine - base))) / steepness, over the chosen of each row.

    A soft maximum of 0 and cosine - base; a soft minimum if the steepness is negative.

    >>> cosines, chosen = torch.tensor([[0.5, 0.9]]), torch.tensor([[True, False]])
    >>> soft_extremes(cosines, chosen, steepness=2.0, base=0.5)
    tensor([0.3466])
    """
    return with_gradient(_soft_extremes, fused.soft_extremes, cosines, chosen, steepness=steepness, base=base)


def _soft_extremes(cosines: Tensor, chosen: Tensor, *, steepness: float, base: float) -> Float[Tensor, "N"]:
    return log_sum(steepness * (cosines - base), chosen, plus=1.0) / steepness


def log_sum(values: Float[Tensor, "N M"], chosen: Bool[Tensor, "N M"], *, plus: float = 0.0) -> Float[Tensor, "N"]:
    """The log of ``plus`` and the sum of exp over the chosen of each row; 0 for the log of nothing.

    >>> log_sum(torch.tensor([[0.0, 99.0]]), torch.tensor([[True, False]]), plus=1.0)
    tensor([0.6931])
    """
    others = values.new_full((len(values), 1), math.log(plus) if plus else -torch.inf)
    logs = torch.cat((torch.where(chosen, values, -torch.inf), others), 1)
    some = chosen.any(1) | (plus > 0)
    return torch.where(some, torch.where(some[:, None], logs, 0).logsumexp(1), 0)


def cosines_of(embeddings: Float[Tensor, "N D"], references: Float[Tensor, "M D"]) -> Float[Tensor, "N M"]:
    """The cosine of every pair; 0 for an embedding of zeros.

    >>> cosines_of(torch.tensor([[2.0, 0]]), torch.tensor([[3.0, 3], [0, 0]]))
    tensor([[0.7071, 0.0000]])
    """
    units = directions(embeddings)
    return inner_products(units, units if references is embeddings else directions(references))


def _is_all(function: str, reduction: str) -> bool:
    if reduction not in ("all", "active"):
        raise ValueError(f"{function}: {reduction=}; allowed are 'all' and 'active'")
    return reduction == "all"
