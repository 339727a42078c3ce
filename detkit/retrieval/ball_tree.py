"""Exact search with scikit-learn's ball tree: for vectors of few numbers."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from detkit._door import door
from detkit._ranges import Count
from detkit.retrieval.distances import Distance
from detkit.retrieval.index import Candidates, TableIndex


class BallTreeIndex(TableIndex):
    """scikit-learn's ball tree, built anew by the first search after a change; on the host.

    It leaves out what is far, which pays for vectors of up to about 20 numbers, and compares nearly all of wider ones.
    The tree holds the vectors in float64, twice the memory of the table. ``leaf_size`` vectors are compared one by one.
    Source: Omohundro 1989, "Five Balltree Construction Algorithms". See :class:`Index`.

    >>> index = BallTreeIndex(2)
    >>> index.add(torch.tensor([[0.0, 1], [1, 0]]))
    >>> index.search(torch.tensor([[0.9, 0.1]]), k=1).ids
    tensor([[1]])
    """

    @door
    def __init__(self, channels: Count, *, distance: Distance | None = None, leaf_size: Count = 40) -> None:
        super().__init__(channels, distance=distance)
        self.leaf_size = leaf_size
        self._tree: Any = None

    def _changed(self) -> None:
        self._tree = None

    def _candidates(self, queries: Float[Tensor, "Q D"], count: int, *, again: bool) -> Candidates:
        from sklearn.neighbors import BallTree

        tree = self._tree or BallTree(self.vectors.cpu().numpy(), leaf_size=self.leaf_size)
        self._tree = tree
        distances, rows = tree.query(queries.cpu().numpy(), k=count)
        last = torch.from_numpy(distances[:, -1].astype(np.float32))
        bound = last.square() * (1 - 1e-6) if count < len(self) else torch.full_like(last, torch.inf)
        return self._picked(torch.from_numpy(rows).to(self.vectors.device), bound.to(self.vectors.device))
