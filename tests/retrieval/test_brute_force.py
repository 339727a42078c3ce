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
    values, rows = module._highest(scores, count)
    expected = scores.topk(count)
    assert torch.equal(values, expected.values)
    assert torch.equal(rows, expected.indices)


def test_queries_in_parts_find_the_same(monkeypatch):
    index, queries = filled(drawn(3000)), drawn(50, seed=1)
    whole = index.search(queries, 5)
    monkeypatch.setattr(module, "_AT_ONCE", 3000 * 7)
    monkeypatch.setattr(index_module, "_NUMBERS", 21 * 4 * 9)
    monkeypatch.setattr(index_module, "_QUERIES", 11)
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
    assert index.state_dict() == {}
    assert index.to("meta").vectors.device.type == "meta"
    assert str(filled(drawn(3))) == "BruteForceIndex(\n  4, vectors=3\n  (distance): EuclideanDistance()\n)"


@pytest.mark.parametrize("coarse", [True, False])
@pytest.mark.parametrize("shift", [0.0, 3.0, 1000.0])
def test_scores_of_any_precision_find_the_nearest(monkeypatch, coarse, shift):
    monkeypatch.setattr(module, "multiplies_bfloat16", lambda device: coarse)
    vectors, queries = drawn(4000, 16) + shift, drawn(30, 16, seed=1) + shift
    expected = (queries.double()[:, None] - vectors.double()).square().sum(-1).topk(10, largest=False)
    assert torch.equal(filled(vectors).search(queries, 10).ids, expected.indices)


def test_no_score_of_bfloat16_is_off_by_more_than_is_said():
    vectors, queries = drawn(2000, 64), drawn(20, 64, seed=1)
    halves = vectors.square().sum(1) / 2
    table = torch.cat((vectors, module._in_three(-halves)), dim=1).bfloat16()
    rounded = (module._with_ones(queries).bfloat16() @ table.T).float()
    exact = queries.double() @ vectors.double().T - halves
    longest = vectors.norm(dim=1).max()
    off = 2 * module._COARSE * queries.norm(dim=1)[:, None] * longest + module._COARSE * rounded.abs() + 1e-4
    assert bool(((rounded - exact).abs() < off).all())
    torch.testing.assert_close(module._in_three(halves).sum(1), halves, rtol=1e-7, atol=0)
