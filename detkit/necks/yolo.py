"""YOLO v3's neck: from the coarsest level down, each enlarged and put beside the next finer one."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detkit._door import door
from detkit._ranges import Count, Whole
from detkit.layers import ConvNormActivation, check_levels, init_convolutions
from detkit.necks.base import Neck


class YOLONeck(Neck):
    """Convolutions on each level, coarsest first; what they find is enlarged and concatenated to the next finer level.

    Level l with ``out_channels[l]`` = D (None: those of the input) has ``depths[l]`` convolutions, alternately 1 x 1 to
    D / 2 and 3 x 3 to D channels, then one more, 3 x 3 to D, whose result the head reads. To the next finer level go
    the features before that one, through a 1 x 1 convolution to half their channels, enlarged by nearest neighbor to
    the finer size. Depths are odd, or 0. The defaults are those of YOLO v3; v3 tiny has ``depths=(0, 1)``. Each
    convolution is followed by ``norm`` and a leaky ReLU of slope .1.

    In the authors' cfg files, and files of weights, comes of each level, coarsest first: ``blocks[l]``, ``outputs[l]``,
    the convolution of the head, then ``laterals[l]``. Raises ValueError for arguments of different lengths and depths
    that are even. Source: Redmon and Farhadi 2018, section 2.3, and the authors' configuration.

    >>> import torch
    >>> neck = YOLONeck([8, 16, 32], [8, 16, 32])
    >>> features = [torch.zeros(1, 8, 9, 9), torch.zeros(1, 16, 5, 5), torch.zeros(1, 32, 3, 3)]
    >>> [tuple(level.shape) for level in neck(features)]
    [(1, 8, 9, 9), (1, 16, 5, 5), (1, 32, 3, 3)]
    """

    @door
    def __init__(
        self,
        in_channels: Sequence[Count],
        in_strides: Sequence[Count],
        *,
        out_channels: Sequence[Count] | None = None,
        depths: Sequence[Whole] | None = None,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ) -> None:
        check_levels(in_channels, in_strides, function="YOLONeck")
        out_channels = tuple(in_channels if out_channels is None else out_channels)
        depths = (5,) * len(in_channels) if depths is None else tuple(depths)
        if not len(in_channels) == len(out_channels) == len(depths):
            raise ValueError(
                f"YOLONeck: {len(in_channels)} in_channels, {len(out_channels)} out_channels and {len(depths)} depths; "
                "each level needs its own"
            )
        if any(depth != 0 and depth % 2 != 1 for depth in depths):
            raise ValueError(f"YOLONeck: depths={depths} must be odd, or 0")
        super().__init__(in_channels, out_channels=out_channels, strides=in_strides)
        convolution = partial(ConvNormActivation, norm=norm, activation=partial(nn.LeakyReLU, 0.1))
        blocks, outputs, laterals, above = [], [], [], 0
        for level in reversed(range(len(in_channels))):
            width, before = out_channels[level], in_channels[level] + above
            blocks.append(_block(before, width, depths[level], convolution))
            after = width // 2 if depths[level] else before
            outputs.append(convolution(after, width))
            above = after // 2
            laterals.append(convolution(after, above, kernel_size=1) if level else nn.Identity())
        self.blocks, self.outputs, self.laterals = (nn.ModuleList(part[::-1]) for part in (blocks, outputs, laterals))
        init_convolutions(self, partial(nn.init.kaiming_normal_, a=0.1))

    @door
    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """What the head reads, finest first."""
        self.check_features(features)
        outputs, above = [], None
        for level in reversed(range(len(features))):
            own = features[level]
            if above is not None:
                own = torch.cat((F.interpolate(above, size=own.shape[-2:], mode="nearest"), own), dim=1)
            own = self.blocks[level](own)
            outputs.append(self.outputs[level](own))
            above = self.laterals[level](own)
        return outputs[::-1]


def _block(in_channels: int, width: int, depth: int, convolution: Callable[..., nn.Module]) -> nn.Sequential:
    layers = []
    for i in range(depth):
        narrow = i % 2 == 0
        layers.append(convolution(in_channels, width // 2 if narrow else width, kernel_size=1 if narrow else 3))
        in_channels = width // 2 if narrow else width
    return nn.Sequential(*layers)
