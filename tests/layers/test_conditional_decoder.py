"""Conditional DETR's attention and decoder: what is compared with what, and what the layers hand on."""

import math

import pytest
import torch
from torch import Tensor, nn

from detkit.layers.conditional_decoder import ConditionalAttention, ConditionalDecoder, ConditionalDecoderLayer


def rows(*lengths: int, channels: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, length, channels, generator=generator, dtype=torch.float64) for length in lengths]


def by_hand(attention: ConditionalAttention, queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """Softmax head by head of what is already projected and split."""
    found = []
    for head in range(heads):
        weights = (queries[:, head] @ keys[:, head].mT / queries.shape[-1] ** 0.5).softmax(-1)
        found.append(weights @ values[..., head * 4 : head * 4 + 4])
    return attention.output(torch.cat(found, -1))


@pytest.mark.parametrize(("places", "added"), [(False, True), (True, True), (True, False)])
def test_attention_by_hand(places, added):
    torch.manual_seed(0)
    attention = ConditionalAttention(8, 2, places=places, positions=added).double()
    queries, keys, positions, there, place = rows(5, 7, 5, 7, 5)
    asked, answered, located = attention.query(queries), attention.key(keys), attention.key_position(there)
    if added:
        asked, answered = asked + attention.query_position(positions), answered + located
    split = [part.unflatten(2, (2, 4)).transpose(1, 2) for part in (asked, answered, located)]
    if places:
        own = attention.place(place).unflatten(2, (2, 4)).transpose(1, 2)
        split[:2] = torch.cat((split[0], own), -1), torch.cat((split[1], split[2]), -1)
    expected = by_hand(attention, split[0], split[1], attention.value(keys), 2)
    given = {"positions": positions, "key_positions": there, "places": place if places else None}
    torch.testing.assert_close(attention(queries, keys, **given), expected)
    mask = torch.ones(2, 1, 7, dtype=torch.bool)
    mask[:, :, 5:] = False
    short = attention(queries, keys[:, :5], **(given | {"key_positions": there[:, :5]}))
    torch.testing.assert_close(attention(queries, keys, **given, mask=mask), short)


def build_decoder(depth: int = 2) -> ConditionalDecoder:
    torch.manual_seed(0)
    layers = [ConditionalDecoderLayer(8, 2, hidden=12, first=i == 0) for i in range(depth)]
    return (
        ConditionalDecoder(layers, points=nn.Linear(8, 2), scale=nn.Linear(8, 8), norm=nn.LayerNorm(8)).double().eval()
    )


def test_a_layer_is_its_three_steps():
    layer = build_decoder().layers[1]
    queries, memory, positions, there, places = rows(5, 7, 5, 7, 5)
    own = layer.attention(queries, queries, positions=positions, key_positions=positions)
    x = layer.attention_residual.norm(queries + own)
    seen = layer.memory_attention(x, memory, positions=positions, key_positions=there, places=places)
    x = layer.memory_residual.norm(x + seen)
    expected = layer.feed_forward_residual.norm(x + layer.feed_forward(x))
    found = layer(queries, memory, positions=positions, places=places, memory_positions=there)
    torch.testing.assert_close(found, expected)
    assert layer.memory_attention.query_position is None


def test_places_are_waves_of_points_scaled_from_the_second_layer_on():
    decoder = build_decoder()
    queries, memory, positions, there = rows(5, 7, 5, 7)
    points = decoder.points(positions).sigmoid()
    torch.testing.assert_close(decoder.references(positions), points)
    waves = []
    for coordinate in (points[..., 1], points[..., 0]):  # y first
        for length in (1.0, 100.0):
            waves += [(2 * math.pi * coordinate / length).sin(), (2 * math.pi * coordinate / length).cos()]
    around, x = torch.stack(waves, -1), queries
    outputs = decoder(queries, memory, positions=positions, memory_positions=there)
    for i, layer in enumerate(decoder.layers):
        places = around * decoder.scale(x) if i else around
        x = layer(x, memory, positions=positions, places=places, memory_positions=there)
        torch.testing.assert_close(outputs[i], decoder.norm(x))


def test_every_parameter_learns():
    decoder = build_decoder()
    queries, memory, positions, there = rows(5, 7, 5, 7)
    decoder(queries, memory, positions=positions, memory_positions=there)[-1].square().mul(queries).sum().backward()
    assert all(parameter.grad is not None for parameter in decoder.parameters())


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="ConditionalAttention: heads=3 must divide channels=8"):
        ConditionalAttention(8, 3)
    own = rows(5)[0]
    with pytest.raises(ValueError, match="ConditionalAttention: places go with an attention that is built with places"):
        ConditionalAttention(8, 2).double()(own, own, positions=own, key_positions=own, places=own)
    with pytest.raises(ValueError, match="ConditionalDecoder: got no layers"):
        ConditionalDecoder([], points=nn.Identity(), scale=nn.Identity(), norm=nn.Identity())
    assert "heads=2, dropout=0.1" in repr(ConditionalAttention(8, 2, dropout=0.1))
