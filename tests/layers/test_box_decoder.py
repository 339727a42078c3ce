"""The decoder of box queries: where it looks, how boxes move from layer to layer, and what takes a gradient."""

import math

import pytest
import torch
from torch import Tensor, nn

from detkit.heads.set_prediction import RefinementHead
from detkit.layers.box_decoder import BoxDecoder, BoxPositions, BoxQueries, DeformableDecoderLayer, inverse_sigmoid
from detkit.layers.deformable import DeformableAttention


class Shift(nn.Module):
    """A head that says the embeddings, and moves every box by a learned step."""

    def __init__(self, step: float) -> None:
        super().__init__()
        self.step = nn.Parameter(torch.tensor(step, dtype=torch.float64))

    def forward(self, embeddings: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        return embeddings, boxes + self.step


def build_layer(channels: int = 16, *, levels: int = 1) -> DeformableDecoderLayer:
    attention = DeformableAttention(channels, 2, levels=levels)
    return DeformableDecoderLayer(channels, 2, hidden=24, memory_attention=attention)


def build_decoder(depth: int = 2, *, norm: nn.Module | None = None) -> BoxDecoder:
    """Layers with weights that let queries and places differ."""
    torch.manual_seed(0)
    layers = [build_layer() for _ in range(depth)]
    heads = [Shift(0.01 * (i + 1)) for i in range(depth)]
    decoder = BoxDecoder(layers, heads, positions=BoxPositions(16), norm=norm).double().eval()
    for parameter in decoder.layers.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    return decoder


def given(images: int = 2, queries: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, boxes and the memory of a map of 4 x 6 cells."""
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn(images, queries, 16, generator=generator, dtype=torch.float64)
    boxes = torch.rand(images, queries, 4, generator=generator, dtype=torch.float64) * 0.4 + 0.2
    return embeddings, boxes, torch.randn(images, 24, 16, generator=generator, dtype=torch.float64)


def test_positions_are_waves_of_each_coordinate():
    positions = BoxPositions(16, temperature=9.0)
    positions.net = nn.Identity()
    boxes = torch.tensor([[[0.1, 0.25, 0.5, 1.0]]])
    expected = []
    for value in boxes[0, 0].tolist():
        for longer in (1.0, 3.0):  # the second of two waves is 9 ** (1 / 2) times as long
            expected += [math.sin(2 * math.pi * value / longer), math.cos(2 * math.pi * value / longer)]
    torch.testing.assert_close(positions(boxes)[0, 0], torch.tensor(expected))


def test_queries_start_apart_and_as_large_as_asked():
    embeddings, boxes = BoxQueries(40, 8)(3)
    assert embeddings.shape == (3, 40, 8)
    assert torch.equal(boxes[0], boxes[2])
    torch.testing.assert_close(boxes[..., 2:], torch.full((3, 40, 2), 0.3))
    for side in (0, 1):
        assert 16 <= (boxes[0, :, side] < 0.5).sum() <= 24
    apart = torch.cdist(boxes[0, :, :2], boxes[0, :, :2]) + torch.eye(40)
    assert apart.min() > 0.05
    (embeddings.sum() + boxes.sum()).backward()


def test_a_layer_is_its_three_steps():
    layer = build_decoder(1).layers[0]
    embeddings, boxes, memory = given()
    places = torch.randn_like(embeddings)
    around = boxes[:, :, None]
    own = embeddings + places
    x = layer.attention_residual.norm(embeddings + layer.attention(own, own, embeddings))
    x = layer.memory_residual.norm(x + layer.memory_attention(x + places, around, memory, [(4, 6)]))
    expected = layer.feed_forward_residual.norm(x + layer.feed_forward(x))
    torch.testing.assert_close(layer(embeddings, around, memory, [(4, 6)], positions=places), expected)
    bare = layer(embeddings, around, memory, [(4, 6)])
    torch.testing.assert_close(bare, layer(embeddings, around, memory, [(4, 6)], positions=torch.zeros_like(places)))


def test_every_layer_looks_around_the_boxes_of_the_one_before():
    decoder = build_decoder()
    embeddings, boxes, memory = given()
    logits, refined, _ = decoder(embeddings, boxes, memory, [(4, 6)])
    torch.testing.assert_close(refined, torch.stack((boxes + 0.01, boxes + 0.03)))
    for layer, before, expected in zip(decoder.layers, (boxes, boxes + 0.01), logits, strict=True):
        places = decoder.positions(before)
        embeddings = layer(embeddings, before[:, :, None], memory, [(4, 6)], positions=places)
        torch.testing.assert_close(embeddings, expected)


def test_the_norm_is_for_the_heads_alone():
    embeddings, boxes, memory = given()
    plain = build_decoder()(embeddings, boxes, memory, [(4, 6)])[0]
    normed = build_decoder(norm=nn.LayerNorm(16))(embeddings, boxes, memory, [(4, 6)])[0]
    torch.testing.assert_close(normed, nn.functional.layer_norm(plain, (16,)))


def test_a_box_learns_from_its_own_layer_alone():
    decoder = build_decoder()
    embeddings, boxes, memory = given()
    logits, refined, _ = decoder(embeddings, boxes.requires_grad_(), memory, [(4, 6)])
    (logits[1].square().sum() + refined[1].sum()).backward()
    assert decoder.heads[0].step.grad == 0
    assert decoder.heads[1].step.grad == boxes.numel()
    assert boxes.grad.abs().min() > 0  # those that the queries start with are learned through where the first one looks


def test_a_query_sees_whom_the_mask_allows():
    decoder = build_decoder()
    embeddings, boxes, memory = given()
    mask = torch.eye(5, dtype=torch.bool)[None]
    mask[:, 0] = True
    logits, *_ = decoder(embeddings, boxes, memory, [(4, 6)], mask=mask)
    changed = embeddings.clone()
    changed[:, 4] += 1
    other, *_ = decoder(changed, boxes, memory, [(4, 6)], mask=mask)
    torch.testing.assert_close(other[:, :, 1:4], logits[:, :, 1:4])
    assert (other[-1, :, 0] - logits[-1, :, 0]).abs().max() > 1e-3


def test_boxes_are_fractions_of_the_image_not_of_its_padding():
    decoder = build_decoder()
    embeddings, boxes, memory = given(images=1)
    alone = decoder(embeddings, boxes, memory, [(4, 6)])
    cells = torch.full((1, 6, 9, 16), 7.0, dtype=torch.float64)
    cells[:, :4, :6] = memory.unflatten(1, (4, 6))
    inside = torch.zeros(1, 6, 9, dtype=torch.bool)
    inside[:, :4, :6] = True
    shares = torch.tensor([[[6 / 9, 4 / 6]]], dtype=torch.float64)
    padded = decoder(embeddings, boxes, cells.flatten(1, 2), [(6, 9)], inside=inside.flatten(1), shares=shares)
    torch.testing.assert_close(padded, alone)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"BoxPositions: channels=12.*multiple.*8"):
        BoxPositions(12)
    with pytest.raises(ValueError, match=r"BoxQueries: count=0.*1"):
        BoxQueries(0, 8)
    with pytest.raises(ValueError, match="BoxDecoder: 1 layers and 2 heads; allowed is one head for each layer"):
        BoxDecoder([build_layer(8)], [Shift(0.0), Shift(0.0)], positions=BoxPositions(8))
    assert repr(BoxPositions(8)).startswith("BoxPositions(\n  channels=8, temperature=20.0")


def test_points_become_boxes_and_all_layers_look_around_the_first_without_refinement():
    """Each level of a batch has its own share; positions are given."""
    embeddings, boxes, _ = given()
    memory = torch.randn(2, 30, 16, dtype=torch.float64)
    shapes, shares = [(4, 6), (2, 3)], torch.tensor([[[0.5, 1.0], [2 / 3, 1.0]]] * 2, dtype=torch.float64)
    heads = [RefinementHead(16, num_classes=2, background=False, edge=1e-5) for _ in range(2)]
    for refine in (False, True):
        layers = [build_layer(levels=2) for _ in range(2)]
        decoder = BoxDecoder(layers, heads, positions=None, refine=refine).double().eval()
        for parameter in decoder.parameters():
            nn.init.normal_(parameter, std=0.3)
        logits, found, _ = decoder(embeddings, boxes[..., :2], memory, shapes, positions=embeddings / 2, shares=shares)
        own, around = embeddings, boxes[..., :2]
        for i, layer in enumerate(layers):
            tiled = around[:, :, None] * shares.repeat(1, 1, around.shape[-1] // 2)[:, None]
            own = layer(own, tiled, memory, shapes, positions=embeddings / 2)
            expected = heads[i](own, around)
            torch.testing.assert_close((logits[i], found[i]), expected)
            around = expected[1] if refine else around
    assert "refine=True" in repr(decoder)


def test_the_inverse_of_a_sigmoid_is_one_between_the_edges():
    logits = torch.linspace(-6, 6, 13, dtype=torch.float64)
    torch.testing.assert_close(inverse_sigmoid(logits.sigmoid(), edge=1e-5), logits)
    ends = inverse_sigmoid(torch.tensor([-math.inf, -1.0, 0.0, 1.0, 2.0, math.inf]), edge=1e-2)
    torch.testing.assert_close(ends, torch.tensor([-1.0, -1, -1, 1, 1, 1]) * math.log(100))
    assert inverse_sigmoid(torch.tensor([0.5], dtype=torch.float16)).dtype == torch.float32
