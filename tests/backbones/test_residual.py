"""The residual net, as its source states it and as it can be."""

import pytest
import torch
from torch import nn

from detkit.backbones import modified_ssd_backbone, residual_backbone

WIDTHS = ((64, 64, 64, 128), (128, 64, 64, 256), *((256, 64, 64, 256),) * 2)
WIDTHS += ((256, 128, 128, 512), *((512, 128, 128, 512),) * 3)


def convolution(before, after, side):
    """Weights of a convolution without bias, and the two numbers of each channel of its norm."""
    return side * side * before * after + 2 * after


def test_it_has_the_parameters_of_its_layers():
    expected = convolution(3, 64, 7)
    for before, first, second, after in WIDTHS:
        expected += convolution(before, first, 1) + convolution(first, second, 3) + convolution(second, after, 1)
        expected += convolution(before, after, 1) if before != after else 0  # the shortcut of those that widen
    assert sum(parameter.numel() for parameter in residual_backbone().parameters()) == expected == 1_523_520


def test_an_image_of_224_pixels_becomes_512_channels_of_14_cells():
    with torch.no_grad():
        levels = residual_backbone().eval()(torch.rand(1, 3, 224, 224))
    assert [tuple(level.shape[1:]) for level in levels] == [(128, 56, 56), (256, 28, 28), (512, 14, 14)]


def test_a_bottleneck_adds_its_convolutions_to_its_input():
    torch.manual_seed(0)
    block = residual_backbone().eval().stages[1][1]
    features = torch.rand(1, 256, 5, 5)
    expected = torch.relu(block.body(features) + features)
    torch.testing.assert_close(block(features), expected)
    assert [layer[0].kernel_size[0] for layer in block.body] == [1, 3, 1]


def test_dropout_follows_the_first_convolution_only():
    drops = [module.p for module in residual_backbone(dropout=0.3).modules() if isinstance(module, nn.Dropout)]
    assert drops == [0.3]


@pytest.mark.parametrize(("stride", "cells"), [(16, [14, 7, 3, 1]), (8, [28, 14, 7, 3])])
def test_the_ssd_on_it_has_four_levels_from_the_tap_on(stride, cells):
    backbone = modified_ssd_backbone(stride=stride).eval()
    with torch.no_grad():
        levels = backbone(torch.rand(1, 3, 224, 224))
    assert [tuple(level.shape[1:]) for level in levels] == [
        (channels, side, side) for channels, side in zip((64, 48, 48, 32), cells, strict=True)
    ]
    assert backbone.strides == tuple(stride * 2**i for i in range(4))


def test_another_tap_is_refused():
    with pytest.raises(ValueError, match="modified_ssd_backbone: stride=4; allowed are 8 and 16"):
        modified_ssd_backbone(stride=4)
