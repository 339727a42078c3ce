"""SSD's extra levels: published sizes, declared strides, choices."""

from functools import partial

import pytest
import torch
from torch import nn

from detkit.layers import SeparableConv
from detkit.necks import SSD512_LEVELS, ExtraLevel, SSDExtra

SMALL = (ExtraLevel(4, 8), ExtraLevel(4, 6, stride=1))


def test_ssd300_shrinks_to_one_cell():
    neck = SSDExtra([4, 8], [8, 16])
    levels = neck([torch.rand(1, 4, 38, 38), torch.rand(1, 8, 19, 19)])
    assert [level.shape[-1] for level in levels] == [38, 19, 10, 5, 3, 1]
    assert [level.shape[1] for level in levels] == [4, 8, 512, 256, 256, 256] == list(neck.out_channels)
    assert neck.strides == (8, 16, 32, 64, 64, 64)


def test_ssd512_shrinks_to_one_cell_over_one_level_more():
    neck = SSDExtra([4, 8], [8, 16], levels=SSD512_LEVELS)
    levels = neck([torch.rand(1, 4, 64, 64), torch.rand(1, 8, 32, 32)])
    assert [level.shape[-1] for level in levels] == [64, 32, 16, 8, 4, 2, 1]
    assert neck.strides == (8, 16, 32, 64, 128, 256, 256)


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (33, 127)])
def test_padded_levels_have_the_declared_channels_and_strides(size):
    neck = SSDExtra([4, 6], [8, 16], levels=SMALL)
    maps = [torch.rand(2, c, -(-size[0] // s), -(-size[1] // s)) for c, s in ((4, 8), (6, 16))]
    shapes = [tuple(level.shape) for level in neck(maps)]
    assert neck.strides == (8, 16, 32, 32)
    expected = zip(neck.out_channels, neck.strides, strict=True)
    assert shapes == [(2, c, -(-size[0] // s), -(-size[1] // s)) for c, s in expected]


def test_the_given_levels_pass_through_unchanged():
    maps = [torch.rand(1, 4, 8, 8), torch.rand(1, 6, 4, 4)]
    kept = [level.clone() for level in maps]
    levels = SSDExtra([4, 6], [8, 16], levels=SMALL)(maps)
    assert len(maps) == 2
    assert all(torch.equal(level, before) for level, before in zip(levels, kept, strict=False))


def test_every_extra_level_is_an_activation_behind_convolutions_with_bias():
    neck = SSDExtra([4, 6], [8, 16], levels=SMALL)
    assert [[type(layer) for layer in block] for block in neck.blocks] == [[nn.Conv2d, nn.ReLU] * 2] * 2
    assert all(layer.bias.abs().max() == 0 for block in neck.blocks for layer in block[::2])


def test_a_norm_follows_every_convolution():
    neck = SSDExtra([4, 6], [8, 16], levels=SMALL, norm=partial(nn.GroupNorm, 2))
    assert [[type(layer) for layer in block] for block in neck.blocks] == [[nn.Conv2d, nn.GroupNorm, nn.ReLU] * 2] * 2


def test_the_larger_convolution_of_a_level_may_be_separable():
    settings = {"norm": nn.BatchNorm2d, "activation": nn.ReLU6, "convolution": SeparableConv}
    neck = SSDExtra([4, 6], [8, 16], levels=SMALL, **settings)
    steps = [nn.Conv2d, nn.BatchNorm2d, nn.ReLU6]
    for block in neck.blocks:
        assert [type(layer) for layer in block] == [*steps, nn.Sequential, nn.Sequential]
        assert [[type(layer) for layer in part] for part in block[3:]] == [steps] * 2
        assert (block[3][0].groups, block[3][0].kernel_size) == (4, (3, 3))
    maps = [torch.rand(2, 4, 8, 8), torch.rand(2, 6, 5, 4)]
    assert [tuple(level.shape) for level in neck(maps)[2:]] == [(2, 8, 3, 2), (2, 6, 3, 2)]


@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d])
def test_every_parameter_gets_a_gradient(norm):
    torch.manual_seed(0)
    neck = SSDExtra([4, 6], [8, 16], levels=SMALL, norm=norm)
    levels = neck([torch.rand(2, 4, 8, 8), torch.rand(2, 6, 4, 4)])
    sum((level * torch.rand_like(level)).mean() for level in levels).backward()
    assert [name for name, parameter in neck.named_parameters() if parameter.grad is None] == []
    assert all(parameter.grad.isfinite().all() for parameter in neck.parameters())


def test_without_extra_levels_nothing_is_added():
    neck = SSDExtra([4], [8], levels=())
    assert (neck.out_channels, neck.strides, len(neck([torch.rand(1, 4, 2, 2)]))) == ((4,), (8,), 1)


def test_inputs_that_disagree_are_refused():
    with pytest.raises(ValueError, match=r"SSDExtra: channels \(4, 6\) and strides \(8,\)"):
        SSDExtra([4, 6], [8])
    with pytest.raises(ValueError, match=r"SSDExtra: features have shapes .* channels \(4, 6\)"):
        SSDExtra([4, 6], [8, 16])([torch.rand(1, 4, 8, 8)])
