"""The network of RetinaFace on a quarter of a MobileNet: its weights are 1.8 MB."""

import torch
from faces.blocks import linear, separable
from torch import Tensor, nn
from torch.nn import functional as F

from detkit.backbones import Backbone
from detkit.layers import ConvNormActivation


class Pyramid(nn.Module):
    """A feature pyramid in which a level is smoothed before it is added to the finer one."""

    def __init__(self) -> None:
        super().__init__()
        self.output1, self.output2, self.output3 = (ConvNormActivation(c, 64, kernel_size=1) for c in (64, 128, 256))
        self.merge1, self.merge2 = ConvNormActivation(64, 64), ConvNormActivation(64, 64)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        fine, middle, coarse = self.output1(features[0]), self.output2(features[1]), self.output3(features[2])
        middle = self.merge2(middle + F.interpolate(coarse, middle.shape[-2:]))
        return [self.merge1(fine + F.interpolate(middle, fine.shape[-2:])), middle, coarse]


class Context(nn.Module):
    """What 3 x 3, 5 x 5 and 7 x 7 cells hold, side by side: SSH (Najibi et al. 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv3X3 = linear(64, 32)
        self.conv5X5_1, self.conv5X5_2 = ConvNormActivation(64, 16), linear(16, 16)
        self.conv7X7_2, self.conv7x7_3 = ConvNormActivation(16, 16), linear(16, 16)

    def forward(self, features: Tensor) -> Tensor:
        shared = self.conv5X5_1(features)
        seen = self.conv3X3(features), self.conv5X5_2(shared), self.conv7x7_3(self.conv7X7_2(shared))
        return torch.cat(seen, dim=1).relu()


class RetinaFace(Backbone):
    """Three levels of 64 channels at strides 8 to 32; its parts have the file's names."""

    def __init__(self) -> None:
        super().__init__(out_channels=(64, 64, 64), strides=(8, 16, 32))
        rows = [(8, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)]
        finest = ConvNormActivation(3, 8, stride=2), *(separable(a, b, stride=stride) for a, b, stride in rows)
        middle = separable(64, 128, stride=2), *(separable(128, 128) for _ in range(5))
        coarsest = separable(128, 256, stride=2), separable(256, 256)
        stages = {f"stage{i}": nn.Sequential(*stage) for i, stage in enumerate((finest, middle, coarsest), 1)}
        self.body, self.fpn = nn.ModuleDict(stages), Pyramid()
        self.ssh1, self.ssh2, self.ssh3 = Context(), Context(), Context()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Three levels."""
        levels = [images]
        for stage in self.body.values():
            levels.append(stage(levels[-1]))
        fine, middle, coarse = self.fpn(levels[1:])
        return [self.ssh1(fine), self.ssh2(middle), self.ssh3(coarse)]
