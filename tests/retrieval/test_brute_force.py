"""BruteForceIndex: groups, chunks and second looks change nothing."""

import numpy as np
import pytest
import torch

from detkit.retrieval import BruteForceIndex
from detkit.retrieval import brute_force as module
from detkit.retrieval import index as index_module


def drawn(rows: int, width: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, width))).float()


def filled(vectors: torch.Tensor) -> BruteForceIndex:
    index = BruteForceIndex(vectors.shape[1])
    index.add(vectors)
    return index


@pytest.mark.parametrize("count", [1, 7, 40])
@pytest.mark.parametrize("columns", [64, 1000, 5000, 5001])
def test_the_best_of_groups_are_the_best_of_all(count, columns):
    scores = drawn(6, columns)
    best = module._best(scores, count)
    expected = scores.topk(count)
    assert torch.equal(best.values, expected.values)
    assert torch.equal(best.indices, expected.indices)


def test_queries_in_parts_find_the_same(monkeypatch):
    index, queries = filled(drawn(3000)), drawn(50, seed=1)
    whole = index.search(queries, 5)
    monkeypatch.setattr(module, "_AT_ONCE", 3000 * 7)
    monkeypatch.setattr(index_module, "_NUMBERS", 21 * 4 * 9)
    assert torch.equal(index.search(queries, 5).ids, whole.ids)


def test_more_ties_than_candidates_are_all_looked_at():
    vectors = torch.cat((torch.ones(100, 4), drawn(50) + 9))
    assert filled(vectors.flip(0)).search(torch.ones(1, 4), 3).ids.tolist() == [[50, 51, 52]]


def test_near_duplicates_far_from_the_origin_are_told_apart():
    """Products of float32 can't: all 200 differences are below their rounding."""
    vectors = torch.full((200, 8), 1000.0)
    vectors[:, 0] += torch.arange(200) * 2**-13
    index = filled(vectors.flip(0))
    assert index.search(vectors[:1], 5).ids.tolist() == [[199, 198, 197, 196, 195]]


def test_it_moves_and_is_no_part_of_a_state():
    index = filled(drawn(3))
    assert index.double().vectors.dtype == torch.float64
    assert index.state_dict() == {}
    assert str(filled(drawn(3))) == "BruteForceIndex(\n  4, vectors=3\n  (distance): EuclideanDistance()\n)"
