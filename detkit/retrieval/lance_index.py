"""Vectors on disk or in object storage, searched by LanceDB: more than memory holds. Needs the extra ``lance``."""

import os
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from detkit._door import door
from detkit._ranges import Count
from detkit.retrieval.distances import Distance
from detkit.retrieval.index import Candidates, Index, recall_of, rounding_bound

_LEAST_ROWS = 256
"""Vectors below which LanceDB builds no index."""
_PROBES, _PROBED = 50, 10
_IN_ONE_FILTER = 1000
_SCHEMA_KEY = b"detkit_distance"


class LanceIndex(Index):
    """A LanceDB table of ids and float32 vectors at ``uri``: a folder, or object storage as LanceDB takes it.

    The table ``table`` is opened, or made if it is not there; what is added is on disk when the call returns, and other
    handles see it. So there is no ``save`` and no ``load``: the same constructor call opens the table again. In memory
    are the ids only. Search is exact, by reading all vectors, until :meth:`build` makes an index; then it looks into
    ``probes`` of its cells, also in handles that are opened later, and ``recall`` says what part of the nearest it
    finds. Many queries at once are much faster than one at a time, and one ``add`` of many vectors than many of few, of
    which each makes a file; :meth:`compact` joins these and frees what was removed. Raises ImportError without lancedb,
    and ValueError for a table that is of another width or distance, or was not made here. See :class:`Index`.

    >>> import tempfile
    >>> index = LanceIndex(2, tempfile.mkdtemp())
    >>> index.add(torch.tensor([[0.0, 1], [1, 0]]))
    >>> index.search(torch.tensor([[0.9, 0.1]]), k=1).ids
    tensor([[1]])
    """

    @door
    def __init__(
        self,
        channels: Count,
        uri: str | os.PathLike[str],
        *,
        table: str = "vectors",
        distance: Distance | None = None,
        probes: Count = 50,
    ) -> None:
        super().__init__(channels, distance=distance)
        self.uri, self.table, self.probes = str(uri), table, probes
        self._recall: float | None = None
        self._arrow, database = _imported(self.uri)
        self._schema = self._arrow.schema(
            [
                self._arrow.field("id", self._arrow.int64(), nullable=False),
                self._arrow.field("vector", self._arrow.list_(self._arrow.float32(), channels), nullable=False),
            ],
            metadata={_SCHEMA_KEY: self._kind.encode()},
        )
        try:
            self._table = database.create_table(table, schema=self._schema)
        except ValueError:  # it is there
            self._table = database.open_table(table)
        self._check_table(table)
        self._seen: tuple[int, Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_arrow", "_table")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._arrow, database = _imported(self.uri)
        self._table = database.open_table(self.table)  # never made anew: a table that is gone is an error

    @property
    def ids(self) -> Int[Tensor, "N"]:
        """The ids of all vectors, ascending; read anew after another handle has changed the table."""
        self._table.checkout_latest()
        if self._seen is None or self._seen[0] != self._table.version:
            column = self._table.search(None).select(["id"]).to_arrow()["id"].to_numpy()
            self._seen = self._table.version, torch.from_numpy(np.sort(column))
        return self._seen[1]

    @property
    def recall(self) -> float | None:
        """The fraction of the ten nearest that the built index finds, measured on first use; None: search is exact."""
        if self._recall is None and self._table.list_indices():
            self._recall = self._measured()
        return self._recall

    @door
    def build(self, kind: Literal["IVF_FLAT", "IVF_PQ"] = "IVF_FLAT", *, cells: Count | None = None) -> float:
        """Make an approximate index of all vectors and return the fraction of the ten nearest that it finds.

        "IVF_FLAT" keeps the vectors as they are; "IVF_PQ" compresses them to a few bytes, and finds far fewer.
        ``cells`` is by default the root of their number. Vectors that are added later are searched exactly beside it.
        Raises ValueError for another kind, and below 256 vectors, of which LanceDB makes none.
        """
        if kind not in ("IVF_FLAT", "IVF_PQ"):
            raise ValueError(f"LanceIndex.build: {kind=}; allowed are 'IVF_FLAT' and 'IVF_PQ'")
        if len(self) < _LEAST_ROWS:
            raise ValueError(
                f"LanceIndex.build: {len(self)} vectors; allowed are {_LEAST_ROWS} and more: search is exact"
            )
        from lancedb.index import IvfFlat, IvfPq

        cells = max(round(len(self) ** 0.5), 1) if cells is None else cells
        config = IvfFlat if kind == "IVF_FLAT" else IvfPq
        self._table.create_index("vector", config=config(distance_type="l2", num_partitions=cells), replace=True)
        self._recall = self._measured()
        return self._recall

    def compact(self) -> None:
        """Join small files, take later vectors into the index, and free the space of removed ones and old versions.

        A search that another handle runs meanwhile may fail, as LanceDB warns.
        """
        from datetime import timedelta

        self._table.optimize(cleanup_older_than=timedelta(0))

    def rows(self) -> Iterator[tuple[Float[Tensor, "N D"], Int[Tensor, "N"]]]:
        """All vectors as they are kept, and their ids, some thousands at a time."""
        self._table.checkout_latest()
        for batch in self._table.search(None).select(["id", "vector"]).to_batches():
            yield self._vectors(batch["vector"]), torch.from_numpy(batch["id"].to_numpy().copy())

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"{super().extra_repr()}, uri={self.uri!r}, built={bool(self._table.list_indices())}"

    def _insert(self, vectors: Float[Tensor, "N D"], ids: Int[Tensor, "N"]) -> None:
        if not len(ids):
            return
        arrow = self._arrow
        flat = arrow.array(vectors.cpu().numpy().reshape(-1), arrow.float32())
        columns = {"id": arrow.array(ids.numpy()), "vector": arrow.FixedSizeListArray.from_arrays(flat, self.channels)}
        self._table.add(arrow.table(columns, schema=self._schema))

    def _delete(self, ids: Int[Tensor, "N"]) -> None:
        for some in ids.split(_IN_ONE_FILTER) if len(ids) else ():
            self._table.delete(_among(some))

    def _candidates(self, queries: Float[Tensor, "Q D"], count: int, *, again: bool) -> Candidates:
        return self._searched(queries, count, exact=not self._table.list_indices())

    def _searched(self, queries: Float[Tensor, "Q D"], count: int, *, exact: bool) -> Candidates:
        query = self._table.search(queries.cpu().numpy()).distance_type("l2").limit(count)
        query = query.bypass_vector_index() if exact else query.nprobes(self.probes)
        found = query.select(["id", "vector", "_distance"]).to_arrow()
        if found.num_rows != len(queries) * count:  # the probed cells hold fewer
            return self._searched(queries, count, exact=True)
        order = np.arange(found.num_rows)
        if len(queries) > 1:
            order = np.argsort(found["query_index"].to_numpy(), kind="stable")
        ids = torch.from_numpy(found["id"].to_numpy()[order]).unflatten(0, (len(queries), count))
        table, rows = self._vectors(found["vector"]), torch.from_numpy(order).unflatten(0, (len(queries), count))
        last = torch.from_numpy(found["_distance"].to_numpy()[order]).unflatten(0, (len(queries), count)).amax(1)
        if not exact or count == len(self):
            return Candidates(table, rows, ids, torch.full_like(last, torch.inf))
        longest = table.norm(dim=1).amax()
        return Candidates(table, rows, ids, last - rounding_bound(self.channels, queries.cpu(), longest))

    def _measured(self) -> float:
        """Of evenly chosen vectors, how many of the nearest the index finds."""
        chosen = self.ids[:: max(len(self) // _PROBES, 1)]
        some = self._vectors(self._table.search(None).where(_among(chosen)).select(["vector"]).to_arrow()["vector"])
        k = min(_PROBED, len(self))
        found, true = (self._searched(some, k, exact=exact).ids for exact in (False, True))
        return recall_of(found, true)

    def _vectors(self, column: Any) -> Float[Tensor, "N D"]:
        column = column.combine_chunks() if hasattr(column, "combine_chunks") else column
        return torch.from_numpy(column.flatten().to_numpy(zero_copy_only=False).copy()).unflatten(
            0, (-1, self.channels)
        )

    def _check_table(self, name: str) -> None:
        found = self._table.schema
        held = (found.metadata or {}).get(_SCHEMA_KEY, b"no known distance").decode()
        if (found.names, found.types, held) != (self._schema.names, self._schema.types, self._kind):
            columns = ", ".join(f"{field.name}: {field.type}" for field in found)
            raise ValueError(
                f"LanceIndex: table {name!r} at {self.uri} holds {columns} of {held}; this index holds id: int64, "
                f"vector: {self._schema.types[1]} of {self._kind}"
            )


def _among(ids: Int[Tensor, "N"]) -> str:
    """A filter of rows."""
    return f"id IN ({', '.join(map(str, ids.tolist()))})"


def _imported(uri: str) -> tuple[Any, Any]:
    try:
        import lancedb
        import pyarrow
    except ImportError as error:
        raise ImportError('LanceIndex needs lancedb: pip install "torch-detkit[lance]"') from error
    return pyarrow, lancedb.connect(uri)
