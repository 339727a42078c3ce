"""One behavior of all indexes: every search is that of a loop in float64, and everything wrong is refused by name."""

import tempfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from strategies import unhooked
from thorough import sweep
from torch import Tensor

from detkit.retrieval import (
    BallTreeIndex,
    BruteForceIndex,
    CosineDistance,
    Distance,
    EuclideanDistance,
    FaissIndex,
    Index,
    LanceIndex,
    TableIndex,
)
from detkit.retrieval.index import rounding_bound

pytest.importorskip("faiss", reason="the extra faiss is not installed")
pytest.importorskip("lancedb", reason="the extra lance is not installed")


def lance(channels: int, distance: Distance | None = None) -> LanceIndex:
    return LanceIndex(channels, tempfile.mkdtemp(), distance=distance)


ENGINES = {
    "brute force": BruteForceIndex,
    "ball tree": lambda channels, distance=None: BallTreeIndex(channels, distance=distance, leaf_size=3),
    "faiss flat": lambda channels, distance=None: FaissIndex(channels, distance=distance),
    "faiss IVF": lambda channels, distance=None: FaissIndex(channels, "IVF2,Flat", distance=distance, probes=2),
    "faiss HNSW": lambda channels, distance=None: FaissIndex(channels, "HNSW16", distance=distance),
    "lance": lance,
}
TABLES = [name for name in ENGINES if name != "lance"]
every_engine = pytest.mark.parametrize("engine", ENGINES)
DISTANCES = EuclideanDistance(), CosineDistance()


def drawn(rows: int, width: int = 4, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, width))).float()


def scenes() -> dict[str, Tensor]:
    """Vectors that engines treat badly elsewhere."""
    grid = torch.cartesian_prod(*[torch.arange(3.0)] * 3, torch.ones(1))
    return {
        "random": drawn(40),
        "ties": grid,
        "duplicates": drawn(3).repeat(13, 1),
        "whole numbers of a byte": torch.from_numpy(np.random.default_rng(1).integers(1, 256, (40, 4))).float(),
        "far from the origin": drawn(40) * 1e-2 + 1e3,
        "long and short": drawn(40) * torch.logspace(-4, 4, 40)[:, None],
        "one": drawn(1),
    }


SCENES = scenes()


def by_hand(distance: Distance, queries: Tensor, vectors: Tensor, ids: Tensor, k: int) -> tuple[list, list]:
    """Distances of subtracted float32 vectors in float64, sorted with ties by id."""
    squares = (distance.prepare(queries).double()[:, None] - distance.prepare(vectors)).square().sum(-1)
    rows = [sorted(zip(row.tolist(), ids.tolist(), strict=True))[:k] for row in distance.of_squares(squares)]
    return [[value for value, _ in row] for row in rows], [[number for _, number in row] for row in rows]


def shuffled_ids(count: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(5).permutation(count * 3)[:count]) + 2**62


@every_engine
@pytest.mark.parametrize("distance", DISTANCES, ids=["euclidean", "cosine"])
@pytest.mark.parametrize("scene", SCENES)
def test_a_search_is_that_of_a_loop_ties_by_id(engine, distance, scene):
    vectors, index = SCENES[scene], ENGINES[engine](4, distance=distance)
    if engine == "faiss IVF" and len(vectors) < 2:
        pytest.skip("two cells need two vectors")
    ids = shuffled_ids(len(vectors))
    index.add(vectors, ids)
    queries = torch.cat((vectors[:3], drawn(3, seed=2)))
    for k in {1, min(3, len(vectors)), len(vectors)}:
        distances, found = by_hand(distance, queries, vectors, ids, k)
        result = index.search(queries, k)
        assert result.ids.tolist() == found
        torch.testing.assert_close(result.distances, torch.tensor(distances), rtol=1e-6, atol=1e-7)


@every_engine
def test_vectors_are_added_and_removed_by_id(engine):
    vectors, index = drawn(12), ENGINES[engine](4)
    index.add(vectors[:8])
    index.add(vectors[8:], [20, 30, 40, 2**63 - 1])
    index.remove([0, 30, 5])
    left = torch.tensor([1, 2, 3, 4, 6, 7, 20, 40, 2**63 - 1])
    assert sorted(index.ids.tolist()) == left.tolist()
    assert len(index) == 9
    rows = [1, 2, 3, 4, 6, 7, 8, 10, 11]
    assert index.search(vectors[:4], 5).ids.tolist() == by_hand(index.distance, vectors[:4], vectors[rows], left, 5)[1]
    index.add(vectors[[5]], [0])
    assert index.search(vectors[[5]], 1).ids.item() == 0


@every_engine
def test_indexes_of_different_engines_merge(engine):
    vectors, index, other = drawn(10), ENGINES[engine](4), BruteForceIndex(4)
    index.add(vectors[:6])
    other.add(vectors[6:], range(6, 10))
    index.merge(other)
    assert index.search(vectors, 1).ids.flatten().tolist() == list(range(10))
    whole = BruteForceIndex(4)
    whole.merge(index)
    assert whole.search(vectors, 3).ids.tolist() == index.search(vectors, 3).ids.tolist()
    with pytest.raises(ValueError, match=r"ids\[0\]=6 is in the index already; 4 of 4"):
        index.merge(other)
    with pytest.raises(ValueError, match="holds CosineDistances of 4 numbers; this one EuclideanDistances of 4"):
        index.merge(BruteForceIndex(4, distance=CosineDistance()))


NAN = torch.tensor([[0.0, 1, 2, 3], [0, torch.nan, 0, 0]])
BAD = [
    (lambda index: index.search(torch.zeros(2, 4), 7), r"search: k=7 of 6 vectors; allowed is 1..6"),
    (lambda index: index.search(torch.zeros(2, 5), 1), r"queries have shape \(2, 5\); allowed is \(N, 4\)"),
    (lambda index: index.search(NAN, 1), r"queries\[1, 1\].*nan"),
    (lambda index: index.add(NAN), r"embeddings\[1, 1\].*nan"),
    (
        lambda index: index.add(torch.tensor([[0.0, 0, 0, 0], [0, 1e19, 0, 0]])),
        r"embeddings\[1\] is 1e\+19 long; .* 1e\+18",
    ),
    (lambda index: index.add(torch.zeros(4)), r"embeddings have shape \(4,\); allowed is \(N, 4\)"),
    (lambda index: index.add(torch.ones(2, 4), [7, 7]), r"ids\[1\]=7 comes twice; 1 of 2"),
    (lambda index: index.add(torch.ones(2, 4), [7, 3]), r"ids\[1\]=3 is in the index already; 1 of 2"),
    (lambda index: index.add(torch.ones(2, 4), [7]), "1 ids for 2 vectors"),
    (
        lambda index: index.add(torch.ones(1, 4), torch.tensor([-1])),
        r"ids\[0\]=-1 is negative; allowed are 0..2\*\*63 - 1",
    ),
    (lambda index: index.add(torch.ones(1, 4), torch.tensor([1.5])), r"ids have shape \(1,\) and type torch.float32"),
    (lambda index: index.remove([0, 9]), r"ids\[1\]=9 is not in the index; 1 of 2"),
    (lambda index: index.remove([1, 1]), r"ids\[1\]=1 comes twice; 1 of 2"),
]


@every_engine
def test_what_is_wrong_is_named_and_changes_nothing(engine):
    index = ENGINES[engine](4)
    index.add(drawn(6))
    for call, message in BAD:
        with pytest.raises(ValueError, match=message):
            unhooked(call)(index)
    assert index.ids.tolist() == list(range(6))
    assert index.search(drawn(6), 1).ids.flatten().tolist() == list(range(6))


@every_engine
def test_an_empty_index_says_so_and_nothing_may_be_added_or_removed(engine):
    index = ENGINES[engine](4)
    with pytest.raises(ValueError, match=r"search: k=1 of 0 vectors"):
        index.search(drawn(2), 1)
    index.add(torch.zeros(0, 4))
    index.remove([])
    assert len(index) == 0


def test_under_the_cosine_a_vector_of_zeros_has_no_direction():
    index = BruteForceIndex(4, distance=CosineDistance())
    with pytest.raises(ValueError, match=r"embeddings\[1\] is 0, or next to it, and has no direction, as CosineD"):
        index.add(torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]]))
    with pytest.raises(ValueError, match=r"embeddings\[0\] is 0, or next to it.*; 1 of 1 are"):
        index.add(torch.full((1, 4), 1e-44))


@every_engine
@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e25])
def test_under_the_cosine_lengths_do_not_matter(engine, scale):
    index, same = (ENGINES[engine](4, distance=CosineDistance()) for _ in range(2))
    index.add(drawn(9) * scale)
    same.add(drawn(9))
    found, expected = index.search(drawn(5, seed=1) * scale, 3), same.search(drawn(5, seed=1), 3)
    assert torch.equal(found.ids, expected.ids)
    torch.testing.assert_close(found.distances, expected.distances, rtol=1e-5, atol=1e-6)


def test_a_distance_of_ones_own_may_hold_the_origin():
    class Halved(Distance):
        def of_squares(self, squares: Tensor) -> Tensor:
            return squares / 4

    index = BruteForceIndex(2, distance=Halved())
    index.add(torch.zeros(1, 2))
    assert index.search(torch.tensor([[2.0, 0]]), 1).distances.item() == 1


@every_engine
def test_no_queries_find_nothing(engine):
    index = ENGINES[engine](4)
    index.add(drawn(5))
    found = index.search(torch.zeros(0, 4), 3)
    assert (found.distances.shape, found.ids.shape) == ((0, 3), (0, 3))
    assert (found.distances.dtype, found.ids.dtype) == (torch.float32, torch.int64)


@every_engine
def test_ids_beyond_int64_are_named(engine):
    index = ENGINES[engine](4)
    index.add(drawn(1), [2**63 - 1])
    for ids, message in (
        (None, "9223372036854775807 is the largest id, and leaves none to follow; give ids"),
        ([2**63], r"ids are no list of numbers 0..2\*\*63 - 1"),
        (torch.tensor([2**63], dtype=torch.uint64), "is negative; allowed are 0"),
    ):
        with pytest.raises(ValueError, match=message):
            index.add(drawn(1), ids)
    index.remove([2**63 - 1])
    index.add(drawn(1), [2**63 - 2])
    index.add(drawn(1))
    assert index.ids.tolist() == [2**63 - 2, 2**63 - 1]


@pytest.mark.parametrize("engine", TABLES)
@pytest.mark.parametrize("convert", [torch.nn.Module.half, torch.nn.Module.double])
def test_vectors_stay_float32_in_a_model_of_another_type(engine, convert):
    index = ENGINES[engine](4)
    index.add(drawn(20) * 1e6)
    expected = index.search(drawn(5, seed=1) * 1e6, 3)
    found = convert(index).search(drawn(5, seed=1) * 1e6, 3)
    assert index.vectors.dtype == torch.float32
    assert torch.equal(found.distances, expected.distances)


@every_engine
def test_the_default_type_of_torch_does_not_matter(engine):
    torch.set_default_dtype(torch.float64)
    try:
        index = ENGINES[engine](4)
        index.add(drawn(20).double())
        found, (vectors, _) = index.search(drawn(5), 1), next(iter(index.rows()))
    finally:
        torch.set_default_dtype(torch.float32)
    assert vectors.dtype == found.distances.dtype == torch.float32
    assert found.ids.flatten().tolist() == list(range(5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_become_float32(dtype):
    index = BruteForceIndex(4)
    index.add(drawn(5).to(dtype))
    assert index.search(drawn(5).to(dtype), 1).ids.flatten().tolist() == list(range(5))
    assert index.vectors.dtype == torch.float32


# Files


@pytest.mark.parametrize("engine", TABLES)
def test_a_saved_index_is_loaded_by_any_table(engine, tmp_path):
    index, other = ENGINES[engine](4), BruteForceIndex(4)
    index.add(drawn(9), shuffled_ids(9))
    index.save(tmp_path / "index.safetensors")
    other.add(drawn(2, seed=3))
    other.load(tmp_path / "index.safetensors")
    expected = index.search(drawn(4, seed=1), 5)
    found = other.search(drawn(4, seed=1), 5)
    assert torch.equal(found.ids, expected.ids)
    assert torch.equal(found.distances, expected.distances)
    assert [path.name for path in tmp_path.iterdir()] == ["index.safetensors"]


def test_a_file_that_does_not_fit_is_named_and_changes_nothing(tmp_path):
    index, path = BruteForceIndex(4), tmp_path / "index.safetensors"
    index.add(drawn(3))
    index.save(path)
    whole = path.read_bytes()
    for other, message in (
        (BruteForceIndex(5), r"holds EuclideanDistances of shape \(3, 4\); this index EuclideanDistances of 5"),
        (BruteForceIndex(4, distance=CosineDistance()), "this index CosineDistances of 4 numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            other.load(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"index.safetensors is no safetensors file, or is damaged"):
        index.load(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"is no index that save\(\) wrote; it holds \['weight'\]"):
        index.load(path)
    for ids in (torch.tensor([1, 1, 2]), torch.tensor([1, 2])):
        save_file({"vectors": drawn(3), "ids": ids}, path, metadata={"detkit_index": "EuclideanDistance"})
        with pytest.raises(ValueError, match="is damaged: its ids are not those of 3 vectors, in order"):
            index.load(path)
    for kind, vectors, message in (
        ("EuclideanDistance", drawn(3) * 1e20, r"vectors of .*\[0\] is .* long; allowed is up to 1e\+18"),
        ("CosineDistance", drawn(3), "is damaged: its vectors are not as CosineDistance prepares them"),
    ):
        save_file({"vectors": vectors, "ids": torch.arange(3)}, path, metadata={"detkit_index": kind})
        other = BruteForceIndex(4, distance=CosineDistance() if kind == "CosineDistance" else None)
        with pytest.raises(ValueError, match=message):
            other.load(path)
        assert len(other) == 0
    with pytest.raises(FileNotFoundError, match="no folder"):
        index.save(tmp_path / "nowhere" / "index")
    assert index.ids.tolist() == [0, 1, 2]


def test_a_loaded_index_does_not_change_with_its_file(tmp_path):
    """Tensors of safetensors are the file itself, mapped: written over they change, cut off they end the process."""
    index, path = BruteForceIndex(4), tmp_path / "index.safetensors"
    index.add(drawn(9000))
    index.save(path)
    index.load(path)
    with path.open("r+b") as file:
        file.write(bytes(100_000))
    assert torch.equal(index.vectors, drawn(9000))


# Size


@pytest.mark.slow
def test_thousands_of_wide_vectors_are_found_alike_by_all_exact_engines():
    vectors, queries = drawn(sweep(10_000), 256), drawn(50, 256, seed=1)
    found = {}
    for name in ("brute force", "ball tree", "faiss flat", "lance"):
        index = ENGINES[name](256)
        index.add(vectors)
        found[name] = index.search(queries, 15)
    squares = (queries.double()[:, None] - vectors.double()).square().sum(-1)
    expected = squares.topk(15, largest=False)
    for result in found.values():
        assert torch.equal(result.ids, expected.indices)
        torch.testing.assert_close(result.distances.double(), expected.values.sqrt(), rtol=1e-6, atol=0)


def test_rounding_stays_within_its_bound():
    vectors, queries = drawn(500, 64) + 5, drawn(20, 64, seed=1) + 5
    rounded = vectors.square().sum(1) + queries.square().sum(1)[:, None] - 2 * queries @ vectors.T
    exact = (queries.double()[:, None] - vectors.double()).square().sum(-1)
    bound = rounding_bound(64, queries, vectors.norm(dim=1).max())
    assert bool(((rounded - exact).abs() < bound[:, None]).all())


def test_classes_of_ones_own_say_what_is_missing():
    class Forgetful(Index):
        @property
        def ids(self) -> Tensor:
            return torch.arange(3)

    index = Forgetful(2)
    for call, missing in (
        (lambda: index.add(drawn(1, 2)), "_insert"),
        (lambda: index.remove([1]), "_delete"),
        (lambda: index.search(drawn(1, 2), 1), "_candidates"),
        (index.rows, "rows"),
        (lambda: Index(2).ids, "ids"),
    ):
        with pytest.raises(NotImplementedError, match=f"must define {missing}"):
            call()
    assert len(TableIndex(2)) == 0


@every_engine
@pytest.mark.parametrize("distance", ["cosine", CosineDistance])
def test_a_distance_that_is_none_is_refused(engine, distance):
    with pytest.raises(TypeError, match=r"distance is .*osine.*; give a distance, as CosineDistance\(\), or None"):
        unhooked(ENGINES[engine])(4, distance=distance)


def test_an_empty_index_says_so_when_it_is_searched():
    with pytest.raises(ValueError, match=r"k=1 of 0 vectors; the index is empty: add\(\) some first"):
        BruteForceIndex(4).search(drawn(1), 1)


def test_merging_anything_but_an_index_is_refused():
    with pytest.raises(TypeError, match=r"BruteForceIndex\.merge: other is a Tensor; give an index, or add\(\)"):
        unhooked(BruteForceIndex(4).merge)(drawn(1))
