"""FaissIndex: what approximate structures find is measured, and what they do not find is searched for."""

import copy
import sys

import numpy as np
import pytest
import torch

from detkit.retrieval import BruteForceIndex, FaissIndex

pytest.importorskip("faiss", reason="the extra faiss is not installed")


def drawn(rows: int, width: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, width))).float()


def filled(factory: str, rows: int = 400, **settings) -> FaissIndex:
    index = FaissIndex(8, factory, **settings)
    index.add(drawn(rows))
    return index


def test_recall_is_measured_when_the_structure_is_built():
    exact, few, all_cells = filled("Flat"), filled("IVF16,Flat", probes=1), filled("IVF16,Flat", probes=16)
    assert few.recall is None
    for index in (exact, few, all_cells):
        index.search(drawn(1), 1)
    assert exact.recall == all_cells.recall == 1
    assert 0.1 < few.recall < 0.9
    few.remove([0])
    assert few.recall is None


def test_where_cells_hold_fewer_than_k_the_search_is_exact():
    index, truth = filled("IVF16,Flat", probes=1), BruteForceIndex(8)
    truth.add(drawn(400))
    found = index.search(drawn(5, seed=1), 300)
    assert torch.equal(found.ids, truth.search(drawn(5, seed=1), 300).ids)


@pytest.mark.slow
def test_distances_of_compressed_vectors_are_exact():
    index = filled("PQ4x4")
    found = index.search(drawn(5, seed=1), 3)
    expected = (drawn(5, seed=1)[:, None] - drawn(400)[found.ids]).norm(dim=-1)
    torch.testing.assert_close(found.distances, expected)
    assert index.recall < 0.9


def test_effort_is_hnsws():
    assert filled("HNSW8", effort=7)._made().hnsw.efSearch == 7


def test_what_faiss_cannot_build_is_named():
    with pytest.raises(ValueError, match="factory='Tree' is not one that faiss knows"):
        FaissIndex(8, "Tree")
    with pytest.raises(ValueError, match=r"'IVF16,Flat' can't be built of 4 vectors; .* number of clusters .16"):
        filled("IVF16,Flat", rows=4).search(drawn(1), 1)
    for factory in ("IDMap,Flat", "PQ2", "IVF0,Flat"):
        with pytest.raises(ValueError, match=f"FaissIndex: '{factory}' can't be built of 40 vectors"):
            filled(factory, rows=40).search(drawn(1), 1)


@pytest.mark.parametrize("factory", ["IVF16,Flat", "IVF16,Flat,RFlat", "PCA8,IVF16,Flat"])
def test_probes_reach_the_cells_inside_other_structures(factory):
    index = filled(factory, rows=200, probes=16)
    assert index.search(drawn(9), 1).ids.shape == (9, 1)
    assert index.recall == 1


def test_an_index_is_copied_with_its_structure():
    index = filled("IVF4,Flat", rows=100)
    expected = index.search(drawn(5), 3)
    assert torch.equal(copy.deepcopy(index).search(drawn(5), 3).ids, expected.ids)


def test_without_faiss_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r'pip install "torch-detkit\[faiss\]"'):
        FaissIndex(8)
