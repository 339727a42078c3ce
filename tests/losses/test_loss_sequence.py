"""SequenceLoss against a loop, and what its weights mean."""

import math

import pytest
import torch
from strategies import unhooked

from detkit.boxes import TokenCoder
from detkit.losses.sequence import SequenceLoss


def batch(dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64).to(dtype)
    tokens = torch.randint(0, 5, (2, 6), generator=generator)
    weights = torch.tensor([[1, 1, 0.1, 0, 2, 0.5], [0, 0, 1, 1, 0.1, 0.1]], dtype=torch.float64)
    return logits, tokens, weights


def slow(logits, tokens, weights) -> float:
    total = 0.0
    for b, row in enumerate(tokens.tolist()):
        for i, token in enumerate(row):
            own = logits[b, i].tolist()
            cost = math.log(sum(math.exp(value) for value in own)) - own[token]
            total += weights[b, i].item() * cost
    return total / weights.sum().item()


def test_the_loss_is_that_of_a_loop():
    assert SequenceLoss()(*batch())["tokens"].item() == pytest.approx(slow(*batch()), rel=1e-12)


def test_tokens_of_weight_0_count_for_nothing_whatever_they_are():
    logits, tokens, weights = batch()
    broken, other = logits.clone(), tokens.clone()
    broken[weights == 0], other[weights == 0] = torch.nan, -7
    broken.requires_grad_()
    loss = SequenceLoss()(broken, other, weights)["tokens"]
    loss.backward()
    assert loss.item() == pytest.approx(slow(logits, tokens, weights), rel=1e-12)
    assert torch.isfinite(broken.grad).all()
    assert not broken.grad[weights == 0].any()


def test_weights_are_relative():
    logits, tokens, weights = batch()
    loss = SequenceLoss()(logits, tokens, weights)["tokens"]
    assert torch.allclose(SequenceLoss()(logits, tokens, weights * 7)["tokens"], loss)


def test_a_token_in_two_parts_equals_it_whole():
    logits, tokens, weights = batch()
    parts = torch.cat((weights * 0.25, weights * 0.75), 1)
    found = SequenceLoss()(torch.cat((logits, logits), 1), torch.cat((tokens, tokens), 1), parts)
    assert torch.allclose(found["tokens"], SequenceLoss()(logits, tokens, weights)["tokens"])


def test_a_batch_that_weighs_nothing_costs_nothing_and_has_a_gradient():
    logits, tokens, weights = batch()
    logits.requires_grad_()
    loss = SequenceLoss()(logits, tokens, weights * 0)["tokens"]
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_promoted(dtype):
    logits, tokens, weights = batch(dtype)
    loss = SequenceLoss()(logits, tokens, weights.to(dtype))["tokens"]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(slow(logits.double(), tokens, weights.to(dtype).double()), rel=1e-5)


def test_the_divisor_is_the_mean_over_processes(monkeypatch):
    """Two processes, the other of which weighs nothing: half the weight is the mean."""
    logits, tokens, weights = batch()
    alone = SequenceLoss()(logits, tokens, weights)["tokens"]
    monkeypatch.setattr("detkit.losses.sequence.all_reduce_mean", lambda total: total / 2)
    assert torch.allclose(SequenceLoss()(logits, tokens, weights)["tokens"], alone * 2)


def test_shapes_that_disagree_are_named():
    forward = unhooked(SequenceLoss.forward)
    with pytest.raises(ValueError, match=r"logits \(2, 6, 5\), tokens and weights \[\(2, 5\), \(2, 6\)\]"):
        forward(SequenceLoss(), torch.zeros(2, 6, 5), torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 6))


def test_scores_are_shares_of_all_tokens():
    coder = TokenCoder(3, bins=6, vocabulary="paper")
    logits = torch.randn(2, 5, coder.size)
    assert torch.allclose(SequenceLoss().scores(logits, coder), logits.softmax(-1)[..., 7:10])
    logits[..., coder.noise] = 50.0
    assert (SequenceLoss().scores(logits, coder) < 1e-6).all()


def test_scores_of_a_diverged_network_are_numbers():
    coder = TokenCoder(3, bins=6, vocabulary="paper")
    logits = torch.zeros(1, coder.size)
    logits[0, coder.first_class], logits[0, 0] = torch.inf, torch.nan
    assert SequenceLoss().scores(logits, coder).tolist() == [[1, 0, 0]]
