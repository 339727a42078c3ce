"""Distances: the smaller is the nearer, whatever the distance; against subtraction in float64."""

import numpy as np
import pytest
import torch
from strategies import unhooked

from detkit.retrieval import CosineDistance, Distance, EuclideanDistance, squared_distances
from detkit.retrieval.distances import directions

DISTANCES = EuclideanDistance(), CosineDistance()


def drawn(rows: int, width: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, width))).float()


def by_hand(distance: Distance, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    a, b = a.double(), b.double()
    if isinstance(distance, CosineDistance):
        return torch.stack([1 - torch.cosine_similarity(row, b, dim=1) for row in a])
    return torch.stack([(row - b).norm(dim=1) for row in a])


@pytest.mark.parametrize("distance", DISTANCES)
def test_every_pair_is_as_by_hand(distance):
    a, b = drawn(7), drawn(5, seed=1)
    torch.testing.assert_close(distance(a, b).double(), by_hand(distance, a, b), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(distance.paired(a[:, None], b).double(), by_hand(distance, a, b), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("distance", DISTANCES)
def test_prepared_squares_have_the_same_order(distance):
    a, b = distance.prepare(drawn(1)), distance.prepare(drawn(50, seed=1))
    squares = (a - b).square().sum(1)
    assert squares.argsort().tolist() == by_hand(distance, drawn(1), drawn(50, seed=1))[0].argsort().tolist()


@pytest.mark.parametrize("distance", DISTANCES)
def test_equal_embeddings_have_distance_0_and_a_finite_gradient(distance):
    a = drawn(2).requires_grad_()
    near = distance.paired(a, a.detach())
    near.sum().backward()
    assert near.tolist() == [0, 0]
    assert torch.equal(a.grad, torch.zeros_like(a)) or torch.isfinite(a.grad).all()


@pytest.mark.parametrize("distance", DISTANCES)
def test_half_precision_is_promoted(distance):
    assert distance(drawn(2).half(), drawn(3).half()).dtype == torch.float32


@pytest.mark.parametrize("shape", [(4,), (2, 5), (1, 2, 16)])
def test_other_widths_are_refused(shape):
    with pytest.raises(ValueError, match=r"EuclideanDistance: references have shape .*allowed is \(N, D\) and"):
        unhooked(EuclideanDistance())(drawn(3), torch.zeros(shape))


@pytest.mark.parametrize("distance", DISTANCES, ids=["euclidean", "cosine"])
def test_autocast_does_not_round_products(distance):
    vectors = (drawn(8) * 1e-3 + 1).requires_grad_()
    expected = distance(vectors, vectors)
    (slope,) = torch.autograd.grad(expected.sum(), vectors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = distance(vectors, vectors)
        (found_slope,) = torch.autograd.grad(found.sum(), vectors)
    assert torch.equal(found, expected)
    assert torch.equal(found_slope, slope)


@pytest.mark.parametrize("scale", [1e19, 1e30, 3e38])
def test_what_is_finite_has_finite_distances_and_gradients(scale):
    vectors = (drawn(5).clamp(-1, 1) * scale).requires_grad_()
    for references in (vectors, vectors.detach().flip(0)):
        found = EuclideanDistance()(vectors, references)
        (slope,) = torch.autograd.grad(found.sum(), vectors)
        assert torch.isfinite(found).all()
        assert torch.isfinite(slope).all()
    assert squared_distances(torch.tensor([[300.0]]).half(), torch.tensor([[-300.0]]).half()).item() == 600**2


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1.0, 1e15, 1e37])
def test_a_direction_does_not_depend_on_the_length(scale):
    vectors = (drawn(6) * scale).requires_grad_()
    found = directions(vectors)
    torch.testing.assert_close(found, drawn(6) / drawn(6).norm(dim=1, keepdim=True))
    (slope,) = torch.autograd.grad(found[:, 0].sum(), vectors)
    assert torch.isfinite(slope).all()
    assert not directions(torch.zeros(2, 3)).any()
    assert directions(torch.zeros(2, 0)).shape == (2, 0)


@pytest.mark.parametrize("denormal", [True, False])
def test_equal_vectors_are_0_apart_also_where_subnormal_numbers_are_flushed(denormal):
    torch.set_flush_denormal(denormal)
    try:
        assert EuclideanDistance()(torch.zeros(1, 2), torch.zeros(1, 2)).item() == 0
    finally:
        torch.set_flush_denormal(False)
