"""Search by faiss: exact or approximate, as its factory string says. Needs the extra ``faiss``."""

from contextlib import suppress
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from detkit._door import door
from detkit._ranges import Count
from detkit.retrieval.brute_force import nearest_rows
from detkit.retrieval.distances import Distance
from detkit.retrieval.index import Candidates, TableIndex, recall_of, rounding_bound

_PROBES = 100
"""Vectors that are searched for once when an approximate index is built, to say how much it finds."""
_PROBED = 10


class FaissIndex(TableIndex):
    """faiss with the structure that ``factory`` names: "Flat" is exact, "IVF1024,Flat" and "HNSW32" are approximate.

    The structure is trained and built of all vectors by the first search after a change, so that vectors can be removed
    from every kind, and holds a second copy of the vectors. ``probes`` is the number of cells that an IVF looks into,
    ``effort`` the length of the list that HNSW keeps. ``recall`` is the fraction of the ten nearest that an approximate
    structure finds, measured on vectors of its own when it is built; 1 of an exact one, None before.
    Distances are always exact, and a query for which the structure finds fewer than k is searched for exactly. On the
    host. Raises ImportError without faiss. See :class:`Index`.

    >>> index = FaissIndex(2)
    >>> index.add(torch.tensor([[0.0, 1], [1, 0]]))
    >>> index.search(torch.tensor([[0.9, 0.1]]), k=1).ids
    tensor([[1]])
    """

    _engine: Any

    @door
    def __init__(
        self,
        channels: Count,
        factory: str = "Flat",
        *,
        distance: Distance | None = None,
        probes: Count = 16,
        effort: Count = 64,
    ) -> None:
        super().__init__(channels, distance=distance)
        self.factory, self.probes, self.effort = factory, probes, effort
        self.recall: float | None = None
        self._engine = None
        self._made()

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"{super().extra_repr()}, factory={self.factory!r}, recall={self.recall}"

    def _changed(self) -> None:
        self.recall = None
        self._engine = None

    def _candidates(self, queries: Float[Tensor, "Q D"], count: int, *, again: bool) -> Candidates:
        engine = self._engine or self._build()
        squares, rows = engine.search(np.ascontiguousarray(queries.cpu().numpy()), count)
        rows = torch.from_numpy(rows)
        if self.factory == "Flat":
            longest = self.vectors.norm(dim=1).max().cpu()
            bound = torch.from_numpy(squares[:, -1]) - 2 * rounding_bound(self.channels, queries.cpu(), longest)
            return self._picked(rows, bound if count < len(self) else torch.full_like(bound, torch.inf))
        short = (rows < 0).any(1).nonzero().flatten()
        if len(short):
            rows[short] = nearest_rows(queries.cpu()[short], self.vectors.cpu(), count)
        return self._picked(rows, torch.full((len(rows),), torch.inf))

    def _made(self) -> Any:
        faiss = _imported()
        try:
            engine = faiss.index_factory(self.channels, self.factory)
        except RuntimeError as error:
            raise ValueError(
                f"FaissIndex: factory={self.factory!r} is not one that faiss knows: {_reason(error)}"
            ) from error
        for name, value in (("nprobe", self.probes), ("efSearch", self.effort)):
            with suppress(RuntimeError):  # it has no such part, whatever lies around it
                faiss.ParameterSpace().set_index_parameter(engine, name, value)
        return engine

    def _build(self) -> Any:
        engine, vectors = self._made(), np.ascontiguousarray(self.vectors.cpu().numpy())
        try:
            engine.train(vectors)
            engine.add(vectors)
            recall = 1.0 if self.factory == "Flat" else self._measured(engine)
        except RuntimeError as error:
            raise ValueError(
                f"FaissIndex: {self.factory!r} can't be built of {len(vectors)} vectors; give more of them, or another "
                f"factory: {_reason(error)}"
            ) from error
        self._engine, self.recall = engine, recall
        return engine

    def _measured(self, engine: Any) -> float:
        """The fraction of the nearest that the structure finds of evenly chosen vectors."""
        k = min(_PROBED, len(self))
        some = self.vectors[:: max(len(self) // _PROBES, 1)].cpu()
        found = torch.from_numpy(engine.search(some.numpy(), k)[1])
        return recall_of(found, nearest_rows(some, self.vectors.cpu(), k))


def _reason(error: RuntimeError) -> str:
    """What faiss says, without the place in its source."""
    return str(error).rpartition("Error: ")[2].strip()


def _imported() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ImportError('FaissIndex needs faiss: pip install "torch-detkit[faiss]"') from error
    return faiss
