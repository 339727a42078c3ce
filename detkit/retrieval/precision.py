"""How well neighbors share labels: recall, precision, R-precision and mean average precision at k and at R.

Every query is ranked by an exact search, some thousands at a time, so that memory does not grow with the square of the
set. A query never finds itself: in its own set its own row is left out, in another the vector of its id.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from detkit._door import door
from detkit._inputs import check_finite
from detkit._ranges import Count, Whole
from detkit.retrieval.brute_force import BruteForceIndex
from detkit.retrieval.distances import Distance
from detkit.retrieval.index import whole_ids
from detkit.retrieval.labels import check_labels, same_labels, takes_part

_QUERIES = 1024
_MEMBERSHIPS = 1 << 34
"""Truth values of rows and classes that are taken for a slip, of ids for labels, rather than for classes."""


class RetrievalScores(NamedTuple):
    """A metric at every k, over ``queries`` queries; ``lone`` have nothing to find and are left out."""

    values: dict[int, float]
    queries: int
    lone: int


class NeighborPrecision(NamedTuple):
    """The macro mean at every k, and the values of each class, NaN for one without queries that have some to find."""

    values: dict[int, float]
    per_class: dict[int, Float[Tensor, "C"]]
    lone: int


class Gallery(NamedTuple):
    """What is searched: embeddings (M, D), labels (M,) or label sets (M, C), and the id of each (None: its row).

    >>> Gallery(torch.zeros(3, 2), torch.tensor([0, 1, 1])).ids is None
    True
    """

    embeddings: Tensor
    labels: Tensor
    ids: Tensor | Sequence[Whole] | None = None


class _Ranked(NamedTuple):
    """Of some queries: which, which of the gallery are theirs nearest first, and of each how many are equal at all."""

    queries: Int[Tensor, "Q"]
    rows: Int[Tensor, "Q K"]
    hits: Bool[Tensor, "Q K"]
    totals: Int[Tensor, "Q"]


@door
def recall_at_k(
    embeddings: Float[Tensor, "N D"],
    labels: Shaped[Tensor, "N *C"],
    k: Count | Sequence[Count] = 1,
    *,
    gallery: Gallery | None = None,
    ids: Shaped[Tensor, "N"] | Sequence[Whole] | None = None,
    distance: Distance | None = None,
    definition: Literal["any", "fraction"] = "any",
) -> RetrievalScores:
    """The part of queries with an equal one among their k nearest ("any"), or the mean part of equal ones found there.

    embeddings (N, D), labels (N,) or label sets (N, C), which are equal if they share a label. Without ``gallery`` they
    are searched among themselves. ``ids`` name the queries in another gallery. ``distance``: Euclidean by default;
    equal distances in order of ids. Raises ValueError for a k above the size of the gallery, without the query; for
    queries that all have nothing to find; for values that are not finite, and ids that come twice.
    Sources: "any": Jegou et al. 2011, "Product Quantization", section V.A, and the metric-learning literature;
    "fraction": Manning et al. 2008, "Introduction to Information Retrieval", section 8.3.

    >>> points = torch.tensor([[0.0], [0.1], [0.3], [5.0]])
    >>> recall_at_k(points, torch.tensor([0, 1, 0, 1]), (1, 2))
    RetrievalScores(values={1: 0.0, 2: 0.75}, queries=4, lone=0)
    """
    if definition not in ("any", "fraction"):
        raise ValueError(f"recall_at_k: {definition=}; allowed are 'any' and 'fraction'")

    def judge(ranked: _Ranked, k: int) -> Tensor:
        found = ranked.hits[:, :k].sum(1)
        return (found > 0).double() if definition == "any" else found / ranked.totals

    return _mean_at("recall_at_k", _ks("recall_at_k", k), judge, embeddings, labels, gallery, ids, distance)


@door
def precision_at_k(
    embeddings: Float[Tensor, "N D"],
    labels: Shaped[Tensor, "N *C"],
    k: Count | Sequence[Count] = 1,
    *,
    gallery: Gallery | None = None,
    ids: Shaped[Tensor, "N"] | Sequence[Whole] | None = None,
    distance: Distance | None = None,
) -> RetrievalScores:
    """The mean part of equal ones among the k nearest; see :func:`recall_at_k`.

    >>> points = torch.tensor([[0.0], [0.1], [0.3], [5.0]])
    >>> precision_at_k(points, torch.tensor([0, 1, 0, 1]), 2).values
    {2: 0.375}
    """
    ks = _ks("precision_at_k", k)
    return _mean_at("precision_at_k", ks, _precision, embeddings, labels, gallery, ids, distance)


@door
def r_precision(
    embeddings: Float[Tensor, "N D"],
    labels: Shaped[Tensor, "N *C"],
    *,
    gallery: Gallery | None = None,
    ids: Shaped[Tensor, "N"] | Sequence[Whole] | None = None,
    distance: Distance | None = None,
) -> float:
    """The mean part of equal ones among the R nearest, R being how many there are; see :func:`recall_at_k`.

    Source: Musgrave et al. 2020, "A Metric Learning Reality Check", section 3.1.

    >>> points = torch.tensor([[0.0], [0.1], [0.3], [5.0]])
    >>> r_precision(points, torch.tensor([0, 0, 1, 1]))
    0.75
    """

    def judge(ranked: _Ranked, k: int) -> Tensor:
        within = torch.arange(ranked.hits.shape[1]) < ranked.totals[:, None]
        return (ranked.hits & within).sum(1) / ranked.totals

    return _mean_at("r_precision", None, judge, embeddings, labels, gallery, ids, distance).values[0]


@door
def map_at_r(
    embeddings: Float[Tensor, "N D"],
    labels: Shaped[Tensor, "N *C"],
    *,
    gallery: Gallery | None = None,
    ids: Shaped[Tensor, "N"] | Sequence[Whole] | None = None,
    distance: Distance | None = None,
) -> float:
    """The mean over the R nearest of the precision at each equal one, R being how many there are.

    See :func:`recall_at_k`. Source: Musgrave et al. 2020, "A Metric Learning Reality Check", section 3.1.

    >>> points = torch.tensor([[0.0], [0.1], [0.3], [5.0]])
    >>> map_at_r(points, torch.tensor([0, 1, 0, 0]))
    0.3333333333333333
    """

    def judge(ranked: _Ranked, k: int) -> Tensor:
        places = torch.arange(1, ranked.hits.shape[1] + 1)
        counted = ranked.hits & (places <= ranked.totals[:, None])
        precision = ranked.hits.cumsum(1).double() / places
        return (precision * counted).sum(1) / ranked.totals

    return _mean_at("map_at_r", None, judge, embeddings, labels, gallery, ids, distance).values[0]


@door
def neighbor_average_precision(
    embeddings: Float[Tensor, "N D"],
    labels: Shaped[Tensor, "N *C"],
    k: Count | Sequence[Count] = (1, 3, 5, 10, 15),
    *,
    gallery: Gallery | None = None,
    ids: Shaped[Tensor, "N"] | Sequence[Whole] | None = None,
    distance: Distance | None = None,
) -> NeighborPrecision:
    """Of each class the mean part, over its queries, of the k nearest that are of the class; the mean over classes.

    With label sets a query counts for each of its classes. See :func:`recall_at_k`. Source: the neural codes of the
    multi-label patches, equation 1.

    >>> points = torch.tensor([[0.0], [0.1], [0.3], [5.0]])
    >>> neighbor_average_precision(points, torch.tensor([0, 1, 0, 0]), 1).values
    {1: 0.3333333333333333}
    """
    name = "neighbor_average_precision"
    ks = _ks(name, k)
    own, theirs = _members(name, labels, gallery)
    sums = torch.zeros(len(ks), own.shape[1], dtype=torch.float64)
    counts, lone = torch.zeros(own.shape[1], dtype=torch.int64), 0
    for ranked in _ranked(name, max(ks), embeddings, labels, gallery, ids, distance):
        some = own[ranked.queries] & (ranked.totals > 0)[:, None]
        lone += int((ranked.totals == 0).sum())
        counts += some.sum(0)
        for place, at in enumerate(ks):
            found = theirs[ranked.rows[:, :at]].sum(1)  # (Q, C)
            sums[place] += (found.double() / at * some).sum(0)
    if not counts.any():
        raise ValueError(f"{name}: none of {lone} queries has an equal one to find: every label is alone")
    per_class = torch.where(counts > 0, sums / counts, torch.nan)
    values = {at: row[counts > 0].mean().item() for at, row in zip(ks, per_class, strict=True)}
    return NeighborPrecision(values, dict(zip(ks, per_class, strict=True)), lone)


def _precision(ranked: _Ranked, k: int) -> Tensor:
    return ranked.hits[:, :k].double().mean(1)


def _mean_at(
    function: str,
    ks: Sequence[int] | None,
    judge: Callable[[_Ranked, int], Tensor],
    embeddings: Tensor,
    labels: Tensor,
    gallery: Gallery | None,
    ids: Tensor | Sequence[int] | None,
    distance: Distance | None,
) -> RetrievalScores:
    """Means over the queries that have something to find, of ``judge(ranked, k)`` at each k; without ``ks`` at R."""
    sums, queries, lone = dict.fromkeys(ks or (0,), 0.0), 0, 0
    most = max(ks) if ks else None
    for ranked in _ranked(function, most, embeddings, labels, gallery, ids, distance):
        has = ranked.totals > 0
        queries, lone = queries + int(has.sum()), lone + int((~has).sum())
        for k in sums:
            sums[k] += judge(_Ranked(*(column[has] for column in ranked)), k).double().sum().item()
    if not queries:
        raise ValueError(f"{function}: none of {lone} queries has an equal one to find: every label is alone")
    return RetrievalScores({k: total / queries for k, total in sums.items()}, queries, lone)


def _ranked(
    function: str,
    most: int | None,
    embeddings: Tensor,
    labels: Tensor,
    gallery: Gallery | None,
    ids: Tensor | Sequence[int] | None,
    distance: Distance | None,
) -> Iterator[_Ranked]:
    """The ``most`` nearest of each query that takes part, some queries at a time; None: as many as are equal to any."""
    _check_rows(function, "embeddings", embeddings, labels)
    searched, own = Gallery(embeddings, labels, ids), torch.full((len(embeddings),), -1)
    if gallery is not None:
        _check_gallery(function, embeddings, labels, gallery)
        searched = gallery
    if gallery is None or ids is not None:
        own = _ids_of(function, ids, len(embeddings))
    theirs, numbers = searched.labels.cpu(), _ids_of(function, searched.ids, len(searched.embeddings))
    members = takes_part(theirs).nonzero().flatten()
    if not len(members):
        raise ValueError(f"{function}: nothing can be found, since every label of what is searched is negative")
    index = BruteForceIndex(searched.embeddings.shape[1], distance=distance).to(searched.embeddings.device)
    index.add(searched.embeddings[members.to(searched.embeddings.device)], numbers[members])
    row_of = members[numbers[members].argsort()]  # of the vectors in the order of the index
    labels = labels.cpu()
    queries = takes_part(labels).nonzero().flatten()
    itself = int(torch.isin(own[queries], index.ids).any())
    if most is not None and most > len(index) - itself:
        raise ValueError(
            f"{function}: k={most} of {len(index) - itself} vectors in the gallery{', the query left out' * itself}; "
            f"allowed is 1..{len(index) - itself}"
        )
    for some in queries.split(_QUERIES) if len(queries) else ():
        totals = _equal_counts(labels[some], theirs[members])
        place = torch.searchsorted(index.ids, own[some]).clamp(max=len(index) - 1)
        inside = (index.ids[place] == own[some]) & _equal(labels[some], theirs[row_of[place]][:, None])[:, 0]
        totals = totals - inside.to(totals.dtype)
        k = min(max(int(totals.max()), 1) if most is None else most, len(index) - itself)
        found = index.search(embeddings[some.to(embeddings.device)], k + itself).ids.cpu()
        others = (found == own[some][:, None]).to(torch.int8).argsort(dim=1, stable=True)[:, :k]
        rows = row_of[torch.searchsorted(index.ids, found.gather(1, others))]
        yield _Ranked(some, rows, _equal(labels[some], theirs[rows]), totals)


def _equal_counts(labels: Tensor, theirs: Tensor) -> Int[Tensor, "Q"]:
    """How many of the gallery each query is equal to."""
    if labels.ndim == 2:
        return same_labels(labels, theirs).sum(1)
    labels, theirs = (own.to(torch.promote_types(own.dtype, torch.int8)) for own in (labels, theirs))  # True is 1
    kinds, counts = theirs.unique(return_counts=True)
    place = torch.searchsorted(kinds, labels).clamp(max=len(kinds) - 1)
    return torch.where(kinds[place] == labels, counts[place], 0)


def _equal(labels: Shaped[Tensor, "Q *C"], theirs: Shaped[Tensor, "Q K *C"]) -> Bool[Tensor, "Q K"]:
    """Whether each query is equal to its own K of the gallery."""
    return theirs == labels[:, None] if labels.ndim == 1 else ((theirs > 0) & (labels > 0)[:, None]).any(2)


def _ks(function: str, k: int | Sequence[int]) -> tuple[int, ...]:
    ks = (k,) if isinstance(k, int) else tuple(k)
    if not ks:
        raise ValueError(f"{function}: k is empty; give at least one number")
    return ks


def _ids_of(function: str, ids: Tensor | Sequence[int] | None, count: int) -> Int[Tensor, "N"]:
    return torch.arange(count) if ids is None else whole_ids(ids, function, count=count)


def _members(function: str, labels: Tensor, gallery: Gallery | None) -> tuple[Tensor, Tensor]:
    """The classes (N, C) of each query and (M, C) of each vector of the gallery."""
    both = [labels.cpu(), labels.cpu() if gallery is None else gallery.labels.cpu()]
    _check_kinds(function, "labels", *both)
    if labels.ndim == 2:
        return both[0] > 0, both[1] > 0
    highest = max((int(own.max()) for own in both if own.numel()), default=-1)
    if highest * sum(map(len, both)) > _MEMBERSHIPS:
        raise ValueError(f"{function}: labels reach {highest}; number the classes from 0, since each gets a value")
    classes = torch.arange(highest + 1)
    return both[0][:, None] == classes, both[1][:, None] == classes


def _check_rows(function: str, name: str, embeddings: Tensor, labels: Tensor) -> None:
    if embeddings.ndim != 2 or labels.ndim not in (1, 2) or len(labels) != len(embeddings) or not len(labels):
        raise ValueError(
            f"{function}: {name} have shape {tuple(embeddings.shape)} and labels {tuple(labels.shape)}; allowed are "
            "(N, D) with (N,), or with (N, C) for label sets, and at least one row"
        )
    check_labels(function, "labels" if name == "embeddings" else "labels of gallery", labels)
    own = takes_part(labels).to(embeddings.device)
    check_finite(torch.where(own[:, None], embeddings, 0), function=function, name=name)


def _check_gallery(function: str, embeddings: Tensor, labels: Tensor, gallery: Gallery) -> None:
    _check_rows(function, "embeddings of gallery", gallery.embeddings, gallery.labels)
    _check_kinds(function, "embeddings", embeddings, gallery.embeddings)
    _check_kinds(function, "labels", labels, gallery.labels)


def _check_kinds(function: str, name: str, ours: Tensor, theirs: Tensor) -> None:
    if ours.shape[1:] != theirs.shape[1:]:
        raise ValueError(
            f"{function}: {name} have shape {tuple(ours.shape)}, and those of gallery {tuple(theirs.shape)}; they may "
            "differ in their number only"
        )
