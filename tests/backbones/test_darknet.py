"""The Darknets: layers in the order of the authors' cfg, residuals, and the pooling that looks right and down."""

import pytest
import torch
from torch import nn

from detkit.backbones import DarknetBlock, darknet19_backbone, darknet53_backbone, tiny_darknet_backbone
from detkit.backbones.darknet import same_max_pool, tiny_yolo_v1_backbone, yolo_v1_backbone


def convolutions(module: nn.Module) -> list[tuple[int, int, int]]:
    """(channels, kernel, stride) of the convolutions, each of which a norm of its channels must follow."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)]
    for convolution, norm in zip(layers[::2], layers[1::2], strict=True):
        assert isinstance(convolution, nn.Conv2d)
        assert convolution.bias is None
        assert norm.num_features == convolution.out_channels
    return [(layer.out_channels, layer.kernel_size[0], layer.stride[0]) for layer in layers[::2]]


@pytest.mark.usefixtures("no_memory")
def test_darknet53_has_the_layers_of_table_1_in_their_order():
    expected = [(32, 3, 1)]
    for channels, count in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        expected += [(channels, 3, 2), *[(channels // 2, 1, 1), (channels, 3, 1)] * count]
    assert len(expected) == 52  # and one layer of its classifier
    backbone = darknet53_backbone()
    assert convolutions(backbone) == expected
    assert (backbone.out_channels, backbone.strides) == ((256, 512, 1024), (8, 16, 32))


@pytest.mark.usefixtures("no_memory")
def test_darknet19_has_the_layers_of_table_6_in_their_order():
    expected = [(32, 3, 1), (64, 3, 1)]
    for channels, count in ((128, 1), (256, 1), (512, 2), (1024, 2)):
        expected += [(channels, 3, 1), *[(channels // 2, 1, 1), (channels, 3, 1)] * count]
    assert len(expected) == 18  # and one layer of its classifier
    backbone = darknet19_backbone()
    assert convolutions(backbone) == expected
    assert (backbone.out_channels, backbone.strides) == ((512, 1024), (16, 32))


@pytest.mark.usefixtures("no_memory")
def test_the_tiny_chain_doubles_its_channels():
    backbone = tiny_darknet_backbone()
    assert convolutions(backbone) == [(channels, 3, 1) for channels in (16, 32, 64, 128, 256, 512, 1024)]
    assert (backbone.out_channels, backbone.strides) == ((256, 1024), (16, 32))


@pytest.mark.usefixtures("no_memory")
def test_v1_has_the_24_convolutions_of_figure_3():
    expected = [(64, 7, 2), (192, 3, 1), (128, 1, 1), (256, 3, 1), (256, 1, 1), (512, 3, 1)]
    expected += [(256, 1, 1), (512, 3, 1)] * 4 + [(512, 1, 1), (1024, 3, 1)] * 3
    expected += [(1024, 3, 1), (1024, 3, 2), (1024, 3, 1), (1024, 3, 1)]
    assert len(expected) == 24
    assert convolutions(yolo_v1_backbone()) == expected
    tiny = [(channels, 3, 1) for channels in (16, 32, 64, 128, 256, 512, 1024, 256)]
    assert convolutions(tiny_yolo_v1_backbone()) == tiny


def test_a_block_adds_its_input():
    block, features = DarknetBlock(8).eval(), torch.randn(1, 8, 3, 4)
    nn.init.zeros_(block.wide[0].weight)
    assert torch.equal(block(features), features)


@pytest.mark.parametrize("size", [(1, 1), (4, 5)])
def test_pooling_at_stride_one_keeps_the_size_and_looks_right_and_down(size):
    rows = torch.randn(2, 3, *size) - 5  # below 0: zeros beyond the border would win
    expected = torch.empty_like(rows)
    for y in range(size[0]):
        for x in range(size[1]):
            expected[..., y, x] = rows[..., y : y + 2, x : x + 2].amax((-2, -1))
    assert torch.equal(same_max_pool()(rows), expected)


def test_activations_leak_a_tenth():
    slopes = {layer.negative_slope for layer in tiny_darknet_backbone().modules() if isinstance(layer, nn.LeakyReLU)}
    assert slopes == {0.1}
