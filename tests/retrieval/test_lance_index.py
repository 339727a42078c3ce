"""LanceIndex: what is on disk, who sees it, and what an index on it finds."""

import copy
import pickle
import sys

import numpy as np
import pytest
import torch
from strategies import unhooked

from detkit.retrieval import BruteForceIndex, CosineDistance, LanceIndex

lancedb = pytest.importorskip("lancedb", reason="the extra lance is not installed")


def drawn(rows: int, width: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, width))).float()


def test_another_handle_opens_the_table_and_sees_what_is_added_and_removed(tmp_path):
    index = LanceIndex(8, tmp_path)
    index.add(drawn(5))
    other = LanceIndex(8, tmp_path)
    assert len(other) == 5
    index.add(drawn(2, seed=1), [10, 11])
    index.remove([0])
    assert other.ids.tolist() == [1, 2, 3, 4, 10, 11]
    assert other.search(drawn(2, seed=1), 1).ids.tolist() == [[10], [11]]
    with pytest.raises(ValueError, match=r"ids\[0\]=10 is in the index already"):
        other.add(drawn(1), [10])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda index: pickle.loads(pickle.dumps(index))])
def test_a_copy_is_another_handle_of_the_same_table(tmp_path, copied):
    index = LanceIndex(8, tmp_path, table="some", distance=CosineDistance(), probes=3)
    index.add(drawn(5))
    other = copied(torch.nn.ModuleList([index]))[0]
    index.add(drawn(1, seed=1))
    assert (other.ids.tolist(), other.probes) == ([0, 1, 2, 3, 4, 5], 3)
    found, expected = other.search(drawn(3), 2), index.search(drawn(3), 2)
    assert torch.equal(found.distances, expected.distances)
    lancedb.connect(str(tmp_path)).drop_table("some")
    with pytest.raises(ValueError, match="some"):
        copied(index)


def test_numbers_of_a_byte_stay_real_numbers(tmp_path):
    vectors = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (9, 8)).astype(np.float32))
    index = LanceIndex(8, tmp_path)
    index.add(vectors)
    stored = lancedb.connect(str(tmp_path)).open_table("vectors")
    assert str(stored.schema.field("vector").type) == "fixed_size_list<item: float>[8]"
    assert index.search(vectors, 1).distances.eq(0).all()


def test_an_index_is_approximate_measured_and_can_be_compressed(tmp_path):
    index, truth = LanceIndex(8, tmp_path, probes=1), BruteForceIndex(8)
    index.add(drawn(1000))
    truth.add(drawn(1000))
    expected = truth.search(drawn(4, seed=1), 5)
    assert torch.equal(index.search(drawn(4, seed=1), 5).ids, expected.ids)
    assert 0.1 < index.build(cells=20) < 1
    index.probes = 20
    assert torch.equal(index.search(drawn(4, seed=1), 5).ids, expected.ids)
    assert index.build("IVF_PQ", cells=2) < 1
    found = index.search(drawn(4, seed=1), 5)
    torch.testing.assert_close(found.distances, (drawn(4, seed=1)[:, None] - drawn(1000)[found.ids]).norm(dim=-1))


def test_a_handle_opened_later_searches_the_built_index_and_says_its_recall(tmp_path):
    index = LanceIndex(8, tmp_path, probes=1)
    index.add(drawn(1000))
    assert index.recall is None
    built = index.build(cells=20)
    again = LanceIndex(8, tmp_path, probes=1)
    assert built == again.recall == index.recall < 1
    assert "built=True" in repr(again)


def test_an_unknown_kind_is_refused_and_builds_nothing(tmp_path):
    index = LanceIndex(8, tmp_path)
    index.add(drawn(300))
    with pytest.raises(ValueError, match=r"LanceIndex\.build: kind='ivf_flat'; allowed are 'IVF_FLAT' and 'IVF_PQ'"):
        unhooked(index.build)("ivf_flat")
    assert index.recall is None


def test_where_cells_hold_fewer_than_k_the_search_is_exact(tmp_path):
    index, truth = LanceIndex(8, tmp_path, probes=1), BruteForceIndex(8)
    index.add(drawn(300))
    truth.add(drawn(300))
    index.build(cells=10)
    assert torch.equal(index.search(drawn(3, seed=1), 200).ids, truth.search(drawn(3, seed=1), 200).ids)


def test_compacting_joins_files_and_frees_what_was_removed(tmp_path):
    index = LanceIndex(8, tmp_path)
    for row, vector in enumerate(drawn(6)):
        index.add(vector[None], [row])
    index.remove([1, 2])
    files = list(tmp_path.rglob("*.lance"))
    index.compact()
    assert len(list(tmp_path.rglob("data/*.lance"))) == 1 < len(files)
    assert index.ids.tolist() == [0, 3, 4, 5]


def test_a_table_of_another_kind_is_named(tmp_path):
    LanceIndex(8, tmp_path).add(drawn(2))
    with pytest.raises(ValueError, match=r"holds id: int64, vector: .*\[8\] of EuclideanDistance; this index .*\[9\]"):
        LanceIndex(9, tmp_path)
    with pytest.raises(ValueError, match=r"of EuclideanDistance; this index .* of CosineDistance"):
        LanceIndex(8, tmp_path, distance=CosineDistance())
    lancedb.connect(str(tmp_path)).create_table("others", [{"text": "a"}])
    with pytest.raises(ValueError, match=r"table 'others' at .* holds text: string of no known distance"):
        LanceIndex(8, tmp_path, table="others")


def test_few_vectors_need_no_index(tmp_path):
    index = LanceIndex(8, tmp_path)
    index.add(drawn(255))
    with pytest.raises(ValueError, match="255 vectors; allowed are 256 and more: search is exact"):
        index.build()


def test_without_lancedb_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(ImportError, match=r'pip install "torch-detkit\[lance\]"'):
        LanceIndex(8, tmp_path)


def test_an_index_of_another_kind_is_refused(tmp_path):
    index = LanceIndex(8, tmp_path)
    index.add(drawn(300))
    with pytest.raises(ValueError, match=r"LanceIndex.build: kind='HNSW'; allowed are 'IVF_FLAT' and 'IVF_PQ'"):
        unhooked(index.build)("HNSW")
