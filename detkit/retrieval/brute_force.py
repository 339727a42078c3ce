"""Exact search by matrix products, on any device, without building anything."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from detkit._door import door
from detkit._ranges import Count
from detkit.retrieval.distances import Distance
from detkit.retrieval.index import Candidates, TableIndex, rounding_bound

_GROUP = 32
"""Vectors of which only the best is ranked at first: the k best of all lie in the k groups with the best."""
_AT_ONCE = 1 << 25
"""Scores in memory at a time, 128 MB."""


class BruteForceIndex(TableIndex):
    """Compares every query with every vector: exact, on the device that it is moved to.

    Memory is that of the vectors and 128 MB. It takes no time to build; k of 100,000 vectors of 256 numbers are found
    about as fast as by faiss' flat index. See :class:`Index`.

    >>> index = BruteForceIndex(2)
    >>> index.add(torch.tensor([[0.0, 1], [1, 0]]))
    >>> index.search(torch.tensor([[0.9, 0.1]]), k=1).ids
    tensor([[1]])
    """

    @door
    def __init__(self, channels: Count, *, distance: Distance | None = None) -> None:
        super().__init__(channels, distance=distance)

    def _candidates(self, queries: Float[Tensor, "Q D"], count: int) -> Candidates:
        vectors = self.vectors
        queries = queries.to(vectors.device)
        halves = vectors.square().sum(1) / 2
        rows, scores = [], []
        for some in queries.split(max(_AT_ONCE // max(len(vectors), 1), 1)):
            best = _best(torch.addmm(-halves, some, vectors.T), count)
            scores.append(best.values)
            rows.append(best.indices)
        longest = (2 * halves.max()).sqrt()
        last = torch.cat(scores)[:, -1]
        bound = queries.square().sum(1) - 2 * last - rounding_bound(self.channels, queries, longest)
        if count == len(vectors):
            bound = torch.full_like(bound, torch.inf)
        return self._picked(torch.cat(rows), bound)


def _best(scores: Float[Tensor, "Q N"], count: int) -> "torch.return_types.topk":
    """The ``count`` highest scores of each row: those of the groups whose best is high, then of their members."""
    groups = -(-scores.shape[1] // _GROUP)
    if groups < 4 * count:
        return scores.topk(count)
    padded = F.pad(scores, (0, groups * _GROUP - scores.shape[1]), value=-torch.inf)
    grouped = padded.unflatten(1, (groups, _GROUP))
    chosen: Int[Tensor, "Q L"] = grouped.amax(2).topk(count, sorted=False).indices
    members = grouped.gather(1, chosen[..., None].expand(-1, -1, _GROUP)).flatten(1)
    best = members.topk(count)
    places = chosen.gather(1, best.indices // _GROUP) * _GROUP + best.indices % _GROUP
    return torch.return_types.topk((best.values, places))
