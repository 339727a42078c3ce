"""Blocks of hybrid encoders: what they add up, that RepVGG merges, and the widths inside."""

from functools import partial

import pytest
import torch
from torch import nn

from detkit.layers import CSPRepBlock, ELANBlock, RepVGGBlock, separable_downsampling


def lived(module: nn.Module) -> nn.Module:
    """With statistics as after training."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for values, low in (
                (part.running_mean, -0.5),
                (part.running_var, 0.5),
                (part.weight, 0.5),
                (part.bias, -1),
            ):
                values.data.uniform_(low, low + 1)
    return module.eval()


@pytest.mark.parametrize("channels", [(4, 4), (4, 7)])
def test_a_merged_block_is_one_convolution_that_finds_the_same(channels):
    torch.manual_seed(0)
    block = lived(RepVGGBlock(*channels)).double()
    merged = block.merged()
    assert [type(part) for part in merged] == [nn.Conv2d, nn.SiLU]
    features = torch.randn(2, channels[0], 5, 6, dtype=torch.float64)
    torch.testing.assert_close(merged(features), block(features))


def test_a_block_is_the_activated_sum_of_its_branches():
    block = lived(RepVGGBlock(4, 4, activation=nn.ReLU))
    features = torch.randn(1, 4, 3, 3)
    expected = (block.wide(features) + block.narrow(features)).relu()
    assert torch.equal(block(features), expected)


def test_only_norms_with_statistics_can_be_merged():
    for norm in (partial(nn.GroupNorm, 2), partial(nn.BatchNorm2d, track_running_stats=False)):
        block = RepVGGBlock(4, 4, norm=norm)
        assert not block.can_merge
        with pytest.raises(ValueError, match="RepVGGBlock: no convolution can hold"):
            block.merged()
    assert RepVGGBlock(4, 4).can_merge


@pytest.mark.parametrize(("expansion", "width"), [(1.0, 8), (0.5, 4), (0.3, 2)])
def test_a_partial_block_is_as_wide_inside_as_asked_and_projects_back(expansion, width):
    block = lived(CSPRepBlock(6, 8, depth=2, expansion=expansion))
    assert block.deep[0].out_channels == width
    assert isinstance(block.output, nn.Identity) == (width == 8)
    features = torch.randn(1, 6, 4, 4)
    expected = block.output(block.blocks[1](block.blocks[0](block.deep(features))) + block.short(features))
    assert torch.equal(block(features), expected)


def test_an_elan_block_joins_both_halves_and_both_results():
    block = lived(ELANBlock(8, 6, width=3, depth=1))
    features = torch.randn(1, 8, 4, 4)
    one, other = block.input(features).split(4, 1)
    first = block.first[1](block.first[0](other))
    second = block.second[1](block.second[0](first))
    assert torch.equal(block(features), block.output(torch.cat((one, other, first, second), 1)))
    with pytest.raises(ValueError, match="ELANBlock: in_channels=7 must be even"):
        ELANBlock(7, 6, width=3)


def test_downsampling_halves_each_channel_by_itself():
    down = separable_downsampling(4)
    assert down[1][0].groups == 4
    assert down(torch.rand(1, 4, 7, 8)).shape == (1, 4, 4, 4)
