"""The hourglass: the published sum of two convolutions, the published deconvolution, and maps of any size."""

import pytest
import torch
from strategies import assert_refused
from torch.nn import functional as F

from detkit.necks import Hourglass

CHANNELS, STRIDES = (6, 8, 10), (8, 16, 32)


def features(height: int = 64, width: int = 96, batch: int = 2) -> list[torch.Tensor]:
    torch.manual_seed(1)
    sizes = [(-(-height // stride), -(-width // stride)) for stride in STRIDES]
    return [torch.randn(batch, channels, *size) for channels, size in zip(CHANNELS, sizes, strict=True)]


def neck(**settings) -> Hourglass:
    torch.manual_seed(0)
    return Hourglass(CHANNELS, STRIDES, channels=4, **settings)


@torch.no_grad()
def ways_up(network: Hourglass, maps: list[torch.Tensor]) -> list[torch.Tensor]:
    """What comes up to each of three levels after one step further down."""
    above, found = network.down[0](maps[-1]), []
    for level in (2, 1, 0):
        above = network.up[level](above)
        above = F.interpolate(above, size=maps[level].shape[-2:], mode="bilinear", align_corners=False)
        found.append(above)
    return found[::-1]


def test_a_level_is_the_rectified_sum_of_a_convolution_of_each_way():
    network, maps = neck(), features()
    for level, (own, above) in enumerate(zip(maps, ways_up(network, maps), strict=True)):
        merge = network.merge[level][0]
        down, up = merge.weight.split([CHANNELS[level], 4], dim=1)
        expected = F.relu(F.conv2d(own, down, padding=1) + F.conv2d(above, up, merge.bias, padding=1))
        torch.testing.assert_close(network(maps)[level], expected, rtol=1e-5, atol=1e-5)


def test_enlarging_is_the_published_deconvolution_away_from_the_border():
    ramp = torch.tensor([0.25, 0.75, 0.75, 0.25])
    kernel, rows = torch.outer(ramp, ramp)[None, None], torch.randn(1, 1, 5, 7)
    published = F.conv_transpose2d(rows, kernel, stride=2, padding=1)
    ours = F.interpolate(rows, size=(10, 14), mode="bilinear", align_corners=False)
    torch.testing.assert_close(ours[..., 1:-1, 1:-1], published[..., 1:-1, 1:-1])
    assert (ours - published)[..., 0, :].abs().max() > 0.01


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("size", [(64, 96), (65, 97), (33, 32), (8, 8)])
def test_maps_of_any_size_keep_it(size, depth):
    maps = features(*size)
    found = neck(depth=depth)(maps)
    assert [level.shape for level in found] == [(2, 4, *own.shape[2:]) for own in maps]
    assert len(neck(depth=depth).down) == depth


def test_one_level_is_enough_and_every_parameter_learns():
    single = Hourglass([6], [8], channels=4, depth=2, norm=torch.nn.BatchNorm2d)
    sum(level.square().sum() for level in single(features()[:1])).backward()
    assert all(part.grad is not None and part.grad.any() for name, part in single.named_parameters())


def test_what_the_finest_level_sees_comes_from_the_bottom():
    network, maps = neck(depth=2), features()
    before = network(maps)[0]
    maps[-1] = maps[-1] + 1
    assert not torch.equal(network(maps)[0], before)


def test_it_declares_its_levels_and_refuses_others():
    assert (neck().out_channels, neck().strides) == ((4, 4, 4), STRIDES)
    assert_refused("Hourglass: channels (6, 8) strides (8,)", Hourglass, (6, 8), (8,))
    assert_refused("Hourglass: features channels (6, 8, 10)", neck().forward, features()[:2])
