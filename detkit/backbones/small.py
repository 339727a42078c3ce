"""A small residual net: trains from scratch on a CPU in minutes, and is fast enough for tests."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from detkit._door import door
from detkit._ranges import Count, Whole
from detkit.backbones.base import Backbone
from detkit.layers import ConvNormActivation, init_convolutions


class SmallBackbone(Backbone):
    """A ResNet of basic blocks with a stem of 3 x 3 convolutions; each stage halves the one before.

    ``channels`` gives each stage's width. Stage 0 works at ``stem_stride`` (2 or 4), so the default has levels at
    strides 4, 8, 16, 32. ``levels`` picks, ascending, the stages that are returned (default: all); stages after the
    last one are not built. ``norm`` is called with the number of channels (``functools.partial(nn.GroupNorm, 8)``).
    Images (B, 3, H, W) of any size; level sizes are rounded up. He initialization (arXiv 1502.01852, section 2.2).

    >>> import torch
    >>> backbone = SmallBackbone((16, 32, 64), levels=(1, 2))
    >>> backbone.out_channels, backbone.strides
    ((32, 64), (8, 16))
    >>> [tuple(level.shape) for level in backbone(torch.zeros(1, 3, 65, 96))]
    [(1, 32, 9, 12), (1, 64, 5, 6)]
    """

    @door
    def __init__(
        self,
        channels: Sequence[Count] = (32, 64, 128, 256),
        *,
        levels: Sequence[Whole] | None = None,
        stem_stride: Count = 4,
        blocks: Count = 1,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ) -> None:
        levels = tuple(range(len(channels)) if levels is None else levels)
        if not levels or list(levels) != sorted(set(levels)) or levels[0] < 0 or levels[-1] >= len(channels):
            raise ValueError(
                f"SmallBackbone: levels={levels} must be ascending indices into channels={tuple(channels)}"
            )
        if stem_stride not in (2, 4):
            raise ValueError(f"SmallBackbone: stem_stride={stem_stride} must be 2 or 4")
        super().__init__(out_channels=[channels[i] for i in levels], strides=[stem_stride * 2**i for i in levels])
        self.levels = levels
        stem = [ConvNormActivation(3, channels[0], stride=2, norm=norm)]
        if stem_stride == 4:
            stem.append(ConvNormActivation(channels[0], channels[0], stride=2, norm=norm))
        self.stem = nn.Sequential(*stem)
        widths = (channels[0], *channels[: levels[-1] + 1])
        self.stages = nn.ModuleList(
            _stage(before, after, stride=1 if i == 0 else 2, blocks=blocks, norm=norm)
            for i, (before, after) in enumerate(pairwise(widths))
        )
        init_convolutions(self, partial(nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu"))

    def steps(self) -> list[list[nn.Module]]:
        """The stages of each level; the stem belongs to the first."""
        begins = [0, *(level + 1 for level in self.levels)]
        stages = list(self.stages)
        steps = [stages[begin:end] for begin, end in pairwise(begins)]
        return [[self.stem, *steps[0]], *steps[1:]]

    @door
    def forward(self, images: Float[Tensor, "B D H W"]) -> list[Tensor]:
        """The chosen levels, finest first."""
        self.check_images(images)
        features, outputs = self.run(self.stem, images), []
        for i, stage in enumerate(self.stages):
            features = self.run(stage, features)
            if i in self.levels:
                outputs.append(features)
        return outputs


def _stage(
    in_channels: int, out_channels: int, *, stride: int, blocks: int, norm: Callable[[int], nn.Module]
) -> nn.Sequential:
    shortcut = None
    if stride != 1 or in_channels != out_channels:
        shortcut = ConvNormActivation(
            in_channels, out_channels, kernel_size=1, stride=stride, norm=norm, activation=None
        )
    first = BasicBlock(in_channels, out_channels, stride, shortcut, norm_layer=norm)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, norm_layer=norm) for _ in range(blocks - 1)))
