"""ShardedIndex in one process; in several see test_dist."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from detkit.retrieval import BruteForceIndex, ShardedIndex, sharded


def test_in_one_process_it_is_the_index_itself():
    index = BruteForceIndex(2)
    index.add(torch.tensor([[0.0, 1], [1, 0], [1, 0]]), [9, 8, 7])
    queries = torch.rand(4, 2)
    for one, other in zip(ShardedIndex(index).search(queries, 3), index.search(queries, 3), strict=True):
        assert torch.equal(one, other)


def test_a_k_above_all_parts_together_is_named():
    with pytest.raises(ValueError, match=r"ShardedIndex.search: k=1 of 0 vectors; allowed is 1..0"):
        ShardedIndex(BruteForceIndex(2)).search(torch.zeros(1, 2), 1)


class Group:
    """Threads in the place of processes: what they gather, each with its own rank."""

    def __init__(self, size: int) -> None:
        self.values: list[Any] = [None] * size
        self.barrier = threading.Barrier(size, timeout=20)
        self.own = threading.local()

    def rank(self) -> int:
        return self.own.rank

    def gather_objects(self, value: Any) -> list[Any]:
        self.values[self.rank()] = value
        self.barrier.wait()
        gathered = list(self.values)
        self.barrier.wait()
        return gathered

    def run(self, calls: Sequence[Callable[[], Any]]) -> list[Any]:
        """The result, or the error, of each."""

        def call(rank: int) -> Any:
            self.own.rank = rank
            try:
                return calls[rank]()
            except (ValueError, threading.BrokenBarrierError) as error:
                return error

        with ThreadPoolExecutor(len(calls)) as pool:
            return list(pool.map(call, range(len(calls))))


def shards(group: Group, monkeypatch: pytest.MonkeyPatch, parts: Sequence[tuple[Tensor, list[int]]]) -> list[Any]:
    monkeypatch.setattr(sharded, "gather_objects", group.gather_objects)
    monkeypatch.setattr(sharded, "rank", group.rank)
    indexes = [ShardedIndex(BruteForceIndex(2)) for _ in parts]
    for index, (vectors, ids) in zip(indexes, parts, strict=True):
        index.index.add(vectors, ids)
    return indexes


def test_distances_that_only_float64_tells_apart_keep_their_order(monkeypatch):
    near, far = torch.tensor([[1.0, 0]]), torch.tensor([[1.0, 1e-5]])
    whole, group = BruteForceIndex(2), Group(2)
    whole.add(torch.cat((near, far)), [9, 3])
    indexes = shards(group, monkeypatch, [(near, [9]), (far, [3])])
    query = torch.zeros(1, 2)
    for found in group.run([lambda index=index: index.search(query, 2) for index in indexes]):
        assert found.ids.tolist() == whole.search(query, 2).ids.tolist() == [[9, 3]]


def test_a_bad_query_is_refused_by_all_processes_also_by_one_without_vectors(monkeypatch):
    group = Group(2)
    indexes = shards(group, monkeypatch, [(torch.ones(3, 2), [0, 1, 2]), (torch.zeros(0, 2), [])])
    query = torch.tensor([[torch.nan, 0]])
    for error in group.run([lambda index=index: index.search(query, 2) for index in indexes]):
        assert isinstance(error, ValueError)
        assert "queries[0, 0]=nan" in str(error)
