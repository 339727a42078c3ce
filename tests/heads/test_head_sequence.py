"""How the next token is picked: goldens of both top-p rules, draws by their probabilities, and the grammar of boxes."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import unhooked

from detkit.boxes.tokens import TokenCoder
from detkit.heads.sequence import BoxGrammar, TokenSampler, top_p_tokens

GOLDEN = torch.tensor([0.5, 0.3, 0.15, 0.05])
RULES = pytest.mark.parametrize("rule", ["argmax", "reference", "standard"])


@pytest.mark.parametrize(
    ("top_p", "rule", "kept"),
    [(0.9, "reference", 2), (0.9, "standard", 3), (0.6, "reference", 1), (0.6, "standard", 2)]
    + [(0.4, "reference", 1), (0.4, "standard", 1), (0.0, "reference", 1), (0.0, "standard", 1)],
)
def test_the_rules_keep_what_they_are_known_to_keep(top_p, rule, kept):
    shuffled = torch.tensor([2, 0, 3, 1])
    found = top_p_tokens(torch.stack((GOLDEN, GOLDEN[shuffled])), top_p, rule=rule)
    assert found[0].tolist() == [i < kept for i in range(4)]
    assert found[1].tolist() == [i < kept for i in shuffled.tolist()]


def test_of_equal_tokens_the_lower_is_kept():
    assert top_p_tokens(torch.full((4,), 0.25), 0.5).tolist() == [True, True, False, False]
    assert top_p_tokens(torch.full((4,), 0.25), 0.5, rule="standard").tolist() == [True, True, False, False]


def test_argmax_takes_the_likeliest_allowed_and_of_equals_the_lower():
    logits = torch.tensor([[1.0, 5, 5, 0], [9, 8, 7, 6]])
    sampler = TokenSampler("argmax")
    assert sampler(logits).tolist() == [1, 0]
    allowed = torch.tensor([[True, False, False, True], [False, False, True, True]])
    assert sampler(logits, allowed).tolist() == [0, 2]


@pytest.mark.parametrize(
    ("rule", "expected"), [("reference", [0.625, 0.375, 0]), ("standard", [10 / 19, 6 / 19, 3 / 19])]
)
def test_kept_tokens_are_drawn_in_proportion(rule, expected, generator):
    found = TokenSampler(rule, top_p=0.9)(GOLDEN.log().expand(20000, 4), generator=generator)
    shares = torch.bincount(found, minlength=4) / len(found)
    assert shares[: len(expected)].tolist() == pytest.approx(expected, abs=0.015)
    assert shares[[i for i in range(4) if i >= len(expected) or expected[i] == 0]].sum() == 0


def test_temperature_sharpens_before_the_rule(generator):
    """At temperature .5 probabilities are squared: .25 .09 .0225 .0025 of .365."""
    found = TokenSampler("standard", top_p=1.0, temperature=0.5)(GOLDEN.log().expand(20000, 4), generator=generator)
    shares = torch.bincount(found, minlength=4) / len(found)
    assert shares.tolist() == pytest.approx([0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365], abs=0.015)


def test_masks_come_before_probabilities():
    """With the likeliest forbidden, .3 .15 .05 of .5: the reference keeps .6 and .3, not .1."""
    allowed = torch.tensor([False, True, True, True])
    draws = TokenSampler("reference", top_p=0.95)(GOLDEN.log().expand(500, 4), allowed.expand(500, 4))
    assert set(draws.tolist()) == {1, 2}


@pytest.mark.parametrize("rule", ["reference", "standard"])
def test_a_generator_state_is_a_choice(rule):
    logits, sampler = torch.randn(50, 30), TokenSampler(rule, top_p=0.99)
    one, same, other = (sampler(logits, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@RULES
@given(values=st.lists(st.floats(width=32), min_size=8, max_size=8), which=st.integers(1, 255))
def test_whatever_the_logits_only_allowed_tokens_come(rule, values, which):
    """NaN and infinities included."""
    allowed = torch.tensor([[bool(which >> i & 1) for i in range(8)]])
    token = TokenSampler(rule, top_p=0.9)(torch.tensor([values]), allowed)
    assert allowed[0, token[0]]


def grammar() -> BoxGrammar:
    return BoxGrammar(TokenCoder(3, bins=6, vocabulary="paper"))


@pytest.mark.parametrize("position", [0, 1, 5, 11])
def test_lower_corners_may_lie_anywhere(position):
    assert grammar()(position, torch.full((2, position), 4)).nonzero()[:, 1].tolist() == [1, 2, 3, 4, 5, 6] * 2


@pytest.mark.parametrize("position", [2, 3, 12])
def test_upper_corners_lie_at_or_beyond_the_lower_of_their_axis(position):
    tokens = torch.full((2, position), 1)
    tokens[:, position - 2] = torch.tensor([3, 6])
    allowed = grammar()(position, tokens)
    assert [row.nonzero().flatten().tolist() for row in allowed] == [[3, 4, 5, 6], [6]]


@pytest.mark.parametrize("position", [4, 9])
def test_every_fifth_token_is_a_class_and_not_noise(position):
    assert grammar()(position, torch.ones(1, position, dtype=torch.int64))[0].nonzero().flatten().tolist() == [7, 8, 9]


@RULES
@given(seed=st.integers(0, 2**32), scale=st.sampled_from([0.0, 1.0, 1e3, float("nan")]), bins=st.integers(2, 9))
def test_a_sampler_under_the_grammar_says_only_well_formed_boxes(rule, seed, scale, bins):
    coder, generator = TokenCoder(3, bins=bins), torch.Generator().manual_seed(seed)
    tokens, rules, sampler = torch.zeros(4, 0, dtype=torch.int64), BoxGrammar(coder), TokenSampler(rule, top_p=0.99)
    for position in range(15):
        logits = torch.randn(4, coder.size, generator=generator) * scale
        following = sampler(logits, rules(position, tokens), generator=generator)
        tokens = torch.cat((tokens, following[:, None]), dim=1)
    assert coder.decode(tokens.reshape(4, 3, 5), torch.tensor([[50, 70]] * 4)).valid.all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": "beam"}, "rule='beam'; allowed is 'argmax', 'reference' or 'standard'"),
        ({"top_p": 1.5}, "TokenSampler: top_p=1.5 must lie in [0, 1]"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0 and finite"),
        ({"temperature": float("nan")}, "temperature=nan"),
    ],
)
def test_settings_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        unhooked(TokenSampler.__init__)(torch.nn.Module.__new__(TokenSampler), **arguments)


def test_print_shows_the_settings():
    assert repr(TokenSampler()) == "TokenSampler('reference', top_p=0.4, temperature=1.0)"
    assert repr(TokenSampler("argmax")) == "TokenSampler('argmax')"


@RULES
def test_nan_is_the_least_likely_token(rule):
    logits = torch.tensor([[torch.nan, -5.0, torch.nan]]).expand(50, 3)
    assert TokenSampler(rule, top_p=0.9)(logits).tolist() == [1] * 50
