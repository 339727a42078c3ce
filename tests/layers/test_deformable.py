"""Deformable attention against a loop over points, grid_sample and transformers; gradients; what hurts."""

import math

import pytest
import torch
from strategies import unhooked
from torch import Tensor, nn
from torch.nn import functional as F

from detkit.layers import deformable
from detkit.layers.deformable import DeformableAttention, deformable_attention

SHAPES = [(4, 5), (2, 3), (1, 1)]


def inputs(
    queries: int = 7, *, heads: int = 2, depth: int = 3, points: int = 2, seed: int = 0, images: int = 2
) -> tuple[Tensor, Tensor, Tensor]:
    """Values, locations (some outside the maps) and weights, float64."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    grid = (images, queries, heads, len(SHAPES), points)
    cells = sum(rows * columns for rows, columns in SHAPES)
    return rand(images, cells, heads, depth) - 0.5, rand(*grid, 2) * 1.6 - 0.3, rand(*grid)


def by_loops(values: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """Point by point, cell by cell, in Python."""
    images, queries, heads, _, points, _ = locations.shape
    found = torch.zeros(images, queries, heads, values.shape[3], dtype=values.dtype)
    for b in range(images):
        for q in range(queries):
            for h in range(heads):
                first = 0
                for level, (rows, columns) in enumerate(SHAPES):
                    for p in range(points):
                        x, y = locations[b, q, h, level, p].tolist()
                        x, y = x * columns - 0.5, y * rows - 0.5
                        for row in range(rows):
                            for column in range(columns):
                                share = max(0, 1 - abs(x - column)) * max(0, 1 - abs(y - row))
                                share *= weights[b, q, h, level, p].item()
                                found[b, q, h] += share * values[b, first + row * columns + column, h]
                    first += rows * columns
    return found.flatten(2)


def by_grid_sample(values: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """Differentiable, map by map."""
    images, queries, heads, *_ = locations.shape
    found, first = 0, 0
    for level, (rows, columns) in enumerate(SHAPES):
        maps = values[:, first : first + rows * columns].permute(0, 2, 3, 1).reshape(images * heads, -1, rows, columns)
        grid = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
        sampled = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        found = found + (sampled * weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
        first += rows * columns
    return found.reshape(images, heads, -1, queries).permute(0, 3, 1, 2).flatten(2)


def gradients(function, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    given = tuple(rows.clone().requires_grad_() for rows in given)
    result = function(*given)
    outer = torch.randn(result.shape, generator=torch.Generator().manual_seed(9), dtype=result.dtype)
    return torch.autograd.grad(result, given, outer)


def own(values: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    return deformable_attention(values, SHAPES, locations.flatten(3, 4), weights.flatten(3))


def test_it_equals_a_loop_over_points_and_cells():
    given = inputs(4, images=1)
    torch.testing.assert_close(own(*given), by_loops(*given))


def test_results_and_gradients_equal_those_of_grid_sample():
    given = inputs(30)
    torch.testing.assert_close(own(*given), by_grid_sample(*given))
    for found, expected in zip(gradients(own, given), gradients(by_grid_sample, given), strict=True):
        torch.testing.assert_close(found, expected)
        assert expected.abs().sum() > 0


@pytest.mark.slow
def test_results_and_gradients_equal_transformers_reference():
    peer = pytest.importorskip(
        "transformers.models.deformable_detr.modeling_deformable_detr",
        reason="transformers is not installed: deformable attention was NOT compared with its reference",
    )

    def reference(values: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        sampler = peer.MultiScaleDeformableAttention()
        return sampler(values, torch.tensor(SHAPES), SHAPES, None, locations, weights, 64)

    given = inputs(30, seed=3)
    torch.testing.assert_close(own(*given), reference(*given))
    for found, expected in zip(gradients(own, given), gradients(reference, given), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.slow
def test_results_and_gradients_equal_those_of_rt_detr_v2_with_other_numbers_of_points_on_each_level(discrete):
    peer = pytest.importorskip(
        "transformers.models.rt_detr_v2.modeling_rt_detr_v2",
        reason="transformers is not installed: sampling of cells was NOT compared with its reference",
    )
    counts, method = [3, 1, 2], "discrete" if discrete else "default"

    def ours(values: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return deformable_attention(values, SHAPES, locations, weights, counts=counts, discrete=discrete)

    def theirs(values: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return peer.multi_scale_deformable_attention_v2(values, SHAPES, locations, weights, counts, method)

    values, locations, weights = inputs(30)
    given = values, locations.flatten(3, 4), weights.flatten(3)
    torch.testing.assert_close(ours(*given), theirs(*given))
    if discrete:  # locations have no gradient
        found = gradients(lambda one, two: ours(one, given[1], two), (values, given[2]))
        expected = gradients(lambda one, two: theirs(one, given[1], two), (values, given[2]))
    else:
        found, expected = gradients(ours, given), gradients(theirs, given)
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other)
        assert other.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_form_for_other_runtimes_finds_the_same(dtype):
    values, locations, weights = inputs(9)
    locations[:, 1, :, 0] = math.nan
    for query, far in enumerate((math.inf, -math.inf, 1e30, -1e30, 3.0), 2):
        locations[:, query, :, 1, :, query % 2] = far
    given = values.to(dtype), SHAPES, [3, 1, 2], locations.flatten(3, 4).float(), weights.flatten(3).float()
    torch.testing.assert_close(deformable._sampled_maps(*given), deformable._plain(*given), atol=1e-5, rtol=0.01)


@pytest.mark.parametrize("far", [1e30, -1e30, math.inf, -math.inf, math.nan])
def test_cells_far_away_are_those_of_the_border_and_those_nowhere_nothing(far):
    values = torch.tensor([1.0, 3.0]).reshape(1, 2, 1, 1)
    location = torch.tensor([far, 0.5]).reshape(1, 1, 1, 1, 2)
    found = deformable_attention(values, [(1, 2)], location, torch.ones(1, 1, 1, 1), discrete=True).item()
    assert found == (0 if not math.isfinite(far) else 3 if far > 0 else 1)


@pytest.mark.slow
def test_gradcheck():
    given = tuple(rows.requires_grad_() for rows in inputs(2, heads=1, images=1))
    assert torch.autograd.gradcheck(own, given)


def test_one_of_many_levels_is_where_the_point_says():
    values = torch.arange(27.0).reshape(1, 27, 1, 1)
    locations = torch.tensor([[0.1, 0.125], [1 / 6, 0.25], [0.5, 0.5]]).reshape(1, 1, 1, 3, 2)
    for level, first in enumerate([0, 20, 26]):
        weights = torch.eye(3)[level].reshape(1, 1, 1, 3)
        assert deformable_attention(values, SHAPES, locations, weights).item() == pytest.approx(first, abs=1e-5)


@pytest.mark.parametrize("far", [1e30, -1e30, math.inf, -math.inf, math.nan, 3.0, -3.0])
def test_points_that_are_nowhere_find_nothing_and_change_no_other(far):
    values, locations, weights = inputs(3)
    expected = own(values, locations.clone(), torch.where(torch.arange(3)[:, None, None, None] == 1, 0, weights))
    locations[:, 1] = far
    found = own(values, locations, weights)
    torch.testing.assert_close(found, expected)
    assert not found[:, 1].any()
    for gradient in gradients(own, (values, locations, weights)):
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_points_apart(dtype):
    """On a map of 1000 columns bfloat16 could not tell neighbors, were locations multiplied in it."""
    values = torch.arange(1000.0).reshape(1, 1000, 1, 1)
    location = torch.tensor([0.7505, 0.5]).reshape(1, 1, 1, 1, 2)
    found = deformable_attention(values.to(dtype), [(1, 1000)], location, torch.ones(1, 1, 1, 1, dtype=dtype))
    assert found.dtype == dtype
    assert found.item() == pytest.approx(750, abs=2.5)


def test_no_queries_find_nothing():
    assert own(*inputs(0)).shape == (2, 0, 6)


def module_inputs(coordinates: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    queries, memory = (torch.randn(2, count, 8, generator=generator, dtype=torch.float64) for count in (5, 27))
    return queries, torch.rand(2, 5, 3, coordinates, generator=generator, dtype=torch.float64), memory


@pytest.mark.slow
@pytest.mark.parametrize("coordinates", [2, 4], ids=["points", "boxes"])
def test_the_module_equals_transformers_with_its_weights(coordinates):
    peer = pytest.importorskip(
        "transformers.models.deformable_detr.modeling_deformable_detr",
        reason="transformers is not installed: DeformableAttention was NOT compared with its module",
    )
    from transformers import DeformableDetrConfig, ResNetConfig

    config = DeformableDetrConfig(
        d_model=8, num_feature_levels=3, use_timm_backbone=False, backbone=None, backbone_config=ResNetConfig()
    )
    torch.manual_seed(0)
    theirs = peer.DeformableDetrMultiscaleDeformableAttention(config, num_heads=2, n_points=4).double()
    ours = DeformableAttention(8, 2, levels=3).double()
    pairs = {"offsets": "sampling_offsets", "weights": "attention_weights", "value": "value_proj"}
    for name, other in {**pairs, "output": "output_proj"}.items():
        part = ours.get_submodule(name)
        torch.nn.init.normal_(part.weight, std=0.3)
        theirs.get_submodule(other).load_state_dict(part.state_dict())
    queries, references, memory = module_inputs(coordinates)
    inside = torch.arange(27) < torch.tensor([[20], [27]])
    expected, _ = theirs(
        queries,
        attention_mask=inside,
        encoder_hidden_states=memory,
        reference_points=references,
        spatial_shapes=torch.tensor(SHAPES),
        spatial_shapes_list=SHAPES,
    )
    torch.testing.assert_close(ours(queries, references, memory, SHAPES, inside=inside), expected)


@pytest.mark.parametrize("method", ["default", "discrete"])
def test_the_module_without_projections_equals_d_fine_with_its_weights(method):
    peer = pytest.importorskip(
        "transformers.models.d_fine.modeling_d_fine",
        reason="transformers is not installed: DeformableAttention was NOT compared with D-FINE's",
    )
    from transformers import DFineConfig, ResNetConfig

    settings = {"decoder_attention_heads": 2, "decoder_n_points": [3, 1, 2], "decoder_offset_scale": 0.25}
    config = DFineConfig(backbone_config=ResNetConfig(), d_model=8, decoder_method=method, **settings)
    torch.manual_seed(0)
    theirs = peer.DFineMultiscaleDeformableAttention(config).double()
    points = {"points": (3, 1, 2), "offset_scale": 0.25, "discrete": method == "discrete"}
    ours = DeformableAttention(8, 2, levels=3, projected=False, **points).double()
    for name, other in {"offsets": "sampling_offsets", "weights": "attention_weights"}.items():
        torch.nn.init.normal_(ours.get_submodule(name).weight, std=0.3)
        theirs.get_submodule(other).load_state_dict(ours.get_submodule(name).state_dict())
    queries, references, memory = module_inputs(4)
    references = references[:, :, :1]  # one for all levels
    expected, _ = theirs(
        queries,
        encoder_hidden_states=memory,
        reference_points=references,
        spatial_shapes=torch.tensor(SHAPES),
        spatial_shapes_list=SHAPES,
    )
    torch.testing.assert_close(ours(queries, references, memory, SHAPES), expected)


def test_at_the_start_heads_look_in_their_directions_with_equal_weights():
    attention = DeformableAttention(8, 4, levels=1, points=2)
    offsets = attention.offsets.bias.reshape(4, 2, 2)
    expected = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    torch.testing.assert_close(offsets, torch.stack((expected, 2 * expected), 1))
    assert not attention.weights.weight.any()
    assert not attention.offsets.weight.any()


def test_every_parameter_of_the_module_learns():
    queries, references, memory = module_inputs()
    attention = DeformableAttention(8, 2, levels=3).double()
    attention(queries, references, memory, SHAPES).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in attention.parameters())


def test_cells_outside_an_image_count_as_nothing_whatever_they_hold():
    queries, references, memory = module_inputs()
    attention, inside = DeformableAttention(8, 2, levels=3).double(), torch.arange(27) % 5 > 0
    inside = inside.expand(2, -1)
    expected = attention(queries, references, memory, SHAPES, inside=inside)
    memory[~inside] = math.nan
    torch.testing.assert_close(attention(queries, references, memory, SHAPES, inside=inside), expected)


def test_wrong_arguments_are_named():
    values, locations, weights = inputs()
    plain = unhooked(deformable_attention)
    with pytest.raises(ValueError, match="K cells in all levels"):
        plain(values[:, 1:], SHAPES, locations.flatten(3, 4), weights.flatten(3))
    with pytest.raises(ValueError, match=r"locations \(2, 7, 2, 3, 2, 2\)"):
        plain(values, SHAPES, locations, weights)
    with pytest.raises(ValueError, match="differ in images or heads"):
        plain(values[:1], SHAPES, locations.flatten(3, 4), weights.flatten(3))
    with pytest.raises(ValueError, match="heads=3 must divide channels=8"):
        DeformableAttention(8, 3, levels=1)
    queries, references, memory = module_inputs()
    with pytest.raises(ValueError, match=r"references.*\(2, 5, 2, 2\).*\(B, Q, 3, 2\)"):
        DeformableAttention(8, 2, levels=3).double()(queries, references[:, :, 1:], memory, SHAPES)
    with pytest.raises(ValueError, match=r"shapes are \[\(4, 5\)\].* 3 shapes"):
        DeformableAttention(8, 2, levels=3).double()(queries, references, memory, SHAPES[:1])
    with pytest.raises(ValueError, match=r"counts=\[2, 2, 1\] for 3 levels and 6 points"):
        plain(values, SHAPES, locations.flatten(3, 4), weights.flatten(3), counts=[2, 2, 1])
    with pytest.raises(ValueError, match=r"points=\(2, 3\) must be one number for each of 3 levels"):
        DeformableAttention(8, 2, levels=3, points=(2, 3))
    assert "heads=2, levels=2, points=(1, 3)" in repr(DeformableAttention(8, 2, levels=2, points=(1, 3)))


def test_where_it_looks_is_what_it_fetches_from():
    torch.manual_seed(0)
    attention = DeformableAttention(6, 2, levels=len(SHAPES), points=2).double()
    nn.init.normal_(attention.weights.weight)
    queries, memory = torch.randn(2, 3, 6, dtype=torch.float64), torch.randn(2, 27, 6, dtype=torch.float64)
    references = torch.rand(2, 3, len(SHAPES), 4, dtype=torch.float64)
    locations, weights = attention.look(queries, references, SHAPES)
    torch.testing.assert_close(weights.sum(3), torch.ones(2, 3, 2, dtype=torch.float64))
    values = attention.value(memory).unflatten(2, (2, -1))
    found = attention.output(deformable_attention(values, SHAPES, locations, weights))
    torch.testing.assert_close(attention(queries, references, memory, SHAPES), found)
