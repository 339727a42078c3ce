"""Deformable attention by kernels gives what the torch form gives: collected in the interpreter and on a GPU.

``device`` is where the kernels run: the fixture of the folder that collects this.
"""

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.registry import lookup_backend

from detkit import kernels
from detkit.kernels import deformable as ours
from detkit.kernels import switch
from detkit.layers import deformable
from detkit.layers.deformable import deformable_attention

SHAPES = [(4, 5), (2, 3), (1, 1)]


@pytest.fixture(autouse=True)
def kernels_run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter the function calls its operator on the CPU."""
    if "device" in request.fixturenames and request.getfixturevalue("device") == "cpu":
        monkeypatch.setattr(switch, "DEVICES", {"cpu"})


def inputs(queries: int, *, images: int = 1, heads: int = 1, depth: int = 3, points: int = 1) -> list[Tensor]:
    """Values, locations (some outside the maps) and weights."""
    generator = torch.Generator().manual_seed(queries)
    grid = (images, queries, heads, len(SHAPES) * points)
    values = torch.randn(images, 27, heads, depth, generator=generator)
    return [values, torch.rand(*grid, 2, generator=generator) * 1.6 - 0.3, torch.rand(grid, generator=generator)]


def with_gradients(device: str, given: list[Tensor], counts: list[int] | None = None) -> tuple[Tensor, ...]:
    given = [rows.detach().to(device).requires_grad_() for rows in given]
    found = deformable_attention(given[0], SHAPES, *given[1:], counts=counts)
    outer = torch.randn(found.shape, generator=torch.Generator().manual_seed(9)).to(found)
    return found.detach(), *torch.autograd.grad(found, given, outer)


def assert_equal(device: str, given: list[Tensor], *, counts: list[int] | None = None, **tolerance: float) -> None:
    found = with_gradients(device, given, counts)
    with kernels.disabled():
        expected = with_gradients(device, given, counts)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, **tolerance)


@pytest.mark.parametrize(
    ("queries", "block", "sizes"),
    [
        (0, 32, {}),
        (1, 32, {"images": 2}),
        (37, 32, {"heads": 2, "points": 2}),
        (10, 16, {"depth": 32}),
        (4097, 4096, {"depth": 4}),
    ],
    ids=str,
)
def test_results_and_gradients_are_those_of_the_torch_form(device, queries, block, sizes, monkeypatch):
    if device == "cpu":
        monkeypatch.setattr(ours, "QUERIES", block)
    assert_equal(device, inputs(queries, **sizes), rtol=1e-4, atol=1e-5)


def test_levels_with_other_numbers_of_points(device):
    assert_equal(device, inputs(9, heads=2, points=2), counts=[1, 3, 2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "others"), [(torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float16,) * 2]
)
def test_half_precision_is_that_of_the_torch_form(device, dtype, others):
    values, places, weights = inputs(17)
    coarse = 2 * torch.finfo(dtype).eps
    assert_equal(device, [values.to(dtype), places.to(others), weights.to(dtype)], rtol=coarse, atol=coarse)


def test_points_that_are_nowhere_find_nothing_and_get_no_gradient(device):
    given = inputs(20)
    nowhere = [math.nan, math.inf, -math.inf, 1e30, -1e30, 3.0, -3.0]
    for query, place in enumerate(nowhere):
        given[1][:, query, ..., query % 2] = place
    for query, place in enumerate([0.0, 0.5, 1.0, 0.125, -0.125, 1.125], len(nowhere)):  # borders, centers of cells
        given[1][:, query] = place
    found, _, by_locations, _ = with_gradients(device, given)
    assert not found[:, : len(nowhere)].any()
    assert found[:, len(nowhere) :].any()
    assert not by_locations[:, : len(nowhere)].any()
    assert_equal(device, given, rtol=1e-4, atol=1e-5)


def test_numbers_that_are_none_spread_no_farther_than_in_the_torch_form(device):
    given = inputs(6)
    given[1] = given[1].clamp(0.3, 0.7)
    given[0][0, 7, 0, 0], given[2][0, 2, 0, 1], given[2][0, 3, 0, 1] = math.nan, math.inf, math.nan
    with warnings.catch_warnings(action="ignore"):  # NumPy's, of arithmetic with them
        assert_equal(device, given, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_strided_inputs(device):
    values, places, weights = inputs(5, heads=2)
    values = values.transpose(1, 2).contiguous().transpose(1, 2)
    places = torch.stack((places, places + 9), -1)[..., 0]
    weights = weights.flip(1)[:, :1].expand(-1, 5, -1, -1)
    assert_equal(device, [values, places, weights], rtol=1e-4, atol=1e-5)


def test_double_precision_is_left_to_the_torch_form(device):
    assert_equal(device, [rows.double() for rows in inputs(4)], rtol=0, atol=0)


def test_where_pytorch_must_be_deterministic_gradients_are_left_to_the_torch_form(device, monkeypatch):
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    monkeypatch.setattr(ours, "sampled_backward_kernel", None)
    assert_equal(device, inputs(4), rtol=1e-4, atol=1e-5)


def test_the_operator_is_what_its_description_says(device):
    values, places, weights = inputs(3)
    given = [rows.to(device).requires_grad_() for rows in (values, places, weights)]
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(deformable._sampled, (given[0], [4, 5, 2, 3, 1, 1], [1, 1, 1], *given[1:]), test_utils=tests)


def test_compiled_it_calls_the_operator_and_exported_plain_operations(device):
    class Attention(nn.Module):
        def forward(self, values: Tensor, places: Tensor, weights: Tensor) -> Tensor:
            return deformable_attention(values, SHAPES, places, weights)

    given = [rows.to(device).requires_grad_() for rows in inputs(5)]
    graphs = []

    def recorded(module: torch.fx.GraphModule, given: list[Tensor]) -> Callable[..., tuple[Tensor, ...]]:
        graphs.append(module.graph)
        return lookup_backend("aot_eager")(module, given)

    compiled = torch.compile(Attention(), fullgraph=True, backend=recorded, dynamic=True)
    outer = torch.ones(1, 5, 3, device=device)
    found = compiled(*given), *torch.autograd.grad(compiled(*given), given, outer)
    expected = deformable_attention(given[0], SHAPES, *given[1:])
    for one, other in zip(found, (expected, *torch.autograd.grad(expected, given, outer)), strict=True):
        torch.testing.assert_close(one, other)
    exported = torch.export.export(Attention(), tuple(given)).graph
    holds = [any("deformable_attention" in str(node.target) for node in graph.nodes) for graph in (*graphs, exported)]
    assert holds == [True, False]
