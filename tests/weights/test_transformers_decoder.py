"""Where transformers' DETRs normalize and drop out; that it is as there is in the tests of each model."""

import pytest
import torch
from torch import nn

from detkit.layers import ConditionalDecoder, ConditionalDecoderLayer, DecoderLayer, TransformerDecoder
from detkit.weights.transformers_decoder import (
    DroppedProjection,
    TransformersConditionalDecoder,
    TransformersDecoder,
)


def decoders(kind: str) -> tuple[nn.Module, nn.Module, dict[str, torch.Tensor]]:
    """One of this library and transformers' form of it, with the same weights, and what both are given."""
    torch.manual_seed(0)
    parts = {"norm": nn.LayerNorm(8)}
    if kind == "conditional":
        layers = [ConditionalDecoderLayer(8, 2, hidden=8) for _ in range(2)]
        parts |= {"points": nn.Linear(8, 2), "scale": nn.Linear(8, 8)}
        plain, other = ConditionalDecoder(layers, **parts), TransformersConditionalDecoder(layers, **parts)
    else:
        layers = [DecoderLayer(8, 2, hidden=8) for _ in range(2)]
        plain, other = TransformerDecoder(layers, **parts), TransformersDecoder(layers, **parts)
    nn.init.normal_(parts["norm"].weight)
    return plain, other, {"positions": torch.rand(1, 3, 8), "memory_positions": torch.rand(1, 5, 8)}


@pytest.mark.parametrize("kind", ["plain", "conditional"])
def test_without_auxiliary_losses_there_is_the_last_output_alone(kind):
    plain, other, given = decoders(kind)
    found = other(torch.zeros(1, 3, 8), torch.ones(1, 5, 8), **given)
    assert len(found) == 1
    torch.testing.assert_close(found[0], plain(torch.zeros(1, 3, 8), torch.ones(1, 5, 8), **given)[-1])


@pytest.mark.parametrize("kind", ["plain", "conditional"])
def test_with_them_layers_start_from_normalized_outputs_and_the_last_is_normalized_twice(kind):
    plain, other, given = decoders(kind)
    other.auxiliary = True
    first, last = other(torch.zeros(1, 3, 8), torch.ones(1, 5, 8), **given)
    torch.testing.assert_close(first, plain(torch.zeros(1, 3, 8), torch.ones(1, 5, 8), **given)[0])
    plain._handed_on = lambda embeddings, normalized: normalized
    torch.testing.assert_close(last, other.norm(plain(torch.zeros(1, 3, 8), torch.ones(1, 5, 8), **given)[-1]))


def test_the_input_is_dropped_out_in_training_alone():
    projection, cells = DroppedProjection(2, 2, dropout=0.9).train(), torch.ones(1, 2, 9, 9)
    assert (projection(cells) == 0).float().mean() > 0.5
    assert (projection.eval()(cells) != 0).all()
