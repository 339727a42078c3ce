"""CrossStitch: a linear combination of feature maps, channel by channel."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import assert_refused
from torch import nn

from detkit.multitask import CrossStitch
from detkit.tricks import parameter_groups


def maps(branches, channels, *, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, channels, 3, 5, generator=generator).to(dtype) for _ in range(branches)]


@given(st.integers(2, 4), st.integers(1, 5), st.booleans(), st.integers(0, 2**31))
def test_it_is_the_loop_over_branches_and_channels(branches, channels, per_channel, seed):
    stitch = CrossStitch(branches, channels, per_channel=per_channel)
    nn.init.normal_(stitch.shares, generator=torch.Generator().manual_seed(seed))
    given = maps(branches, channels, seed=seed)
    for i, found in enumerate(stitch(given)):
        for c in range(channels):
            own = stitch.shares[i, :, c if per_channel else 0]
            expected = sum(share * one[:, c] for share, one in zip(own, given, strict=True))
            torch.testing.assert_close(found[:, c], expected, rtol=1e-6, atol=1e-6)


@given(st.integers(2, 4), st.booleans(), st.integers(0, 2**31))
def test_the_identity_changes_no_bit(branches, per_channel, seed):
    given = maps(branches, 3, seed=seed)
    found = CrossStitch(branches, 3, same=1.0, per_channel=per_channel)(given)
    assert all(torch.equal(one, other) for one, other in zip(found, given, strict=True))


def test_equal_shares_make_branches_equal():
    given = maps(4, 3)
    found = CrossStitch(4, 3, same=0.25)(given)
    assert all(torch.equal(one, found[0]) for one in found)
    torch.testing.assert_close(found[0], sum(given) / 4)


def test_shares_begin_as_said_and_rows_sum_to_1():
    stitch = CrossStitch(3, 2)
    expected = torch.full((3, 3), 0.05).fill_diagonal_(0.9)
    torch.testing.assert_close(stitch.shares, expected[..., None].expand(3, 3, 2))
    torch.testing.assert_close(CrossStitch(2, 2, same=0.9).shares[0, 1], torch.tensor([0.1, 0.1]))
    torch.testing.assert_close(CrossStitch(5, 1, same=0.8, other=0.05).shares[..., 0].sum(1), torch.ones(5))
    assert CrossStitch(3, 7).shares.numel() == 63
    assert CrossStitch(3, 7, per_channel=False).shares.numel() == 9


def test_the_source_counts_its_units_in_this_way():
    """Its network of three branches has 928 parameters more than its networks of two and one together say."""
    widths = (32, 128, 256, 512)
    assert 29_178_891 - 24_029_967 - 24_030_129 + 18_882_133 == 928
    three, two = (sum(CrossStitch(k, width).shares.numel() for width in widths) for k in (3, 2))
    assert three - 2 * two == 928


def test_gradients_are_exact():
    stitch = CrossStitch(3, 2).double()
    given = [one.requires_grad_() for one in maps(3, 2, dtype=torch.float64)]
    assert torch.autograd.gradcheck(lambda *all_maps: tuple(stitch(all_maps)), tuple(given))
    assert torch.autograd.gradcheck(
        lambda shares: tuple(torch.func.functional_call(stitch, {"shares": shares}, (given,))), (stitch.shares,)
    )


def test_they_have_a_learning_rate_of_their_own_and_no_decay():
    model = nn.ModuleDict({"stitches": nn.ModuleList([CrossStitch(2, 3)]), "rest": nn.Linear(2, 2)})
    groups = parameter_groups(
        model, 0.01, weight_decay=0.1, backbone=model["stitches"], backbone_factor=100.0, undecayed=["shares"]
    )
    (own,) = (group for group in groups if "stitches.0.shares" in group["param_names"])
    assert (own["param_names"], own["lr"], own["weight_decay"]) == (["stitches.0.shares"], 1.0, 0.0)


def test_half_precision_stays_half():
    found = CrossStitch(2, 3).bfloat16()(maps(2, 3, dtype=torch.bfloat16))
    assert {one.dtype for one in found} == {torch.bfloat16}


def test_what_does_not_fit_is_refused():
    assert_refused("CrossStitch: branches=1; allowed are at least 2", CrossStitch, 1, 3)
    stitch = CrossStitch(2, 3)
    for bad in (maps(3, 3), maps(2, 4), [maps(2, 3)[0], maps(2, 3)[0][..., :2]], []):
        with pytest.raises(ValueError, match="CrossStitch: maps have shapes"):
            stitch(bad)
