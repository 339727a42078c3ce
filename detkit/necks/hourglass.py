"""The hourglass: further down, up again, and at each level what was seen on the way down beside what comes back up."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detkit._door import door
from detkit._ranges import Count
from detkit.layers import ConvNormActivation, check_levels, init_convolutions
from detkit.necks.base import Neck


class Hourglass(Neck):
    """Goes on down ``depth`` times, comes up again, and merges both ways at every level of the backbone.

    With F the backbone's map of a level and H what comes up to it, the level's output (B, channels, H_l, W_l) is
    ``relu(w_F * F + w_H * H + b)``, computed as one 3 x 3 convolution of both. Each step down is a 3 x 3 convolution
    with stride 2; each step up a 1 x 1 convolution to ``channels`` and a bilinear enlargement to the size of the finer
    map, whatever that is, so that images of any size fit. ``norm``, called with the number of channels, follows each
    convolution (default: none, as published).

    Deviations: the authors' code enlarges by a fixed deconvolution (kernel 4, stride 2), which is the same away from
    the border, for sides that double; there the 1 x 1 convolution stands behind the enlargement, here before it, where
    it costs a quarter, and a ReLU follows it. Exported with dynamic sizes, the coarsest map must be more than one cell
    high and wide: with the defaults, images above 64 pixels.
    Raises ValueError for in_channels and in_strides of different lengths.
    Source: Li et al. 2016, "Do We Really Need More Training Data For Object Localization", network architecture.

    >>> neck = Hourglass([8, 16, 32], [8, 16, 32], channels=4)
    >>> features = [torch.zeros(1, 8, 15, 8), torch.zeros(1, 16, 8, 4), torch.zeros(1, 32, 4, 2)]
    >>> [tuple(level.shape) for level in neck(features)]
    [(1, 4, 15, 8), (1, 4, 8, 4), (1, 4, 4, 2)]
    """

    @door
    def __init__(
        self,
        in_channels: Sequence[Count],
        in_strides: Sequence[Count],
        *,
        channels: Count = 512,
        depth: Count = 1,
        norm: Callable[[int], nn.Module] | None = None,
    ) -> None:
        check_levels(in_channels, in_strides, function="Hourglass")
        super().__init__(in_channels, out_channels=[channels] * len(in_channels), strides=in_strides)
        block, width = partial(ConvNormActivation, norm=norm), in_channels[-1]
        self.down = nn.ModuleList(block(width, width, stride=2) for _ in range(depth))
        steps = len(in_channels) + depth - 1
        self.up = nn.ModuleList(
            block(width if step == steps - 1 else channels, channels, kernel_size=1) for step in range(steps)
        )
        self.merge = nn.ModuleList(block(own + channels, channels) for own in in_channels)
        init_convolutions(self, partial(nn.init.kaiming_normal_, nonlinearity="relu"))

    @door
    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """The merged levels, finest first."""
        self.check_features(features)
        way = list(features)
        for block in self.down:
            way.append(block(way[-1]))
        merged, above = [], way.pop()
        for level in reversed(range(len(way))):
            above = F.interpolate(
                self.up[level](above), size=way[level].shape[-2:], mode="bilinear", align_corners=False
            )
            if level < len(features):
                merged.append(self.merge[level](torch.cat((way[level], above), dim=1)))
        return merged[::-1]
