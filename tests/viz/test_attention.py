"""What attention_maps records: each attention's weights under its name, without changing what the model does."""

import pytest
import torch
from torch import nn

from detkit.layers.transformer import Attention, DecoderLayer, EncoderLayer, TransformerDecoder, TransformerEncoder
from detkit.viz.attention import attention_maps


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = TransformerEncoder([EncoderLayer(8, 2, hidden=16, dropout=0.3)])
        self.decoder = TransformerDecoder([DecoderLayer(8, 2, hidden=16) for _ in range(2)])

    def forward(self, queries, cells, inside):
        memory = self.encoder(cells, mask=inside[:, None])
        return self.decoder(queries, memory, memory_mask=inside[:, None], causal=True)[-1]


@pytest.fixture
def model() -> Both:
    torch.manual_seed(0)
    return Both().eval()


GIVEN = torch.rand(2, 3, 8), torch.rand(2, 7, 8), torch.arange(7) < torch.tensor([[4], [7]])


def test_every_attention_is_recorded_under_its_name(model):
    with attention_maps(model) as maps:
        model(*GIVEN)
    shapes = {name: [tuple(weights.shape) for weights in calls] for name, calls in maps.items()}
    assert shapes == {
        "encoder.layers.0.attention": [(2, 2, 7, 7)],
        "decoder.layers.0.attention": [(2, 2, 3, 3)],
        "decoder.layers.0.memory_attention": [(2, 2, 3, 7)],
        "decoder.layers.1.attention": [(2, 2, 3, 3)],
        "decoder.layers.1.memory_attention": [(2, 2, 3, 7)],
    }


def test_weights_are_detached_shares_that_obey_the_masks(model):
    with attention_maps(model) as maps:
        model(*GIVEN)
    for (weights,) in maps.values():
        assert not weights.requires_grad
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    assert maps["decoder.layers.1.memory_attention"][0][0, :, :, 4:].abs().max() == 0
    assert maps["decoder.layers.0.attention"][0].triu(1).abs().max() == 0


def test_results_and_gradients_stay_as_they_are_and_afterwards_nothing_is_recorded(model):
    expected = model(*GIVEN)
    expected.sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    with attention_maps(model) as maps:
        found = model(*GIVEN)
        model(*GIVEN)
    found.sum().backward()
    assert torch.equal(found, expected)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    model(*GIVEN)
    assert {len(calls) for calls in maps.values()} == {2}


def test_a_block_within_another_records_for_both(model):
    with attention_maps(model) as outer:
        with attention_maps(model) as inner:
            model(*GIVEN)
        model(*GIVEN)
    assert {len(calls) for calls in outer.values()} == {2}
    assert {len(calls) for calls in inner.values()} == {1}
    assert not any("attend" in vars(part) for part in model.modules())


def test_an_error_inside_leaves_the_model_as_it_was(model):
    with pytest.raises(KeyError, match="stop"), attention_maps(model):
        raise KeyError("stop")
    assert not any("attend" in vars(part) for part in model.modules() if isinstance(part, Attention))


def test_a_model_without_attention_has_no_maps():
    with attention_maps(nn.Linear(2, 2)) as maps:
        pass
    assert maps == {}
