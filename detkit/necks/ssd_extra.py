"""SSD's extra layers: ever coarser levels after the backbone's."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from detkit._door import door
from detkit._ranges import Count, Whole, check_fields
from detkit.layers import ConvNormActivation, check_levels, init_convolutions
from detkit.necks.base import Neck


class ExtraLevel(NamedTuple):
    """One extra level: a 1 x 1 convolution to ``mid_channels``, then a larger one to ``out_channels``."""

    mid_channels: Count
    out_channels: Count
    kernel_size: Count = 3
    stride: Count = 2
    padding: Whole = 1


SSD300_LEVELS = (
    ExtraLevel(256, 512),
    ExtraLevel(128, 256),
    ExtraLevel(128, 256, stride=1, padding=0),
    ExtraLevel(128, 256, stride=1, padding=0),
)
"""The four extra levels of SSD300: 10, 5, 3 and 1 cells wide at 300 pixels."""

SSD512_LEVELS = (
    ExtraLevel(256, 512),
    ExtraLevel(128, 256),
    ExtraLevel(128, 256),
    ExtraLevel(128, 256),
    ExtraLevel(128, 256, kernel_size=4, stride=1, padding=1),
)
"""The five extra levels of SSD512: 16, 8, 4, 2 and 1 cells wide at 512 pixels."""


class SSDExtra(Neck):
    """Passes its feature maps through and appends levels that shrink the last one further.

    ``features`` (B, in_channels[l], H_l, W_l) are followed by one map for each of ``levels``. ``strides`` are the
    distances between neighboring cells: a level whose convolution has no stride keeps the previous stride even if it
    loses its border, while Caffe's SSD300 lists 100 and 300 (image size by cells) as the steps of its last two levels.
    ``norm`` (default none, as published) is called with the number of channels. Xavier initialization.
    Raises ValueError for in_channels and in_strides of different lengths.
    Source: SSD (arXiv 1512.02325, section 2.1, figure 2; section 3.3, note on SSD512).

    >>> import torch
    >>> neck = SSDExtra([512, 1024], [8, 16])
    >>> neck.strides
    (8, 16, 32, 64, 64, 64)
    >>> [level.shape[-1] for level in neck([torch.zeros(1, 512, 38, 38), torch.zeros(1, 1024, 19, 19)])]
    [38, 19, 10, 5, 3, 1]
    """

    @door
    def __init__(
        self,
        in_channels: Sequence[Count],
        in_strides: Sequence[Count],
        *,
        levels: Sequence[ExtraLevel] = SSD300_LEVELS,
        norm: Callable[[int], nn.Module] | None = None,
    ) -> None:
        check_levels(in_channels, in_strides, function="SSDExtra")
        channels, strides = list(in_channels), list(in_strides)
        blocks = []
        for i, level in enumerate(levels):
            check_fields(level, f"SSDExtra: levels[{i}]")
            blocks.append(_block(channels[-1], level, norm))
            channels.append(level.out_channels)
            strides.append(strides[-1] * level.stride)
        super().__init__(in_channels, out_channels=channels, strides=strides)
        self.blocks = nn.ModuleList(blocks)
        init_convolutions(self, nn.init.xavier_uniform_)

    @door
    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """The given levels, then the extra ones."""
        self.check_features(features)
        levels = list(features)
        for block in self.blocks:
            levels.append(block(levels[-1]))
        return levels


def _block(in_channels: int, level: ExtraLevel, norm: Callable[[int], nn.Module] | None) -> nn.Sequential:
    convolution = partial(ConvNormActivation, norm=norm)
    reduce = convolution(in_channels, level.mid_channels, kernel_size=1)
    shrink = convolution(
        level.mid_channels,
        level.out_channels,
        kernel_size=level.kernel_size,
        stride=level.stride,
        padding=level.padding,
    )
    # Flat, so that without a norm the keys are torchvision's.
    return nn.Sequential(*reduce, *shrink)
