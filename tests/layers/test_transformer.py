"""Attention equals torch's with the same weights; layers equal torch's, pre- and post-norm; caches equal the whole."""

import pytest
import torch
from strategies import unhooked
from torch import Tensor, nn

from detkit.layers.transformer import (
    Attention,
    DecoderLayer,
    EncoderLayer,
    FeedForward,
    KeyValues,
    Residual,
    TransformerDecoder,
    TransformerEncoder,
)

D, HEADS = 12, 3
NORMS = pytest.mark.parametrize("norm_first", [False, True], ids=["post-norm", "pre-norm"])


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def embeddings(count: int, images: int = 2, *, seed: int = 0) -> Tensor:
    return torch.randn(images, count, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def copy_attention(peer: nn.MultiheadAttention, own: Attention) -> None:
    """torch's weights, into ours."""
    with torch.no_grad():
        for part, weight, bias in zip(
            (own.query, own.key, own.value), peer.in_proj_weight.chunk(3), peer.in_proj_bias.chunk(3), strict=True
        ):
            part.weight.copy_(weight)
            part.bias.copy_(bias)
        own.output.load_state_dict(peer.out_proj.state_dict())


def scrambled(module: nn.Module) -> nn.Module:
    """float64, with biases and norms that are not what they start as."""
    for parameter in module.double().parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def peer_and_own() -> tuple[nn.MultiheadAttention, Attention]:
    peer, own = scrambled(nn.MultiheadAttention(D, HEADS, batch_first=True)), Attention(D, HEADS).double()
    copy_attention(peer, own)
    return peer, own


def test_attention_equals_torchs_with_separate_queries_keys_and_values():
    peer, own = peer_and_own()
    given = [embeddings(5, seed=0), embeddings(7, seed=1), embeddings(7, seed=2)]
    torch.testing.assert_close(own(*given), peer(*given)[0])
    torch.testing.assert_close(own(*given), own.attend(given[0], own.project(*given[1:])))


def test_a_padding_mask_hides_keys_as_torchs_does():
    peer, own = peer_and_own()
    given = [embeddings(5, seed=0), embeddings(7, seed=1), embeddings(7, seed=2)]
    inside = torch.arange(7) < torch.tensor([[3], [7]])
    expected = peer(*given, key_padding_mask=~inside)[0]
    torch.testing.assert_close(own(*given, mask=inside[:, None]), expected)
    alone = own(*(rows[:1, : 5 if i == 0 else 3] for i, rows in enumerate(given)))
    torch.testing.assert_close(expected[:1], alone)


def test_a_causal_query_sees_no_key_behind_its_own():
    peer, own = peer_and_own()
    x = embeddings(6)
    hidden = torch.ones(6, 6, dtype=torch.bool).triu(1)
    expected = peer(x, x, x, attn_mask=hidden)[0]
    torch.testing.assert_close(own(x, x, x, causal=True), expected)
    torch.testing.assert_close(own(x[:, 4:], x, x, causal=True), expected[:, 4:])  # the last queries of all keys
    torch.testing.assert_close(own(x[:, 5:], x, x, causal=True), expected[:, 5:])
    inside = torch.arange(6) < torch.tensor([[3], [6]])
    both = peer(x, x, x, attn_mask=hidden, key_padding_mask=~inside)[0]
    torch.testing.assert_close(own(x, x, x, causal=True, mask=inside[:, None]), both)


def test_a_query_that_may_look_at_nothing_fetches_zeros_with_finite_gradients():
    own = Attention(D, HEADS).double()
    x = embeddings(4).requires_grad_()
    mask = torch.ones(2, 4, 4, dtype=torch.bool)
    mask[0, 1] = False
    found = own(x, x, x, mask=mask)
    torch.testing.assert_close(found[0, 1], own.output.bias)
    found.square().sum().backward()
    assert torch.isfinite(x.grad).all()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
def test_weights_are_torchs_and_mix_the_values_to_what_is_fetched(causal, masked):
    peer, own = peer_and_own()
    own = own.train()
    own.dropout = 0.5  # of no weight in what is shown
    x, inside = embeddings(6), (torch.arange(6) < torch.tensor([[3], [6]])) | torch.tensor(not masked)
    hidden = torch.ones(6, 6, dtype=torch.bool).triu(1) & causal
    among = own.project(x, x)
    weights = own.attention_weights(x, among, mask=inside[:, None] if masked else None, causal=causal)
    _, expected = peer(x, x, x, attn_mask=hidden, key_padding_mask=~inside, average_attn_weights=False)
    torch.testing.assert_close(weights, expected)
    mixed = own.output((weights @ among.values).transpose(1, 2).flatten(2))
    own.eval()
    torch.testing.assert_close(mixed, own(x, x, x, mask=inside[:, None] if masked else None, causal=causal))


def test_a_query_that_may_look_at_nothing_weighs_nothing():
    own, x = Attention(D, HEADS).double(), embeddings(4)
    mask = torch.ones(1, 4, 4, dtype=torch.bool)
    mask[0, 1] = False
    weights = own.attention_weights(x, own.project(x, x), mask=mask)
    assert weights.sum(-1)[:, :, 1].abs().max() == 0
    torch.testing.assert_close(weights.sum(-1)[:, :, [0, 2, 3]], torch.ones(2, HEADS, 3, dtype=torch.float64))


def test_dropout_acts_in_training_only():
    own, x = Attention(D, HEADS, dropout=0.5).double(), embeddings(4)
    assert torch.equal(own.eval()(x, x, x), own(x, x, x))
    assert not torch.equal(own.train()(x, x, x), own(x, x, x))


def test_weights_start_as_those_of_one_matrix_for_queries_keys_and_values():
    own = Attention(96, 3)
    for part in (own.query, own.key, own.value):
        assert part.weight.abs().max().item() == pytest.approx((6 / (4 * 96)) ** 0.5, rel=0.01)
        assert not part.bias.any()
    assert own.output.weight.abs().max().item() == pytest.approx((6 / (2 * 96)) ** 0.5, rel=0.01)


def copy_layer(peer: nn.Module, own: EncoderLayer | DecoderLayer) -> None:
    copy_attention(peer.self_attn, own.attention)
    own.attention_residual.norm.load_state_dict(peer.norm1.state_dict())
    own.feed_forward.inner.load_state_dict(peer.linear1.state_dict())
    own.feed_forward.outer.load_state_dict(peer.linear2.state_dict())
    last = peer.norm2
    if isinstance(own, DecoderLayer):
        copy_attention(peer.multihead_attn, own.memory_attention)
        own.memory_residual.norm.load_state_dict(peer.norm2.state_dict())
        last = peer.norm3
    own.feed_forward_residual.norm.load_state_dict(last.state_dict())


@NORMS
def test_an_encoder_layer_equals_torchs(norm_first):
    peer = scrambled(nn.TransformerEncoderLayer(D, HEADS, 20, 0.0, batch_first=True, norm_first=norm_first)).eval()
    own = EncoderLayer(D, HEADS, hidden=20, norm_first=norm_first).double()
    copy_layer(peer, own)
    inside = torch.arange(7) < torch.tensor([[4], [7]])
    expected, found = peer(embeddings(7), src_key_padding_mask=~inside), own(embeddings(7), mask=inside[:, None])
    torch.testing.assert_close(found[inside], expected[inside])


@NORMS
def test_a_decoder_layer_equals_torchs(norm_first):
    peer = scrambled(nn.TransformerDecoderLayer(D, HEADS, 20, 0.0, batch_first=True, norm_first=norm_first)).eval()
    own = DecoderLayer(D, HEADS, hidden=20, norm_first=norm_first).double()
    copy_layer(peer, own)
    x, memory, inside = embeddings(5), embeddings(7, seed=1), torch.arange(7) < torch.tensor([[4], [7]])
    hidden = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    expected = peer(x, memory, tgt_mask=hidden, memory_key_padding_mask=~inside)
    found = own(x, own.project(memory), memory_mask=inside[:, None], causal=True)
    torch.testing.assert_close(found, expected)


@NORMS
def test_positions_are_added_to_queries_and_keys_and_not_to_values(norm_first):
    x, positions, memory, where = (embeddings(n, seed=i) for i, n in enumerate((5, 5, 7, 7)))
    layer = scrambled(DecoderLayer(D, HEADS, hidden=20, norm_first=norm_first))

    def norm(part: Residual, rows: Tensor, before: bool) -> Tensor:
        return part.norm(rows) if before == norm_first else rows

    own = norm(layer.attention_residual, x, True)
    step = layer.attention(own + positions, own + positions, own)
    y = norm(layer.attention_residual, x + step, False)
    own = norm(layer.memory_residual, y, True)
    y = norm(layer.memory_residual, y + layer.memory_attention(own + positions, memory + where, memory), False)
    own = norm(layer.feed_forward_residual, y, True)
    y = norm(layer.feed_forward_residual, y + layer.feed_forward(own), False)
    found = layer(x, layer.project(memory, where), positions=positions)
    torch.testing.assert_close(found, y)
    encoder = scrambled(EncoderLayer(D, HEADS, hidden=20, norm_first=norm_first))
    own = norm(encoder.attention_residual, x, True)
    y = x + encoder.attention(own + positions, own + positions, own)
    y = norm(encoder.attention_residual, y, False)
    y = norm(
        encoder.feed_forward_residual,
        y + encoder.feed_forward(norm(encoder.feed_forward_residual, y, True)),
        False,
    )
    torch.testing.assert_close(encoder(x, positions=positions), y)


def test_stacks_run_their_layers_in_order_and_share_one_norm():
    layers = [scrambled(EncoderLayer(D, HEADS, hidden=20)) for _ in range(2)]
    norm, x = scrambled(nn.LayerNorm(D)), embeddings(5)
    torch.testing.assert_close(TransformerEncoder(layers, norm=norm)(x), norm(layers[1](layers[0](x))))
    torch.testing.assert_close(TransformerEncoder(layers)(x), layers[1](layers[0](x)))
    decoders, memory = [scrambled(DecoderLayer(D, HEADS, hidden=20)) for _ in range(2)], embeddings(7, seed=1)
    first = decoders[0](x, decoders[0].project(memory))
    outputs = TransformerDecoder(decoders, norm=norm)(x, memory)
    assert len(outputs) == 2
    torch.testing.assert_close(outputs[0], norm(first))
    torch.testing.assert_close(outputs[1], norm(decoders[1](first, decoders[1].project(memory))))


@NORMS
@pytest.mark.parametrize("chunks", [[1] * 6, [3, 1, 2], [6]], ids=str)
def test_decoding_with_a_cache_gives_what_the_whole_sequence_gives(norm_first, chunks):
    decoder = TransformerDecoder(
        [DecoderLayer(D, HEADS, hidden=20, norm_first=norm_first) for _ in range(2)], norm=nn.LayerNorm(D)
    )
    decoder = scrambled(decoder).eval()
    tokens, positions, memory, where = (embeddings(n, seed=i) for i, n in enumerate((6, 6, 7, 7)))
    inside = (torch.arange(7) < torch.tensor([[4], [7]]))[:, None]
    whole = decoder(tokens, memory, positions=positions, memory_positions=where, memory_mask=inside, causal=True)[-1]
    caches = decoder.start(memory, length=8, memory_positions=where)
    steps, at = [], 0
    for count in chunks:
        rows = slice(at, at + count)
        steps.append(decoder.step(tokens[:, rows], caches, at=at, positions=positions[:, rows], memory_mask=inside))
        at += count
    torch.testing.assert_close(torch.cat(steps, 1), whole)


def test_a_step_back_overwrites_what_the_cache_held():
    decoder = scrambled(TransformerDecoder([DecoderLayer(D, HEADS, hidden=20)])).eval()
    tokens, memory = embeddings(3), embeddings(7, seed=1)
    caches = decoder.start(memory, length=3)
    decoder.step(embeddings(3, seed=5), caches, at=0)
    decoder.step(tokens[:, :1], caches, at=0)
    found = decoder.step(tokens[:, 1:], caches, at=1)
    torch.testing.assert_close(found, decoder(tokens, memory, causal=True)[-1][:, 1:])


def test_bfloat16_autocast_stays_close():
    decoder = TransformerDecoder([DecoderLayer(D, HEADS, hidden=20) for _ in range(2)], norm=nn.LayerNorm(D)).eval()
    tokens, memory = embeddings(5).float(), embeddings(7, seed=1).float()
    expected = decoder(tokens, memory, causal=True)[-1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = decoder(tokens, memory, causal=True)[-1]
        caches = decoder.start(memory, length=5)
        step = torch.cat([decoder.step(tokens[:, i : i + 1], caches, at=i) for i in range(5)], 1)
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1)
    torch.testing.assert_close(step.float(), expected, rtol=0.1, atol=0.1)


def test_every_parameter_learns():
    decoder = TransformerDecoder([DecoderLayer(D, HEADS, hidden=20, dropout=0.1, activation=nn.GELU)])
    decoder.double()(embeddings(5), embeddings(7, seed=1))[-1].square().sum().backward()
    assert all(parameter.grad is not None for parameter in decoder.parameters())
    moved = [name for name, parameter in decoder.named_parameters() if parameter.grad.abs().max() > 1e-9]
    silent = {name for name, _ in decoder.named_parameters()} - set(moved)
    assert all(name.endswith("key.bias") for name in silent)  # one number for all keys changes no softmax
    assert isinstance(decoder.layers[0].feed_forward.activation, nn.GELU)


def test_wrong_arguments_are_named():
    own, x = Attention(D, HEADS).double(), embeddings(4)
    with pytest.raises(ValueError, match="heads=5 must divide channels=12"):
        Attention(D, 5)
    with pytest.raises(ValueError, match=r"mask.*\(2, 4\).*dtype torch.bool.*bool"):
        unhooked(Attention.attend)(own, x, own.project(x, x), mask=torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"dtype torch\.float32"):
        unhooked(Attention.attend)(own, x, own.project(x, x), mask=torch.ones(2, 4, 4))
    decoder = TransformerDecoder([DecoderLayer(D, HEADS, hidden=20)]).double()
    caches = decoder.start(x, length=3)
    with pytest.raises(ValueError, match=r"tokens 0.*4.*length 3"):
        decoder.step(x, caches, at=0)
    with pytest.raises(ValueError, match="tokens -1 to 3 do not fit"):
        decoder.step(x, caches, at=-1)


def test_a_decoder_needs_a_layer():
    with pytest.raises(ValueError, match="TransformerDecoder: got no layers; it needs at least one"):
        unhooked(TransformerDecoder.__init__)(nn.Module.__new__(TransformerDecoder), [])


def test_parts_print_their_settings():
    text = repr(EncoderLayer(D, HEADS, hidden=20, dropout=0.1, norm_first=True))
    assert all(part in text for part in ("heads=3, dropout=0.1", "norm_first=True", "Dropout(p=0.1"))
    assert isinstance(Attention(D, HEADS).project(torch.zeros(1, 2, D), torch.zeros(1, 2, D)), KeyValues)
    assert FeedForward(D, 20).inner.out_features == 20
