"""A chain of stages as a backbone, and two published ones: TinySSD's and SSD7's."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detkit._door import door
from detkit._ranges import Count
from detkit.backbones.base import Backbone
from detkit.backbones.meta import meta_pass
from detkit.layers import init_convolutions


class SequentialBackbone(Backbone):
    """Stages run one after another; the output of each is a level.

    ``stages`` come with the channels and the stride (relative to the image) of each stage's output; without these, both
    are inferred from the shapes of one pass on the meta device (nothing is computed) with an image of 256 x 256. Raises
    ValueError if their numbers differ, or only one of the two is given.

    >>> import torch
    >>> backbone = SequentialBackbone([nn.Conv2d(3, 4, 2, 2), nn.MaxPool2d(2)], out_channels=[4, 4], strides=[2, 4])
    >>> [tuple(level.shape) for level in backbone(torch.zeros(1, 3, 8, 12))]
    [(1, 4, 4, 6), (1, 4, 2, 3)]
    """

    @door
    def __init__(
        self,
        stages: Sequence[nn.Module],
        *,
        out_channels: Sequence[Count] | None = None,
        strides: Sequence[Count] | None = None,
    ) -> None:
        if (out_channels is None) != (strides is None):
            raise ValueError("SequentialBackbone: give both out_channels and strides, or neither to have them inferred")
        if out_channels is None or strides is None:
            out_channels, strides = _inferred(stages)
        super().__init__(out_channels=out_channels, strides=strides)
        if len(stages) != len(self.out_channels):
            raise ValueError(
                f"SequentialBackbone: got {len(stages)} stages but out_channels {self.out_channels}; "
                "each stage needs its own"
            )
        self.stages = nn.ModuleList(stages)

    def steps(self) -> list[list[nn.Module]]:
        """Its stages."""
        return [[stage] for stage in self.stages]

    @door
    def forward(self, images: Float[Tensor, "B D H W"]) -> list[Tensor]:
        """The output of each stage, in order."""
        self.check_images(images)
        levels = [images]
        for stage in self.stages:
            levels.append(self.run(stage, levels[-1]))
        return levels[1:]


def tiny_ssd_backbone() -> SequentialBackbone:
    """The trunk of TinySSD: six blocks that each halve the image, then one cell for the whole image.

    Images (B, 3, H, W) of at least 64 pixels to levels of 64, 128, 128, 128, 128 channels: 32, 16, 8, 4 and 1 cells
    wide at the published 256 x 256. The last stride, 256, holds at that size only: its cell is always the whole image.
    Source: Dive into Deep Learning, section 14.7.

    >>> import torch
    >>> [level.shape[-1] for level in tiny_ssd_backbone()(torch.zeros(2, 3, 256, 256))]
    [32, 16, 8, 4, 1]
    """
    base = nn.Sequential(_down_block(3, 16), _down_block(16, 32), _down_block(32, 64))
    stages = [base, _down_block(64, 128), _down_block(128, 128), _down_block(128, 128), nn.AdaptiveMaxPool2d(1)]
    return SequentialBackbone(stages, out_channels=[64, 128, 128, 128, 128], strides=[8, 16, 32, 64, 256])


def ssd7_backbone() -> SequentialBackbone:
    """The trunk of SSD7: seven convolutions with batch norm and ELU, with pooling between them.

    Images (B, 3, H, W) of at least 64 pixels to the outputs of convolutions 4 to 7: 64, 48, 48, 32 channels at strides
    8, 16, 32, 64, sizes rounded down. Source: ssd_keras, keras_ssd7; He initialization.

    >>> import torch
    >>> [tuple(level.shape[-2:]) for level in ssd7_backbone()(torch.zeros(2, 3, 300, 480))]
    [(37, 60), (18, 30), (9, 15), (4, 7)]
    """
    channels = (3, 32, 48, 64, 64, 48, 48, 32)
    convolutions = ssd7_convolutions(channels)
    pooled = [nn.Sequential(nn.MaxPool2d(2), convolution) for convolution in convolutions[1:]]
    stages = [nn.Sequential(convolutions[0], *pooled[:3]), *pooled[3:]]
    backbone = SequentialBackbone(stages, out_channels=channels[4:], strides=[8, 16, 32, 64])
    init_convolutions(backbone, nn.init.kaiming_normal_)
    return backbone


def ssd7_convolutions(channels: Sequence[int]) -> list[nn.Sequential]:
    """Convolutions as SSD7 has them, with batch norm and ELU, each from one of ``channels`` to the next.

    They are 3 x 3, and 5 x 5 on images.

    >>> [block[0].kernel_size for block in ssd7_convolutions((3, 32, 48))]
    [(5, 5), (3, 3)]
    """
    norm = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)
    return [
        nn.Sequential(_convolution(before, after, 5 if before == 3 else 3), norm(after), nn.ELU())
        for before, after in pairwise(channels)
    ]


def _inferred(stages: Sequence[nn.Module]) -> tuple[list[int], list[int]]:
    """Channels and strides of the outputs of the stages."""
    side, levels = 256, []
    level = torch.empty(2, 3, side, side, device="meta")
    for stage in stages:
        level = meta_pass(stage, level)
        levels.append(level.shape)
    return [shape[1] for shape in levels], [round(side / shape[2]) for shape in levels]


def _down_block(in_channels: int, out_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before in (in_channels, out_channels):
        layers += [_convolution(before, out_channels), nn.BatchNorm2d(out_channels), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(2))


def _convolution(in_channels: int, out_channels: int, kernel_size: int = 3) -> nn.Conv2d:
    # Both nets keep a bias before the norm, so their published parameter counts and weights hold.
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
