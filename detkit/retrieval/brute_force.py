"""Exact search by matrix products, on any device: quickly in bfloat16, and again where that can't tell."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from detkit.retrieval.index import Candidates, TableIndex, rounding_bound

_GROUP = 32
"""Vectors of which only the best is ranked at first: the k best of all lie in the k groups with the best."""
_AT_ONCE = 1 << 24
"""Scores in memory at a time."""
_COARSE = 2**-9 * 1.01
"""A unit of rounding of bfloat16, and what products of two of them add."""
_COARSE_MARGIN = 32
"""Candidates beyond k that are taken by bfloat16 scores."""


class BruteForceIndex(TableIndex):
    """Compares every query with every vector: exact, on the device that it is moved to.

    Where the processor multiplies bfloat16, scores in it choose the candidates, from a copy of half the size that is
    made by the first search after a change. See :class:`Index`.

    >>> index = BruteForceIndex(2)
    >>> index.add(torch.tensor([[0.0, 1], [1, 0]]))
    >>> index.search(torch.tensor([[0.9, 0.1]]), k=1).ids
    tensor([[1]])
    """

    _halves: Tensor | None = None
    _coarse: Tensor | None = None

    def _changed(self) -> None:
        self._halves = self._coarse = None

    def _candidates(self, queries: Float[Tensor, "Q D"], count: int, *, again: bool) -> Candidates:
        queries, size = queries.to(self.vectors), len(self)
        if self._halves is None:
            self._halves = self.vectors.square().sum(1) / 2
        longest = (2 * self._halves.max()).sqrt()
        off = rounding_bound(self.channels + 3, queries, longest)
        if again or count + _COARSE_MARGIN >= size // _GROUP or not multiplies_bfloat16(queries.device):
            last, rows = _best(queries, self.vectors, count, plus=-self._halves)
        else:
            if self._coarse is None:
                self._coarse = torch.cat((self.vectors, _in_three(-self._halves)), dim=1).bfloat16()
            last, rows = _best(_with_ones(queries).to(self._coarse), self._coarse, count + _COARSE_MARGIN)
            # Each factor is rounded once, and the result.
            off = off + 2 * _COARSE * (2 * queries.norm(dim=1) * longest + last.abs())
        bound = queries.square().sum(1) - 2 * last - off
        return self._picked(rows, bound if rows.shape[1] < size else torch.full_like(bound, torch.inf))


def nearest_rows(queries: Float[Tensor, "Q D"], vectors: Float[Tensor, "N D"], count: int) -> Int[Tensor, "Q L"]:
    """The rows of the ``count`` nearest vectors of each query, to the rounding of float32.

    >>> nearest_rows(torch.tensor([[1.0, 0]]), torch.tensor([[0.0, 0], [2, 0], [9, 9]]), 2).sort().values
    tensor([[0, 1]])
    """
    return _best(queries, vectors, count, plus=vectors.square().sum(1) / -2)[1]


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 are faster than those of float32: on accelerators, and on some processors.

    >>> multiplies_bfloat16(torch.device("cuda"))
    True
    """
    return device.type != "cpu" or bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def _with_ones(queries: Float[Tensor, "Q D"]) -> Float[Tensor, "Q F"]:
    return torch.cat((queries, queries.new_ones(len(queries), 3)), dim=1)


def _in_three(values: Float[Tensor, "N"]) -> Float[Tensor, "N 3"]:
    """Three numbers of bfloat16's precision whose sum is the value in float32's."""
    parts, left = [], values
    for _ in range(3):
        parts.append(left.bfloat16().float())
        left = left - parts[-1]
    return torch.stack(parts, dim=1)


def _best(
    queries: Float[Tensor, "Q F"], table: Float[Tensor, "N F"], count: int, *, plus: Float[Tensor, "N"] | None = None
) -> tuple[Float[Tensor, "Q"], Int[Tensor, "Q L"]]:
    """The least of the ``count`` highest products of each query, ``plus`` a number of each row, and all their rows."""
    at_once = max(_AT_ONCE // max(len(table), 1), 1)
    room, found = queries.new_empty(min(at_once, len(queries)), len(table)), []
    for some in queries.split(at_once):
        scores = room[: len(some)]
        if plus is None:
            torch.mm(some, table.T, out=scores)
        else:
            torch.addmm(plus, some, table.T, out=scores)
        values, rows = _highest(scores, count)
        found.append((values[:, -1].float(), rows))
    last, rows = zip(*found, strict=True)
    return torch.cat(last), torch.cat(rows)


def _highest(scores: Float[Tensor, "Q N"], count: int) -> tuple[Tensor, Int[Tensor, "Q L"]]:
    """The highest scores: those of the groups whose best is high, then of their members."""
    groups = scores.shape[1] // _GROUP
    if groups < 4 * count:
        values, rows = scores.topk(count)
        return values, rows
    whole = groups * _GROUP
    best = scores[:, :whole]
    while best.shape[1] > groups:  # pairs of whole halves, since maxima of short rows take six times as long
        best = torch.maximum(*best.chunk(2, dim=1))
    chosen = best.topk(count, sorted=False).indices
    steps = torch.arange(0, whole, groups, device=scores.device)
    rest = torch.arange(whole, scores.shape[1], device=scores.device).expand(len(scores), -1)
    places = torch.cat(((chosen[..., None] + steps).flatten(1), rest), dim=1)
    values, order = scores.gather(1, places).topk(count)
    return values, places.gather(1, order)
