"""The network of Ultra-Light-Fast-Generic-Face-Detector, version RFB-320: an SSD whose weights are 1.2 MB."""

import torch
from faces.blocks import linear, separable, without_norms
from torch import Tensor, nn

from detkit.backbones import Backbone
from detkit.heads import prediction_conv
from detkit.layers import ConvNormActivation

BLOCKS = [(16, 32, 1), (32, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 64, 1)]
COARSER_BLOCKS = [(64, 128, 2), (128, 128, 1), (128, 128, 1), (128, 256, 2), (256, 256, 1)]


def branch(*channels: int, dilation: int) -> nn.Sequential:
    """A 1 x 1 convolution, 3 x 3 ones, and a dilated one; no ReLU behind the first and the last."""
    inner = map(ConvNormActivation, (8, *channels), channels)
    return nn.Sequential(linear(64, 8, kernel_size=1), *inner, linear(channels[-1], 16, dilation=dilation))


class ReceptiveFields(nn.Module):
    """Branches that see ever farther, mixed, and added to the input: RFB (Liu et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.branch0, self.branch1 = branch(16, dilation=2), branch(16, dilation=3)
        self.branch2 = branch(12, 16, dilation=5)
        self.ConvLinear, self.shortcut = linear(48, 64, kernel_size=1), linear(64, 64, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        seen = torch.cat((self.branch0(features), self.branch1(features), self.branch2(features)), dim=1)
        return (self.ConvLinear(seen) + self.shortcut(features)).relu()


class UltraLight(Backbone):
    """A narrow MobileNet with levels at strides 8 to 64; its parts have the file's names."""

    def __init__(self) -> None:
        super().__init__(out_channels=(64, 128, 256, 256), strides=(8, 16, 32, 64))
        fine, coarse = ([separable(a, b, stride=stride) for a, b, stride in rows] for rows in (BLOCKS, COARSER_BLOCKS))
        self.base_net = nn.Sequential(ConvNormActivation(3, 16, stride=2), *fine, ReceptiveFields(), *coarse)
        last = nn.Conv2d(256, 64, 1), nn.ReLU(), without_norms(64, 256, stride=2), nn.ReLU()
        self.extras = nn.Sequential(nn.Sequential(*last))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Four levels."""
        levels = [images]
        for part in (self.base_net[:8], self.base_net[8:11], self.base_net[11:], self.extras):
            levels.append(part(levels[-1]))
        return levels[1:]


def predictor(before: int, after: int) -> nn.Module:
    """Plain at the coarsest level, the one of 256 channels with three boxes a cell; separable at the others."""
    return prediction_conv(before, after) if (before, after % 3) == (256, 0) else without_norms(before, after)
