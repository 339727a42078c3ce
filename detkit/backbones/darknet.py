"""The trunks of the YOLO detectors: Darknet-53, Darknet-19 and the tiny chains, in the order of their cfg files.

Every convolution is followed by batch norm and a leaky ReLU of slope .1. Going through a trunk's ``modules()`` meets
convolutions in the order of the authors' configuration, each followed by its batch norm: the order in which a file of
weights holds them.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated

from jaxtyping import Float
from torch import Tensor, nn

from detkit._door import door
from detkit._ranges import Count, Range, Whole
from detkit.backbones.sequential import SequentialBackbone
from detkit.layers import ConvNormActivation, init_convolutions

Norm = Callable[[int], nn.Module]
SLOPE = 0.1
leaky = partial(nn.LeakyReLU, SLOPE)


class DarknetBlock(nn.Module):
    """Darknet-53's residual block: a 1 x 1 convolution to half the channels, a 3 x 3 one back, added to the input.

    Maps (B, channels, H, W) to the same shape. Source: Redmon and Farhadi 2018, section 2.4.

    >>> import torch
    >>> DarknetBlock(8)(torch.zeros(1, 8, 5, 6)).shape
    torch.Size([1, 8, 5, 6])
    """

    @door
    def __init__(self, channels: Annotated[int, Range(2)], *, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        self.narrow = ConvNormActivation(channels, channels // 2, kernel_size=1, norm=norm, activation=leaky)
        self.wide = ConvNormActivation(channels // 2, channels, norm=norm, activation=leaky)

    @door
    def forward(self, features: Float[Tensor, "B D H W"]) -> Float[Tensor, "B D H W"]:
        """``features`` plus what the two convolutions make of them."""
        return features + self.wide(self.narrow(features))


@door
def darknet19_backbone(*, width: Count = 32, norm: Norm = nn.BatchNorm2d) -> SequentialBackbone:
    """Darknet-19 without its classifier: strides 16 and 32 with 512 and 1024 channels.

    3 x 3 convolutions, between them 1 x 1 ones to half the channels, and pooling that halves the size and doubles them;
    the first has ``width`` channels. Images (B, 3, H, W) of at least 32 pixels; sizes are rounded down. Source: Redmon
    and Farhadi 2017, table 6; He initialization.

    >>> import torch
    >>> [tuple(level.shape) for level in darknet19_backbone(width=2)(torch.zeros(1, 3, 64, 96))]
    [(1, 32, 4, 6), (1, 64, 2, 3)]
    """
    groups, before = [], 3
    for i, count in enumerate((1, 1, 3, 3, 5, 5)):
        wide = width * 2**i
        for place in range(count):
            after, kernel = (wide // 2, 1) if place % 2 else (wide, 3)
            pooled = [nn.MaxPool2d(2)] if i and not place else []
            convolution = ConvNormActivation(before, after, kernel_size=kernel, norm=norm, activation=leaky)
            groups.append(nn.Sequential(*pooled, convolution))
            before = after
    stages = [nn.Sequential(*groups[:-5]), nn.Sequential(*groups[-5:])]
    return _initialized(SequentialBackbone(stages, out_channels=[width * 16, width * 32], strides=[16, 32]))


@door
def darknet53_backbone(
    *, width: Count = 32, blocks: Sequence[Whole] = (1, 2, 8, 8, 4), norm: Norm = nn.BatchNorm2d
) -> SequentialBackbone:
    """Darknet-53 without its classifier: strides 8, 16 and 32 with 256, 512 and 1024 channels.

    A first convolution has ``width`` channels; each of five groups halves the size by a convolution, doubles the
    channels and adds its number of ``blocks``. The last three groups are levels. Images (B, 3, H, W) of any size; sizes
    are rounded up. Source: Redmon and Farhadi 2018, table 1; He initialization.

    >>> import torch
    >>> [tuple(level.shape) for level in darknet53_backbone(width=4)(torch.zeros(1, 3, 64, 96))]
    [(1, 32, 8, 12), (1, 64, 4, 6), (1, 128, 2, 3)]
    """
    groups = [
        nn.Sequential(
            ConvNormActivation(width * 2**i, width * 2 ** (i + 1), stride=2, norm=norm, activation=leaky),
            *(DarknetBlock(width * 2 ** (i + 1), norm=norm) for _ in range(count)),
        )
        for i, count in enumerate(blocks)
    ]
    stem = ConvNormActivation(3, width, norm=norm, activation=leaky)
    stages = [nn.Sequential(stem, *groups[:3]), *groups[3:]]
    backbone = SequentialBackbone(stages, out_channels=[width * 8, width * 16, width * 32], strides=[8, 16, 32])
    return _initialized(backbone)


@door
def tiny_darknet_backbone(*, width: Count = 16, norm: Norm = nn.BatchNorm2d) -> SequentialBackbone:
    """The trunk of YOLO v2 tiny and v3 tiny: seven convolutions, pooling between; strides 16, 32; 256, 1024 channels.

    ``width`` is that of the first convolution, doubled by each. The last pooling has stride 1: it keeps the size by
    looking beyond the right and the lower border, where there is nothing. Images (B, 3, H, W) of at least 32 pixels;
    sizes are rounded down. Source: the authors' configuration (yolov3-tiny).

    >>> import torch
    >>> [tuple(level.shape) for level in tiny_darknet_backbone(width=2)(torch.zeros(1, 3, 64, 96))]
    [(1, 32, 4, 6), (1, 128, 2, 3)]
    """
    widths = [3, *(width * 2**i for i in range(7))]
    convolutions = [ConvNormActivation(widths[i], widths[i + 1], norm=norm, activation=leaky) for i in range(7)]
    first = [layer for convolution in convolutions[:4] for layer in (convolution, nn.MaxPool2d(2))]
    stages = [
        nn.Sequential(*first, convolutions[4]),
        nn.Sequential(nn.MaxPool2d(2), convolutions[5], same_max_pool(), convolutions[6]),
    ]
    return _initialized(SequentialBackbone(stages, out_channels=[width * 16, width * 64], strides=[16, 32]))


@door
def yolo_v1_backbone(*, width: Count = 64, norm: Norm = nn.BatchNorm2d) -> SequentialBackbone:
    """The 24 convolutions of YOLO v1: one level at stride 64, 1024 channels, 7 x 7 cells at 448 x 448.

    The first convolution has ``width`` channels, a sixteenth of the last. Each is followed by ``norm``, as in the
    authors' configuration; the paper has none. Images (B, 3, H, W) of at least 64 pixels. Source: Redmon et al. 2016,
    figure 3; He initialization.

    >>> import torch
    >>> yolo_v1_backbone(width=4)(torch.zeros(1, 3, 448, 448))[0].shape
    torch.Size([1, 64, 7, 7])
    """
    w, pool = width, nn.MaxPool2d(2)
    pairs = [(4 * w, 1), (8 * w, 3)], [(8 * w, 1), (16 * w, 3)]
    third = [(2 * w, 1), (4 * w, 3), (4 * w, 1), (8 * w, 3)]
    last = [(16 * w, 3), (16 * w, 3, 2), (16 * w, 3), (16 * w, 3)]
    layers = [(w, 7, 2), pool, (3 * w, 3), pool, *third, pool, *pairs[0] * 4, *pairs[1], pool, *pairs[1] * 2, *last]
    return _chain(layers, norm)


@door
def tiny_yolo_v1_backbone(*, width: Count = 16, norm: Norm = nn.BatchNorm2d) -> SequentialBackbone:
    """The chain of YOLO v1 tiny: eight 3 x 3 convolutions; one level at stride 64, 256 channels.

    The first convolution has ``width`` channels. Images (B, 3, H, W) of at least 64 pixels; sizes are rounded down.
    Source: the authors' configuration (yolov1-tiny); He initialization.

    >>> import torch
    >>> tiny_yolo_v1_backbone(width=2)(torch.zeros(1, 3, 448, 448))[0].shape
    torch.Size([1, 32, 7, 7])
    """
    doubled = [layer for i in range(6) for layer in ((width * 2**i, 3), nn.MaxPool2d(2))]
    return _chain([*doubled, (width * 64, 3), (width * 16, 3)], norm)


def same_max_pool() -> nn.Sequential:
    """The maximum of each pixel, those to its right and below: 2 x 2 at stride 1, nothing beyond the border.

    >>> import torch
    >>> same_max_pool()(torch.tensor([[[-1.0, -2], [-4, -3]]]))
    tensor([[[-1., -2.],
             [-3., -3.]]])
    """
    return nn.Sequential(nn.ConstantPad2d((0, 1, 0, 1), float("-inf")), nn.MaxPool2d(2, stride=1))


def _chain(layers: Sequence[tuple[int, ...] | nn.Module], norm: Norm) -> SequentialBackbone:
    """One level at stride 64, of convolutions (channels, kernel size, perhaps stride) and other layers."""
    steps: list[nn.Module] = []
    channels = 3
    for layer in layers:
        if isinstance(layer, tuple):
            wide, side, stride = (*layer, 1)[:3]
            steps.append(
                ConvNormActivation(channels, wide, kernel_size=side, stride=stride, norm=norm, activation=leaky)
            )
            channels = wide
        else:
            steps.append(layer)
    return _initialized(SequentialBackbone([nn.Sequential(*steps)], out_channels=[channels], strides=[64]))


def _initialized(backbone: SequentialBackbone) -> SequentialBackbone:
    init_convolutions(backbone, partial(nn.init.kaiming_normal_, a=SLOPE))
    return backbone
