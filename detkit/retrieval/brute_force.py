"""Exact search by matrix products, on any device: quickly in bfloat16, and again where that can't tell."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from detkit._door import door
from detkit._ranges import Count
from detkit.retrieval.distances import Distance
from detkit.retrieval.index import Candidates, TableIndex, rounding_bound

_GROUP = 32
"""Vectors of which only the best is ranked at first: the k best of all lie in the k groups with the best."""
_AT_ONCE = 1 << 24
"""Scores in memory at a time."""
_COARSE = 2**-9
"""A unit of rounding of bfloat16."""
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

    @door
    def __init__(self, channels: Count, *, distance: Distance | None = None) -> None:
        super().__init__(channels, distance=distance)
        self._scored: tuple[Tensor, Tensor] | None = None

    def _changed(self) -> None:
        self._scored = None

    def _candidates(self, queries: Float[Tensor, "Q D"], count: int, *, again: bool) -> Candidates:
        queries = queries.to(self.vectors.device)
        coarse = not again and count + _COARSE_MARGIN < len(self) // _GROUP and multiplies_bfloat16(queries.device)
        table, halves = self._scoring(coarse)
        longest = (2 * halves.max()).sqrt()
        if coarse:
            count += _COARSE_MARGIN
        scores, rows = _best(_with_ones(queries).to(table.dtype), table, min(count, len(self)))
        last = scores[:, -1].float()
        off = rounding_bound(self.channels + 3, queries, longest)
        if coarse:
            # Each factor is rounded once, and the result.
            off = off + 2 * (2 * _COARSE * queries.norm(dim=1) * longest + _COARSE * last.abs())
        bound = queries.square().sum(1) - 2 * last - off
        return self._picked(rows, bound if count < len(self) else torch.full_like(bound, torch.inf))

    def _scoring(self, coarse: bool) -> tuple[Float[Tensor, "N F"], Float[Tensor, "N"]]:
        """Rows whose products with a query and three ones order as the distances do, and half the squared lengths."""
        dtype = torch.bfloat16 if coarse else torch.float32
        if self._scored is None or self._scored[0].dtype != dtype or self._scored[0].device != self.vectors.device:
            halves = self.vectors.square().sum(1) / 2
            table = torch.cat((self.vectors, _in_three(-halves)), dim=1).to(dtype)
            self._scored = table, halves
        return self._scored


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


def _best(queries: Float[Tensor, "Q F"], table: Float[Tensor, "N F"], count: int) -> tuple[Tensor, Int[Tensor, "Q L"]]:
    """The ``count`` highest products of each query and their rows, in descending order."""
    at_once = max(_AT_ONCE // max(len(table), 1), 1)
    room = queries.new_empty(min(at_once, len(queries)), len(table))
    found = [_highest(torch.mm(some, table.T, out=room[: len(some)]), count) for some in queries.split(at_once)]
    values, rows = zip(*found, strict=True)
    return torch.cat(values), torch.cat(rows)


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
