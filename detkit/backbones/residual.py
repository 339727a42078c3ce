"""The residual classifier's feature extractor, and the trunk of an SSD on top of it.

Source: Howard, Williamson and Sarma, "Object Classification and Localization on ImageNet", sections 3.2 and 3.3.
"""

from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from detkit._door import door
from detkit._ranges import Count, Fraction
from detkit.backbones.sequential import SequentialBackbone, ssd7_convolutions
from detkit.layers import ConvNormActivation, init_convolutions


@door
def residual_backbone(*, dropout: Fraction = 0.1) -> SequentialBackbone:
    """A small residual net: one pooled 7 x 7 convolution, then eight bottlenecks in three stages.

    Images (B, 3, H, W) to 128, 256 and 512 channels at strides 4, 8 and 16: 512 x 14 x 14 from 224 x 224. ``dropout``
    follows the first convolution. He initialization.

    Deviation: the source has 1 x 1 filters of stride 2 in every convolution, which no shortcut could follow. As in
    ResNet-50, which it refers to, the middle convolution of each bottleneck is 3 x 3, and only the first of the three
    that widen has a stride.

    >>> sum(parameter.numel() for parameter in residual_backbone().parameters())
    1523520
    """
    stem = [ConvNormActivation(3, 64, kernel_size=7), nn.Dropout(dropout), nn.MaxPool2d(2)]
    stages = [
        nn.Sequential(*stem, _Bottleneck(64, 64, 128, stride=2)),
        nn.Sequential(_Bottleneck(128, 64, 256, stride=2), *(_Bottleneck(256, 64, 256) for _ in range(2))),
        nn.Sequential(_Bottleneck(256, 128, 512, stride=2), *(_Bottleneck(512, 128, 512) for _ in range(3))),
    ]
    backbone = SequentialBackbone(stages, out_channels=[128, 256, 512], strides=[4, 8, 16])
    init_convolutions(backbone, partial(nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu"))
    return backbone


@door
def modified_ssd_backbone(*, stride: Count = 16) -> SequentialBackbone:
    """The last four convolutions of SSD7 on the residual net's features at ``stride``.

    Images (B, 3, H, W) of at least 8 strides to 64, 48, 48, 32 channels at ``stride`` and 2, 4 and 8 times that, sizes
    rounded down: 14, 7, 3 and 1 cells a side from 224 x 224; with ``stride=8`` 28, 14, 7 and 3. Raises ValueError for
    another stride.

    >>> modified_ssd_backbone().strides
    (16, 32, 64, 128)
    """
    if stride not in (8, 16):
        raise ValueError(f"modified_ssd_backbone: {stride=}; allowed are 8 and 16, where the residual net has levels")
    residual = residual_backbone()
    taps = residual.stages[: residual.strides.index(stride) + 1]
    first, *others = ssd7_convolutions((residual.out_channels[len(taps) - 1], 64, 48, 48, 32))
    for convolution in (first, *others):
        init_convolutions(convolution, nn.init.kaiming_normal_)
    stages = [nn.Sequential(*taps, first), *(nn.Sequential(nn.MaxPool2d(2), convolution) for convolution in others)]
    return SequentialBackbone(stages, out_channels=[64, 48, 48, 32], strides=[stride * 2**i for i in range(4)])


class _Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions beside a shortcut, which has one of its own where the shape changes."""

    def __init__(self, before: int, width: int, after: int, *, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ConvNormActivation(before, width, kernel_size=1, stride=stride),
            ConvNormActivation(width, width),
            ConvNormActivation(width, after, kernel_size=1, activation=None),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            self.shortcut = ConvNormActivation(before, after, kernel_size=1, stride=stride, activation=None)
        self.activation = nn.ReLU()

    def forward(self, features: Float[Tensor, "B D H W"]) -> Float[Tensor, "B _ _ _"]:
        return self.activation(self.body(features) + self.shortcut(features))
