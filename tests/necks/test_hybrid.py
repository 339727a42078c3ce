"""HybridNeck: the order of its steps against a plain reading, any sizes, and attention on the coarsest level alone."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from detkit.necks import HybridNeck


def neck(levels: int = 3) -> HybridNeck:
    torch.manual_seed(0)
    return HybridNeck(
        *([4, 6, 8][:levels], [8, 16, 32][:levels]),
        channels=2,
        attention=nn.Conv2d(2, 2, 1),
        fuse=partial(nn.Conv2d, kernel_size=1),
        lateral=lambda width: nn.Conv2d(width, width, 1),
        downsample=lambda width: nn.Conv2d(width, width, 3, stride=2, padding=1),
    ).eval()


def maps(*sides: tuple[int, int]) -> list[torch.Tensor]:
    return [torch.randn(2, width, *side) for width, side in zip([4, 6, 8], sides, strict=False)]


def test_levels_are_joined_down_and_then_up():
    built, features = neck(), maps((8, 8), (4, 4), (2, 2))
    fine, middle, coarse = (project(one) for project, one in zip(built.projections, features, strict=True))
    top = built.laterals[0](built.attention(coarse))
    joined = built.down[0](torch.cat((F.interpolate(top, scale_factor=2.0), middle), 1))
    below = built.laterals[1](joined)
    first = built.down[1](torch.cat((F.interpolate(below, scale_factor=2.0), fine), 1))
    second = built.up[0](torch.cat((built.downsamples[0](first), below), 1))
    third = built.up[1](torch.cat((built.downsamples[1](second), top), 1))
    for found, expected in zip(built(features), (first, second, third), strict=True):
        torch.testing.assert_close(found, expected)


def test_any_sizes_of_maps_fit():
    found = neck()(maps((9, 7), (5, 4), (3, 2)))
    assert [tuple(level.shape) for level in found] == [(2, 2, 9, 7), (2, 2, 5, 4), (2, 2, 3, 2)]


def test_one_level_is_only_attended_to():
    built, features = neck(1), maps((4, 4))
    assert built.out_channels == (2,)
    assert torch.equal(built(features)[0], built.attention(built.projections[0](features[0])))


def test_other_maps_are_refused():
    with pytest.raises(ValueError, match="HybridNeck: features have shapes"):
        neck()(maps((8, 8), (4, 4)))
