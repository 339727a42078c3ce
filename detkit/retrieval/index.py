"""What every index promises, whichever engine searches: the checks, the exact distances and the order of ties.

An engine only proposes candidates. Their distances are computed again, by subtraction in float64, and sorted with equal
ones in order of their ids; if one that was not proposed might belong among them, more are asked for.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from detkit._disk import write_atomically
from detkit._door import door
from detkit._inputs import check_finite, first_bad
from detkit._ranges import Count, Whole
from detkit._regular_file import open_regular
from detkit.retrieval.distances import Distance, EuclideanDistance

_LONGEST = 1e18
"""Longer vectors are refused: their squares overflow in the engines."""
_MARGIN = 16
"""Candidates asked for beyond k, so that a second look is rare."""
_QUERIES = 1024
"""Queries that an engine gets at a time."""
_NUMBERS = 1 << 18
"""Numbers of candidates that are compared at a time: they fit a cache."""
_ROWS = 4096
"""Vectors that travel at a time from one index to another."""


class Neighbors(NamedTuple):
    """The k nearest of each query, nearest first, equal distances in order of their ids."""

    distances: Float[Tensor, "Q K"]
    ids: Int[Tensor, "Q K"]


class Candidates(NamedTuple):
    """What an engine proposes for each query, as rows of a ``table`` of vectors, and their ids.

    ``bound``: no vector that is not proposed has a smaller squared distance than this.
    """

    table: Float[Tensor, "N D"]
    rows: Int[Tensor, "Q L"]
    ids: Int[Tensor, "Q L"]
    bound: Float[Tensor, "Q"]


class Index(nn.Module):
    """Vectors of width ``channels`` by id, searched by ``distance`` (None: Euclidean); a subclass holds the engine.

    Ids are whole numbers from 0 to 2**63 - 1, each there once. Vectors are kept as the distance prepares them, in
    float32: of length 1 for the cosine. Every method checks all that it is given before it changes anything, and raises
    ValueError for another width, vectors that are not finite, longer than 1e18, or of length 0 where the distance asks
    for a direction, ids that are there twice, already or not at all, and a k that is larger than the index.

    >>> from detkit.retrieval import BruteForceIndex
    >>> index = BruteForceIndex(2)
    >>> index.add(torch.tensor([[0.0, 0], [3, 4], [3, 4]]), ids=[7, 9, 8])
    >>> index.search(torch.tensor([[3.0, 4]]), 3)
    Neighbors(distances=tensor([[0., 0., 5.]]), ids=tensor([[8, 9, 7]]))
    """

    @door
    def __init__(self, channels: Count, *, distance: Distance | None = None) -> None:
        super().__init__()
        if not isinstance(distance, Distance | None):
            raise TypeError(f"{self._name}: distance is {distance!r}; give a distance, as CosineDistance(), or None")
        self.channels = channels
        self.distance = EuclideanDistance() if distance is None else distance

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def ids(self) -> Int[Tensor, "N"]:
        """The ids of all vectors, on the host."""
        raise NotImplementedError(f"{type(self).__name__} must define ids")

    @door
    def add(self, embeddings: Float[Tensor, "N D"], ids: Sequence[Whole] | Shaped[Tensor, "N"] | None = None) -> None:
        """Add vectors (N, D); by default their ids follow the largest that is there."""
        vectors = self._prepared(embeddings, "embeddings")
        self._insert(vectors, self._fresh_ids(ids, len(vectors)))

    @door
    def remove(self, ids: Sequence[Whole] | Shaped[Tensor, "N"]) -> None:
        """Remove the vectors with these ids."""
        wanted = whole_ids(ids, self._name)
        missing = ~torch.isin(wanted, self.ids)
        _refuse(self._name, wanted, missing, "is not in the index")
        _refuse(self._name, wanted, _repeated(wanted), "comes twice")
        self._delete(wanted)

    @door
    def search(self, queries: Float[Tensor, "Q D"], k: Count) -> Neighbors:
        """The k nearest of each query (Q, D): distances (Q, k) on the device of the queries, and ids."""
        rows, size = self._prepared(queries, "queries"), len(self)
        if k > size:
            allowed = f"allowed is 1..{size}" if size else "the index is empty: add() some first"
            raise ValueError(f"{self._name}.search: k={k} of {size} vectors; {allowed}")
        squares, ids = self._found(rows, k)
        return Neighbors(self.distance.of_squares(squares).float().to(queries.device), ids.to(queries.device))

    @door
    def merge(self, other: "Index") -> None:
        """Add all vectors of another index, of any engine. Raises ValueError for another width or distance."""
        if not isinstance(other, Index):
            raise TypeError(f"{self._name}.merge: other is a {type(other).__name__}; give an index, or add() vectors")
        if (self.channels, self._kind) != (other.channels, other._kind):
            raise ValueError(
                f"{self._name}.merge: the other index holds {other._kind}s of {other.channels} numbers; this one "
                f"{self._kind}s of {self.channels}"
            )
        self._fresh_ids(other.ids, len(other))
        self._insert_all(other.rows())

    def rows(self) -> Iterator[tuple[Float[Tensor, "N D"], Int[Tensor, "N"]]]:
        """All vectors as they are kept, and their ids, some thousands at a time."""
        raise NotImplementedError(f"{type(self).__name__} must define rows()")

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"{self.channels}, vectors={len(self)}"

    def _insert(self, vectors: Float[Tensor, "N D"], ids: Int[Tensor, "N"]) -> None:
        raise NotImplementedError(f"{type(self).__name__} must define _insert()")

    def _insert_all(self, parts: Iterator[tuple[Tensor, Tensor]]) -> None:
        """Insert vectors and ids that come in parts."""
        for vectors, ids in parts:
            self._insert(vectors, ids)

    def _delete(self, ids: Int[Tensor, "N"]) -> None:
        raise NotImplementedError(f"{type(self).__name__} must define _delete()")

    def _candidates(self, queries: Float[Tensor, "Q D"], count: int, *, again: bool) -> Candidates:
        """``count`` candidates for each query; ``again``: the first might have missed some of the nearest."""
        raise NotImplementedError(f"{type(self).__name__} must define _candidates()")

    def _found(self, queries: Float[Tensor, "Q D"], k: int) -> tuple[Tensor, Int[Tensor, "Q K"]]:
        """Squared distances in float64 and ids of the k nearest of each prepared query."""
        if not len(queries):
            return queries.new_zeros(0, k, dtype=torch.float64), torch.zeros(0, k, dtype=torch.int64)
        parts = [self._nearest(some, k, min(k + _MARGIN, len(self))) for some in queries.split(_QUERIES)]
        squares, ids = zip(*parts, strict=True)
        return torch.cat(squares), torch.cat(ids)

    def _nearest(self, queries: Tensor, k: int, count: int, *, again: bool = False) -> tuple[Tensor, Tensor]:
        """Squared distances and ids of the k nearest, from ``count`` candidates and more where they may lie beyond."""
        found = self._candidates(queries, count, again=again)
        squares, ids = _ranked(queries.to(found.table.device), found, k)
        unsure = (squares[:, k - 1] >= found.bound).nonzero().flatten()
        if len(unsure):
            count = min(4 * count, len(self)) if again else count
            more = self._nearest(queries[unsure.to(queries.device)], k, count, again=True)
            squares[unsure], ids[unsure] = more
        return squares, ids

    @property
    def _name(self) -> str:
        return type(self).__name__

    @property
    def _kind(self) -> str:
        """What vectors mean: the distance by name."""
        return type(self.distance).__name__

    def _prepared(self, vectors: Tensor, name: str) -> Float[Tensor, "N D"]:
        if vectors.ndim != 2 or vectors.shape[1] != self.channels:
            raise ValueError(f"{self._name}: {name} have shape {tuple(vectors.shape)}; allowed is (N, {self.channels})")
        check_finite(vectors, function=self._name, name=name)
        prepared = self.distance.prepare(vectors.detach()).to(torch.float32)
        lengths = prepared.norm(dim=1)
        if bool((lengths > _LONGEST).any()):
            (row,), count = first_bad(lengths > _LONGEST)
            raise ValueError(
                f"{self._name}: {name}[{row}] is {lengths[row].item():g} long; allowed is up to {_LONGEST:g}, whose "
                f"square float32 holds; {count} of {len(vectors)} are longer"
            )
        nowhere = lengths < 0.5  # of a direction it is 1
        if self.distance.needs_direction and nowhere.any():
            (row,), count = first_bad(nowhere)
            raise ValueError(
                f"{self._name}: {name}[{row}] is 0, or next to it, and has no direction, as {self._kind} needs; "
                f"{count} of {len(vectors)} are"
            )
        return prepared

    def _fresh_ids(self, ids: Any, count: int) -> Int[Tensor, "N"]:
        """Checked ids of new vectors."""
        if ids is None:
            first = int(self.ids.max()) + 1 if len(self) else 0
            if first + count > 2**63:
                raise ValueError(f"{self._name}: {first - 1} is the largest id, and leaves none to follow; give ids")
            return torch.arange(count) + first if count else torch.zeros(0, dtype=torch.int64)
        fresh = whole_ids(ids, self._name, count=count)
        _refuse(self._name, fresh, _repeated(fresh), "comes twice")
        _refuse(self._name, fresh, torch.isin(fresh, self.ids), "is in the index already")
        return fresh


class TableIndex(Index):
    """An index that keeps all vectors in memory, in the order of their ids, beside what the engine needs.

    >>> TableIndex(3).vectors.shape
    torch.Size([0, 3])
    """

    vectors: Float[Tensor, "N D"]

    @door
    def __init__(self, channels: Count, *, distance: Distance | None = None) -> None:
        super().__init__(channels, distance=distance)
        self.register_buffer("vectors", torch.zeros(0, channels, dtype=torch.float32), persistent=False)
        self._ids = torch.zeros(0, dtype=torch.int64)

    @property
    def ids(self) -> Int[Tensor, "N"]:
        """The ids of all vectors, ascending."""
        return self._ids

    def rows(self) -> Iterator[tuple[Float[Tensor, "N D"], Int[Tensor, "N"]]]:
        """All vectors as they are kept, and their ids, some thousands at a time."""
        return zip(self.vectors.split(_ROWS), self._ids.split(_ROWS), strict=True)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write vectors and ids into a safetensors file, whole or not at all; any table index may load it.

        Raises OSError naming the path for a folder that is not there, or a full disk.
        """
        tensors = {"vectors": self.vectors.cpu().contiguous(), "ids": self._ids.contiguous()}
        written = serialize(tensors, metadata={"detkit_index": self._kind})
        write_atomically(path, lambda file: file.write(written), owner=f"{self._name}.save")

    def load(self, path: str | os.PathLike[str]) -> None:
        """Replace the content of this index by that of a file that :meth:`save` wrote.

        Width and distance are those given to the constructor, ``BruteForceIndex(16).load(path)``. Raises ValueError
        naming the file if it is no such file, damaged, or of another width or distance; then nothing is changed.
        """
        vectors, ids = _read(Path(path), f"{self._name}.load", self.channels, self._kind)
        if not torch.allclose(self._prepared(vectors, f"vectors of {path}"), vectors):
            raise ValueError(f"{self._name}.load: {path} is damaged: its vectors are not as {self._kind} prepares them")
        self.vectors, self._ids = vectors.to(self.vectors.device), ids
        self._changed()

    def _insert(self, vectors: Float[Tensor, "N D"], ids: Int[Tensor, "N"]) -> None:
        merged, order = torch.cat((self._ids, ids)).sort()
        self.vectors = torch.cat((self.vectors, vectors.to(self.vectors.device)))[order.to(self.vectors.device)]
        self._ids = merged
        self._changed()

    def _insert_all(self, parts: Iterator[tuple[Tensor, Tensor]]) -> None:
        columns = list(zip(*parts, strict=True))
        if columns:
            self._insert(torch.cat(columns[0]), torch.cat(columns[1]))

    def _delete(self, ids: Int[Tensor, "N"]) -> None:
        kept = ~torch.isin(self._ids, ids)
        self.vectors, self._ids = self.vectors[kept.to(self.vectors.device)], self._ids[kept]
        self._changed()

    def _changed(self) -> None:
        """The vectors are others: what was built of them is out of date."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TableIndex":
        """Move the vectors, as ``.to()`` asks; ``.half()`` and its kin do not reach them, since they would round."""
        vectors = self.vectors
        super()._apply(fn, recurse)
        self.vectors = vectors.to(self.vectors.device)
        self._changed()
        return self

    def _picked(self, rows: Int[Tensor, "Q L"], bound: Float[Tensor, "Q"]) -> Candidates:
        """Candidates by their rows of the table."""
        return Candidates(self.vectors, rows, self._ids[rows.cpu()].to(rows.device), bound)


def rounding_bound(channels: int, queries: Float[Tensor, "Q D"], longest: Float[Tensor, ""]) -> Float[Tensor, "Q"]:
    """How far a squared distance by inner products in float32 may lie from the true one.

    Source: Higham 2002, "Accuracy and Stability of Numerical Algorithms", section 3.1: an inner product of D terms is
    off by at most D units of rounding of the product of the lengths.

    >>> rounding_bound(256, torch.ones(1, 1), torch.tensor(1.0)) < 2e-4
    tensor([True])
    """
    eps = torch.finfo(torch.float32).eps
    return (channels + 4) * eps * (queries.norm(dim=1) + longest).square()


def _read(path: Path, owner: str, channels: int, kind: str) -> tuple[Float[Tensor, "N D"], Int[Tensor, "N"]]:
    """Vectors and ids of a saved index, checked."""
    open_regular(path, owner=owner).close()
    try:
        with safe_open(path, framework="pt") as file:
            held = (file.metadata() or {}).get("detkit_index")
            # Copies: the tensors are the file, mapped, and who writes into that changes them, or kills the process.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{owner}: {path} is no safetensors file, or is damaged: {error}") from error
    if held is None or tensors.keys() != {"vectors", "ids"}:
        raise ValueError(f"{owner}: {path} is no index that save() wrote; it holds {sorted(tensors)}")
    vectors, ids = tensors["vectors"], tensors["ids"]
    if vectors.ndim != 2 or (held, vectors.shape[1]) != (kind, channels):
        raise ValueError(
            f"{owner}: {path} holds {held}s of shape {tuple(vectors.shape)}; this index {kind}s of {channels} numbers"
        )
    if vectors.dtype != torch.float32 or ids.shape != vectors.shape[:1] or bool((ids[1:] <= ids[:-1]).any()):
        raise ValueError(f"{owner}: {path} is damaged: its ids are not those of {len(vectors)} vectors, in order")
    check_finite(vectors, function=owner, name=f"vectors of {path}")
    return vectors, whole_ids(ids, owner)


def whole_ids(ids: Any, owner: str, *, count: int | None = None) -> Int[Tensor, "N"]:
    """Ids as int64 on the host. Raises ValueError for another number of them, for others than numbers from 0 on.

    >>> whole_ids([3, 1], "search")
    tensor([3, 1])
    """
    try:
        given = ids if isinstance(ids, Tensor) else torch.as_tensor(ids, dtype=None if len(ids) else torch.int64)
    except (OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{owner}: ids are no list of numbers 0..2**63 - 1: {error}") from error
    if given.ndim != 1 or given.is_floating_point() or given.dtype == torch.bool:
        raise ValueError(f"{owner}: ids have shape {tuple(given.shape)} and type {given.dtype}; allowed are (N,) int64")
    whole = given.detach().cpu().to(torch.int64)  # of uint64 what is too large becomes negative
    if count not in (None, len(whole)):
        raise ValueError(f"{owner}: {len(whole)} ids for {count} vectors")
    _refuse(owner, whole, whole < 0, "is negative; allowed are 0..2**63 - 1")
    return whole


def _repeated(ids: Int[Tensor, "N"]) -> Bool[Tensor, "N"]:
    ordered, order = ids.sort(stable=True)
    again = torch.zeros_like(ids, dtype=torch.bool)
    again[order[1:]] = ordered[1:] == ordered[:-1]
    return again


def _refuse(owner: str, ids: Int[Tensor, "N"], bad: Bool[Tensor, "N"], why: str) -> None:
    if bad.any():
        (row,), count = first_bad(bad)
        raise ValueError(f"{owner}: ids[{row}]={ids[row].item()} {why}; {count} of {len(ids)} are such")


def _ranked(queries: Float[Tensor, "Q D"], found: Candidates, k: int) -> tuple[Tensor, Int[Tensor, "Q K"]]:
    """Squared distances in float64 and ids of the k nearest candidates, equal ones by id."""
    at_once = max(_NUMBERS // max(found.rows[:1].numel() * queries.shape[1], 1), 1)
    squares = torch.cat(
        [
            (found.table[rows].double() - some[:, None]).square_().sum(-1)
            for some, rows in zip(queries.split(at_once), found.rows.split(at_once), strict=True)
        ]
    )
    return nearest_first(squares, found.ids, k)


def nearest_first(
    distances: Float[Tensor, "Q L"], ids: Int[Tensor, "Q L"], k: int
) -> tuple[Float[Tensor, "Q K"], Int[Tensor, "Q K"]]:
    """The k smallest distances in ascending order and their ids, equal ones in order of their ids.

    >>> nearest_first(torch.tensor([[2.0, 1.0, 1.0]]), torch.tensor([[4, 9, 7]]), 2)
    (tensor([[1., 1.]]), tensor([[7, 9]]))
    """
    by_id = ids.argsort(dim=1, stable=True)
    distances, order = distances.gather(1, by_id).sort(dim=1, stable=True)
    return distances[:, :k], ids.gather(1, by_id.gather(1, order))[:, :k]


def recall_of(found: Int[Tensor, "Q K"], true: Int[Tensor, "Q K"]) -> float:
    """The fraction of the ``true`` neighbors that were found.

    >>> recall_of(torch.tensor([[1, 2]]), torch.tensor([[2, 3]]))
    0.5
    """
    return (found[:, :, None] == true[:, None]).any(2).float().mean().item()
