"""EmbeddingHead: layers written out, and what the source's code has."""

import pytest
import torch
from strategies import unhooked
from torch.nn import functional as F

from detkit.heads import EmbeddingHead


def test_it_is_its_layers_written_out():
    head = EmbeddingHead(2 * 3 * 3, 4, hidden=(8,), dropout=0.5, rectified=True).eval()
    regions = torch.randn(5, 2, 3, 3)
    first, last = head.layers[1], head.layers[4]
    hidden = (regions.flatten(1) @ first.weight.T + first.bias).clamp(min=0)
    expected = (hidden @ last.weight.T + last.bias).clamp(min=0)
    torch.testing.assert_close(head(regions), expected)
    torch.testing.assert_close(head(regions.flatten(1)), expected)
    head.normalized = True
    torch.testing.assert_close(head(regions), F.normalize(expected))


def test_neural_codes_of_the_source_have_its_sizes():
    head = EmbeddingHead(11_776, 256, hidden=(1024,), dropout=0.5, rectified=True)
    assert sum(parameter.numel() for parameter in head.parameters()) == 11_776 * 1024 + 1024 + 1024 * 256 + 256
    assert bool((head.eval()(torch.randn(3, 11_776)) >= 0).all())


def test_dropout_is_off_in_eval_mode():
    head, region = EmbeddingHead(4, 4, hidden=(64,), dropout=0.5), torch.randn(1, 4)
    assert not torch.equal(head(region), head(region))
    assert torch.equal(head.eval()(region), head(region))


def test_no_regions_give_no_embeddings():
    assert EmbeddingHead(18, 4)(torch.zeros(0, 2, 3, 3)).shape == (0, 4)


@pytest.mark.parametrize("shape", [(5, 2, 3, 4), (5, 17)])
def test_regions_of_another_size_are_refused(shape):
    with pytest.raises(ValueError, match=r"EmbeddingHead: regions have shape .*in_features=18 numbers each"):
        unhooked(EmbeddingHead(18, 4))(torch.zeros(shape))


def test_an_embedding_of_zeros_stays_so_in_float16():
    head = EmbeddingHead(4, 3, normalized=True).half()
    torch.nn.init.zeros_(head.layers[-1].bias)
    found = head(torch.zeros(2, 4).half())
    assert found.dtype == torch.float16
    assert not found.any()
