"""MapEncoder: the cells of a map as rows, where they lie, and that padding is not attended to."""

import pytest
import torch
from torch import nn

from detkit.layers import (
    EncoderLayer,
    GridPositions,
    LevelProjection,
    MapAttention,
    MapEncoder,
    SinePositions,
    TransformerEncoder,
)
from detkit.structures import Images

D = 8


def encoder(layers: int = 1, *, positions_in_cells: bool = True) -> MapEncoder:
    torch.manual_seed(0)
    own = TransformerEncoder([EncoderLayer(D, 2, hidden=16) for _ in range(layers)])
    return MapEncoder(
        nn.Conv2d(4, D, 1), positions=SinePositions(D), encoder=own, positions_in_cells=positions_in_cells
    ).eval()


def test_cells_are_rows_of_the_last_map_and_know_what_is_image():
    features = [torch.zeros(2, 4, 4, 6), torch.randn(2, 4, 2, 3)]
    images = Images(torch.zeros(2, 3, 64, 96), torch.tensor([[64, 96], [32, 40]]))
    found = encoder(0)(features, images)
    projected = encoder(0).projection(features[-1])
    positions = SinePositions(D)(found.mask.unflatten(2, (2, 3))[:, 0])
    # Once before the encoder, which here does nothing, and once behind it.
    assert torch.equal(found.cells[1, 4], projected[1, :, 1, 1] + positions[1, :, 1, 1] + positions[1, :, 1, 1])
    assert found.mask[:, 0].tolist() == [[True] * 6, [True, True, False, False, False, False]]
    assert found.cells.shape == (2, 6, D)


def test_positions_beside_the_cells_are_compared_and_not_fetched():
    features = [torch.randn(2, 4, 2, 3)]
    images = Images(torch.zeros(2, 3, 64, 96), torch.tensor([[64, 96], [32, 40]]))
    built = encoder(1, positions_in_cells=False)
    found = built(features, images)
    inside = found.mask.unflatten(2, (2, 3))[:, 0]
    cells, positions = (rows.flatten(2).mT for rows in (built.projection(features[0]), SinePositions(D)(inside)))
    assert torch.equal(found.positions, positions)
    assert torch.equal(found.cells, built.encoder(cells, positions=positions, mask=found.mask))
    assert encoder(1)(features, images).positions is None


def test_cells_that_look_alike_are_told_apart_by_where_they_lie():
    images = Images(torch.zeros(1, 3, 64, 96), torch.tensor([[64, 96]]))
    built = encoder(1)
    nn.init.zeros_(built.projection.weight)
    found = built([torch.zeros(1, 4, 2, 3)], images).cells[0]
    assert torch.pdist(found).min() > 0.1


@pytest.mark.parametrize("positions_in_cells", [True, False])
def test_what_lies_outside_the_image_changes_nothing_inside(positions_in_cells):
    built = encoder(2, positions_in_cells=positions_in_cells)
    images = Images(torch.zeros(1, 3, 64, 96), torch.tensor([[64, 60]]))
    features = torch.randn(1, 4, 2, 3)
    broken = features.clone()
    broken[..., 2] = 100.0
    inside = torch.tensor([0, 1, 3, 4])
    one, other = (built([given], images).cells[:, inside] for given in (features, broken))
    assert torch.equal(one, other)
    broken[..., 1] = 100.0
    assert not torch.allclose(built([broken], images).cells[:, 0], one[:, 0])


def test_a_map_attends_to_itself_and_keeps_its_place():
    torch.manual_seed(0)
    layers = TransformerEncoder([EncoderLayer(D, 2, hidden=16)])
    attention, features = MapAttention(GridPositions(D), layers).eval(), torch.randn(2, D, 3, 4)
    rows = features.flatten(2).mT
    positions = GridPositions(D)(torch.ones(1, 3, 4, dtype=torch.bool)).flatten(2).mT
    expected = layers(rows, positions=positions)
    torch.testing.assert_close(attention(features)[:, :, 2, 1], expected[:, 9])


def test_levels_are_projected_each_by_its_own_and_the_rest_from_the_last():
    torch.manual_seed(0)
    projections = [nn.Conv2d(4, D, 1), nn.Conv2d(6, D, 1), nn.Conv2d(6, D, 3, stride=2, padding=1)]
    features = [torch.randn(2, 4, 4, 6), torch.randn(2, 6, 2, 3)]
    images = Images(torch.zeros(2, 3, 64, 96), torch.tensor([[64, 96], [32, 40]]))
    memory = LevelProjection(projections)(features, images)
    assert memory.shapes == [(4, 6), (2, 3), (1, 2)]
    torch.testing.assert_close(memory.cells[1, 7], projections[0](features[0])[1, :, 1, 1])
    torch.testing.assert_close(memory.cells[0, -1], projections[2](features[1])[0, :, 0, 1])
    assert memory.inside[1, :24].view(4, 6).tolist() == [[True] * 3 + [False] * 3] * 2 + [[False] * 6] * 2
    with pytest.raises(ValueError, match="LevelProjection"):
        LevelProjection(projections[:1])(features, images)


@pytest.mark.parametrize("kind", ["attention", "projection"])
def test_a_batch_norm_before_it_has_the_gradients_of_a_batch_also_for_one_image(kind):
    """Where rows are taken of a map, gradients come back transposed, which norms of one image take amiss."""
    torch.manual_seed(0)
    norm, weights = nn.BatchNorm2d(D).double().eval(), torch.randn(1, 12, D).double()
    attention = MapAttention(GridPositions(D), TransformerEncoder([EncoderLayer(D, 2, hidden=16)])).double().eval()
    features, found = torch.randn(2, D, 3, 4).double(), []
    for count in (1, 2):
        maps = features[:count].clone().requires_grad_()
        if kind == "attention":
            rows = attention(norm(maps)).flatten(2).mT
        else:
            images = Images(torch.zeros(count, 3, 12, 16), torch.tensor([[12, 16]] * count))
            rows = LevelProjection([norm])([maps], images).cells
        found.append(torch.autograd.grad((rows[:1] * weights).sum(), maps)[0][0])
    torch.testing.assert_close(found[0], found[1])
