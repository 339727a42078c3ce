"""The encoder over several maps: what a layer is, where cells look, and that padding changes nothing."""

import pytest
import torch
from torch import Tensor, nn

from detkit.layers.deformable import DeformableAttention
from detkit.layers.level_encoder import DeformableEncoderLayer, LevelEncoder
from detkit.layers.map_encoder import LevelMemory, LevelProjection
from detkit.layers.position import SinePositions
from detkit.structures import Images


def build_layer(levels: int = 2) -> DeformableEncoderLayer:
    torch.manual_seed(0)
    layer = DeformableEncoderLayer(16, hidden=24, attention=DeformableAttention(16, 2, levels=levels))
    for parameter in layer.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    return layer.double()


def build_encoder(depth: int = 2) -> LevelEncoder:
    """Two maps and a third that is convolved from the second."""
    layers = [build_layer(3) for _ in range(depth)]
    projections = [nn.Conv2d(4, 16, 1), nn.Conv2d(6, 16, 1), nn.Conv2d(6, 16, 3, stride=2, padding=1)]
    encoder = LevelEncoder(
        LevelProjection(projections, chained=True),
        positions=SinePositions(16, centered=True),
        layers=layers,
        channels=16,
    )
    return encoder.double().eval()


def features(height: int = 8, width: int = 12) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = ((4, height, width), (6, height // 2, width // 2))
    return [torch.randn(1, *size, generator=generator, dtype=torch.float64) for size in sizes]


def test_a_layer_is_its_two_steps():
    layer = build_layer()
    cells, positions, references = torch.randn(1, 30, 16), torch.randn(1, 30, 16), torch.rand(1, 30, 2, 2)
    cells, positions, references = cells.double(), positions.double(), references.double()
    shapes, inside = [(4, 6), (2, 3)], torch.arange(30)[None] % 7 > 0
    found = layer.attention(cells + positions, references, cells, shapes, inside=inside)
    expected = layer.attention_residual.norm(cells + found)
    expected = layer.feed_forward_residual.norm(expected + layer.feed_forward(expected))
    torch.testing.assert_close(layer(cells, references, shapes, positions=positions, inside=inside), expected)
    bare = layer(cells, references, shapes)
    torch.testing.assert_close(bare, layer(cells, references, shapes, positions=torch.zeros_like(positions)))


def test_layers_follow_each_other_around_the_centers_of_cells():
    encoder, images = build_encoder(), Images(torch.zeros(1, 3, 64, 96), torch.tensor([[64, 96]]))
    memory = encoder.projection(features(), images)
    assert memory.shapes == [(8, 12), (4, 6), (2, 3)]
    x = (torch.arange(12) + 0.5) / 12
    torch.testing.assert_close(memory.centers()[0, :12, :, 0], x[:, None].expand(-1, 3).double())
    positions = []
    for level, (rows, columns) in enumerate(memory.shapes):
        everywhere = torch.ones(1, rows, columns, dtype=torch.bool)
        own = encoder.positions(everywhere, dtype=torch.float64).flatten(2).transpose(1, 2)
        positions.append(own + encoder.levels[level])
    cells = memory.cells
    for layer in encoder.layers:
        cells = layer(cells, memory.centers(), memory.shapes, positions=torch.cat(positions, 1), inside=memory.inside)
    torch.testing.assert_close(encoder(features(), images).cells, cells)


def test_what_is_found_does_not_depend_on_padding():
    encoder = build_encoder()
    wide = [
        torch.full((1, maps.shape[1], *size), 7.0).double()
        for maps, size in zip(features(), ((16, 16), (8, 8)), strict=True)
    ]
    for padded, maps in zip(wide, features(), strict=True):
        padded[:, :, : maps.shape[2], : maps.shape[3]] = maps
    # The third level is a convolution, which looks over the border: what it sees there is not compared.
    encoder.projection.projections[2] = nn.Conv2d(6, 16, 1, stride=2).double()
    alone = encoder(features(), Images(torch.zeros(1, 3, 64, 96), torch.tensor([[64, 96]])))
    found = encoder(wide, Images(torch.zeros(1, 3, 128, 128), torch.tensor([[64, 96]])))
    torch.testing.assert_close(found.cells[found.inside], alone.cells[0])
    torch.testing.assert_close(found.shares[0], torch.tensor([[0.75, 0.5]] * 3, dtype=torch.float64))


def test_further_levels_come_from_the_last_map_or_one_from_the_other():
    maps = [torch.full((1, 1, 2, 2), 1.0), torch.full((1, 1, 1, 1), 2.0)]
    images = Images(torch.zeros(1, 3, 8, 8), torch.tensor([[8, 8]]))
    for chained, last in ((False, 20.0), (True, 200.0)):
        projections = [nn.Conv2d(1, 1, 1, bias=False) for _ in range(4)]
        for part in projections:
            nn.init.constant_(part.weight, 10.0)
        cells = LevelProjection(projections, chained=chained)(maps, images).cells[0, :, 0]
        assert cells.tolist() == [10, 10, 10, 10, 20, 20, last]
    with pytest.raises(ValueError, match="LevelProjection: 2 features for 1 projections"):
        LevelProjection([nn.Identity()])(maps, images)


def test_every_parameter_learns():
    encoder = build_encoder().train()
    encoder(features(), Images(torch.zeros(1, 3, 64, 96), torch.tensor([[50, 96]]))).cells.square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    assert encoder.levels.grad.abs().sum(1).min() > 0


def test_half_precision_keeps_places_exact():
    cells = torch.zeros(1, 3, 8, dtype=torch.bfloat16)
    projected = LevelProjection([nn.Identity()])(
        [torch.zeros(1, 8, 1, 3, dtype=torch.bfloat16)], Images(torch.zeros(1, 3, 8, 24), torch.tensor([[8, 16]]))
    )
    assert projected.cells.dtype == cells.dtype
    torch.testing.assert_close(projected.shares, torch.tensor([[[2 / 3, 1.0]]]))
    memory = LevelMemory(cells, projected.inside, projected.shapes, projected.shares)
    torch.testing.assert_close(memory.fractions()[0, :, 0], torch.tensor([0.25, 0.75, 1.25]))
