"""The hybrid encoder of RT-DETR: attention on the coarsest map, then blocks of convolutions down and up the levels."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detkit._door import door
from detkit._ranges import Count
from detkit.layers import ConvNormActivation, check_levels
from detkit.necks.base import Neck


class HybridNeck(Neck):
    """Projects each level to ``channels``, lets the cells of the coarsest attend to each other, and joins the levels.

    ``attention`` maps the coarsest (B, channels, H, W) to the same shape: a
    :class:`~detkit.layers.MapAttention`. Then, from the coarsest level down, a ``lateral(channels)`` is enlarged to the
    size of the next finer level and put beside it, and ``fuse(2 * channels, channels)`` makes one map of both; and from
    the finest level up, ``downsample(channels)`` of a level is put beside the next coarser lateral, and both are fused,
    too. Each is called for every step. The projections have batch norms and no activation.
    Source: Zhao et al. 2024, "RT-DETR", section 4.2 ("efficient hybrid encoder").

    >>> from detkit.layers import CSPRepBlock
    >>> neck = HybridNeck(
    ...     [8, 16], [8, 16], channels=4, attention=nn.Identity(), fuse=CSPRepBlock,
    ...     lateral=lambda width: nn.Conv2d(width, width, 1),
    ...     downsample=lambda width: nn.Conv2d(width, width, 3, stride=2, padding=1),
    ... )
    >>> [tuple(level.shape) for level in neck([torch.zeros(2, 8, 7, 6), torch.zeros(2, 16, 4, 3)])]
    [(2, 4, 7, 6), (2, 4, 4, 3)]
    """

    @door
    def __init__(
        self,
        in_channels: Sequence[Count],
        in_strides: Sequence[Count],
        *,
        channels: Count,
        attention: nn.Module,
        fuse: Callable[[int, int], nn.Module],
        lateral: Callable[[int], nn.Module],
        downsample: Callable[[int], nn.Module],
    ) -> None:
        check_levels(in_channels, in_strides, function="HybridNeck")
        super().__init__(in_channels, out_channels=[channels] * len(in_channels), strides=in_strides)
        self.projections = nn.ModuleList(
            ConvNormActivation(width, channels, kernel_size=1, activation=None) for width in in_channels
        )
        self.attention = attention
        steps = range(len(in_channels) - 1)
        self.laterals = nn.ModuleList(lateral(channels) for _ in steps)
        self.down = nn.ModuleList(fuse(2 * channels, channels) for _ in steps)
        self.downsamples = nn.ModuleList(downsample(channels) for _ in steps)
        self.up = nn.ModuleList(fuse(2 * channels, channels) for _ in steps)

    @door
    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """One map of ``channels`` for each level, finest first."""
        self.check_features(features)
        *finer, coarsest = (project(map_) for project, map_ in zip(self.projections, features, strict=True))
        merged, laterals = self.attention(coarsest), []
        for lateral, fuse, own in zip(self.laterals, self.down, reversed(finer), strict=True):
            laterals.append(lateral(merged))
            enlarged = F.interpolate(laterals[-1], size=own.shape[-2:], mode="nearest")
            merged = fuse(torch.cat((enlarged, own), 1))
        outputs = [merged]
        for downsample, fuse, lateral in zip(self.downsamples, self.up, reversed(laterals), strict=True):
            outputs.append(fuse(torch.cat((downsample(outputs[-1]), lateral), 1)))
        return outputs
