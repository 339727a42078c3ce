"""TokenDecoder: what is read and what is not, and steps that equal the whole."""

import math

import pytest
import torch
from strategies import unhooked
from torch import nn

from detkit.heads.token_decoder import STD, TokenDecoder, start_as_sines
from detkit.layers import DecoderLayer, Memory, TransformerDecoder

D, V, L = 8, 12, 6


def decoder() -> TokenDecoder:
    torch.manual_seed(0)
    layers = [DecoderLayer(D, 2, hidden=16, norm_first=True) for _ in range(2)]
    built = TokenDecoder(TransformerDecoder(layers, norm=nn.LayerNorm(D)), channels=D, vocabulary=V, length=L)
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.5)
    return built.eval()


def memory() -> Memory:
    generator = torch.Generator().manual_seed(1)
    mask = torch.tensor([[[True] * 5], [[True, True, True, False, False]]])
    return Memory(torch.randn(2, 5, D, generator=generator), mask)


def tokens(length: int = L):
    return torch.randint(0, V, (2, length), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_give_what_the_whole_gives(dtype):
    built, seen = decoder().to(dtype), Memory(memory().cells.to(dtype), memory().mask)
    with torch.no_grad():
        whole, caches = built(tokens(), seen), built.start(seen)
        steps = [built.step(tokens()[:, at], seen, caches, at=at) for at in range(L)]
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(torch.stack(steps, 1), whole, rtol=tolerance, atol=tolerance)


def test_no_token_looks_at_a_later_one():
    built = decoder()
    changed = tokens()
    changed[:, 3] = (changed[:, 3] + 1) % V
    before, after = built(tokens(), memory()), built(changed, memory())
    assert torch.equal(before[:, :3], after[:, :3])
    assert ((before - after).abs().amax(-1)[:, 3:] > 1e-5).all()


def test_cells_outside_the_image_are_not_looked_at_but_those_inside_are():
    built, seen = decoder(), memory()
    for cell, same in ((4, True), (1, False)):
        cells = seen.cells.clone()
        cells[1, cell] = 50.0
        found = built(tokens(), Memory(cells, seen.mask))
        assert torch.equal(found[0], built(tokens(), seen)[0])
        assert torch.allclose(found[1], built(tokens(), seen)[1]) is same


def test_a_token_is_read_with_its_place():
    built = decoder()
    same = torch.full((1, L), 3)
    seen = Memory(memory().cells[:1], memory().mask[:1])
    logits = built(same, seen)[0]
    assert torch.pdist(logits).min() > 1e-3


def test_positions_beside_the_cells_are_read_too():
    built, seen = decoder(), memory()
    located = seen._replace(positions=torch.randn(2, 5, D, generator=torch.Generator().manual_seed(3)))
    with torch.no_grad():
        whole, caches = built(tokens(), located), built.start(located)
        steps = [built.step(tokens()[:, at], located, caches, at=at) for at in range(L)]
    torch.testing.assert_close(torch.stack(steps, 1), whole, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(whole, built(tokens(), seen))


def test_embeddings_are_shared_with_the_head():
    built = decoder()
    assert built.head.weight is built.embedding.weight
    assert sum(name.startswith(("head", "embedding", "places")) for name, _ in built.named_parameters()) == 3


def test_more_tokens_than_places_are_refused():
    with pytest.raises(ValueError, match=r"7 tokens.*length=6"):
        decoder()(tokens(L + 1), memory())
    with pytest.raises(ValueError, match=r"vocabulary=0.*1"):
        unhooked(TokenDecoder.__init__)(
            nn.Module.__new__(TokenDecoder), decoder().decoder, channels=D, vocabulary=0, length=L
        )


def test_tokens_that_count_start_as_waves_and_no_other_token_changes():
    embedding = nn.Embedding(20, 8)
    before = embedding.weight.detach().clone()
    start_as_sines(embedding, slice(4, 20))
    rows, turns = embedding.weight.detach()[4:], torch.arange(1, 17) / (16 + 1e-6)
    assert torch.equal(embedding.weight[:4], before[:4])
    for i, wave in enumerate(16 ** (torch.arange(4) / 4)):
        angles = 2 * math.pi * 8 * turns / wave
        torch.testing.assert_close(rows[:, 2 * i], STD * 2**0.5 * angles.sin())
        torch.testing.assert_close(rows[:, 2 * i + 1], STD * 2**0.5 * angles.cos())
    with pytest.raises(ValueError, match="must be a multiple of 4"):
        start_as_sines(nn.Embedding(20, 7), slice(4, 20))
