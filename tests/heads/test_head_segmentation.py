"""SegmentationHead: an encoder's maps to logits of its finest level."""

import pytest
import torch
from strategies import assert_refused
from torch import nn

from detkit.heads import SegmentationHead

CHANNELS = (4, 6, 8)


def maps(*sizes, channels=CHANNELS):
    return [torch.rand(2, width, *size) for width, size in zip(channels, sizes, strict=True)]


@pytest.mark.parametrize("sizes", [[(16, 8), (8, 4), (4, 2)], [(17, 9), (9, 5), (5, 3)], [(3, 3), (1, 2), (1, 1)]])
@pytest.mark.parametrize("skips", [True, False])
def test_logits_have_the_size_of_the_finest_map(sizes, skips):
    head = SegmentationHead(CHANNELS, 5, skips=skips).eval()
    assert head(maps(*sizes)).shape == (2, 5, *sizes[0])


def test_without_skips_only_the_coarsest_map_counts():
    features = maps((8, 8), (4, 4), (2, 2))
    other = [torch.zeros_like(features[0]), torch.zeros_like(features[1]), features[2]]
    plain, skipping = (SegmentationHead(CHANNELS, 2, skips=skips).eval() for skips in (False, True))
    assert torch.equal(plain(features), plain(other))
    assert not torch.equal(skipping(features), skipping(other))


def test_one_level_is_one_convolution():
    head = SegmentationHead([4], 3)
    assert [name for name, _ in head.named_parameters()] == ["logits.weight", "logits.bias"]
    feature = torch.rand(1, 4, 5, 5)
    assert torch.equal(head([feature]), head.logits(feature))


def test_widths_and_norm_are_the_callers():
    head = SegmentationHead(CHANNELS, 2, channels=(3, 5), norm=nn.InstanceNorm2d)
    assert [block.conv2.out_channels for block in head.blocks] == [3, 5]
    assert not any(isinstance(part, nn.BatchNorm2d) for part in head.modules())
    assert head.logits.in_channels == 3


def test_every_parameter_learns():
    head = SegmentationHead(CHANNELS, 2)
    head(maps((8, 8), (4, 4), (2, 2))).square().sum().backward()
    assert all(part.grad is not None and part.grad.isfinite().all() for part in head.parameters())


def test_what_does_not_fit_is_refused():
    said = "SegmentationHead: in_channels=(4, 6, 8) and channels=(3,); allowed"
    assert_refused(said, SegmentationHead, CHANNELS, 2, channels=(3,))
    assert_refused("SegmentationHead: in_channels=() and", SegmentationHead, (), 2)
    head = SegmentationHead(CHANNELS, 2)
    assert_refused("SegmentationHead: features have shapes", head, maps((8, 8), (4, 4), channels=(4, 6)))
