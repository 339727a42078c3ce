"""One index in many processes: each holds a part and searches it, and every query sees all parts."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detkit._door import door
from detkit._ranges import Count
from detkit.dist import gather_objects, rank
from detkit.retrieval.index import Index, Neighbors, nearest_first


class ShardedIndex(nn.Module):
    """The vectors of the ``index`` of every process together; ids must differ over processes.

    Every call is collective: all processes make it, with one k and as many queries as each likes. The result is that of
    one index with all vectors. Raises ValueError for a k that is larger than all parts together. In a single process it
    is the index itself.

    >>> from detkit.retrieval import BruteForceIndex
    >>> index = BruteForceIndex(2)
    >>> index.add(torch.tensor([[0.0, 1], [1, 0]]))
    >>> ShardedIndex(index).search(torch.tensor([[0.9, 0.1]]), k=1).ids
    tensor([[1]])
    """

    def __init__(self, index: Index) -> None:
        super().__init__()
        self.index = index

    @door
    def search(self, queries: Float[Tensor, "Q D"], k: Count) -> Neighbors:
        """The k nearest of this process' queries among the vectors of all processes."""
        everyone: list[Tensor] = gather_objects(queries.detach().cpu())
        sizes = gather_objects(len(self.index))
        if k > sum(sizes):
            raise ValueError(f"ShardedIndex.search: k={k} of {sum(sizes)} vectors; allowed is 1..{sum(sizes)}")
        own = min(k, len(self.index))
        rows = [self.index._prepared(some, "queries") for some in everyone]  # what is wrong is so in every process
        parts = [self.index._found(some, own) if own else _nothing(some) for some in rows]
        found = gather_objects([(squares.cpu(), ids.cpu()) for squares, ids in parts])
        squares, ids = (torch.cat(column, dim=1) for column in zip(*(parts[rank()] for parts in found), strict=True))
        squares, ids = nearest_first(squares, ids, k)
        return Neighbors(self.index.distance.of_squares(squares).float().to(queries.device), ids.to(queries.device))


def _nothing(queries: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros(len(queries), 0, dtype=torch.float64), torch.zeros(len(queries), 0, dtype=torch.int64)
