"""HGNetV2, D-FINE's backbone: blocks that put all they computed side by side, and squeeze it once at their end."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from detkit._door import door
from detkit._ranges import Count, Whole, check_fields
from detkit.backbones.base import Backbone


class HGStage(NamedTuple):
    """A stage of HGNet: ``blocks`` of ``layers`` convolutions of ``middle`` channels, which give ``channels``.

    ``light`` convolutions are 1 x 1 and then depthwise. ``stride`` is that of the depthwise convolution at the start of
    the stage; None for a stage without one.
    """

    middle: Count
    channels: Count
    blocks: Count = 1
    layers: Count = 3
    kernel_size: Count = 3
    light: bool = False
    stride: Count | None = 2


class HGNetBackbone(Backbone):
    """A stem of stride 4, then ``stages``; ``levels`` says after which of them a map is given out.

    ``stem`` are the channels inside the stem and at its end. ``affine`` puts a learned scale and shift of one number
    each behind every activation, as the small published models have. Images (B, 3, H, W); sizes are rounded up.
    Source: the PaddleClas project, HGNetV2; Zhao et al. 2024, "RT-DETR", uses its first version.
    Raises ValueError for levels that are not stages in rising order, and for an odd width of the stem.

    >>> backbone = HGNetBackbone((8, 8), [HGStage(8, 16, stride=None), HGStage(8, 32)], levels=(0, 1))
    >>> backbone.out_channels, backbone.strides
    ((16, 32), (4, 8))
    """

    @door
    def __init__(
        self,
        stem: tuple[Count, Count],
        stages: Sequence[HGStage],
        *,
        levels: Sequence[Whole] = (1, 2, 3),
        affine: bool = False,
    ) -> None:
        for i, stage in enumerate(stages):
            check_fields(stage, f"HGNetBackbone: stages[{i}]")
        if not levels or list(levels) != [i for i in range(len(stages)) if i in levels]:
            raise ValueError(f"HGNetBackbone: levels={tuple(levels)} must be some of {len(stages)} stages, ascending")
        if stem[0] % 2:
            raise ValueError(f"HGNetBackbone: stem={tuple(stem)} must begin with an even number of channels")
        stages = stages[: levels[-1] + 1]
        strides = [4 * (stage.stride or 1) for stage in stages[:1]]
        for stage in stages[1:]:
            strides.append(strides[-1] * (stage.stride or 1))
        super().__init__(out_channels=[stages[i].channels for i in levels], strides=[strides[i] for i in levels])
        self.levels = tuple(levels)
        self.stem = _Stem(*stem, affine=affine)
        befores = (stem[1], *(stage.channels for stage in stages))
        self.stages = nn.ModuleList(
            _stage(before, stage, affine=affine) for before, stage in zip(befores, stages, strict=False)
        )

    @door
    def forward(self, images: Float[Tensor, "B D H W"]) -> list[Tensor]:
        """The outputs of the chosen stages, finest first."""
        self.check_images(images)
        features, outputs = self.stem(images), []
        for i, stage in enumerate(self.stages):
            features = stage(features)
            if i in self.levels:
                outputs.append(features)
        return outputs


class Affine(nn.Module):
    """One learned scale and one learned shift for a whole map; it begins as the identity.

    >>> Affine()(torch.ones(1, 2, 1, 1)).flatten().tolist()
    [1.0, 1.0]
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

    def forward(self, features: Float[Tensor, "B D H W"]) -> Float[Tensor, "B D H W"]:
        """The map, scaled and shifted."""
        return self.scale * features + self.bias


@door
def hgnet_b0(*, levels: Sequence[Whole] = (1, 2, 3)) -> HGNetBackbone:
    """HGNetV2-B0, with affine blocks: 64, 256, 512 and 1024 channels at strides 4, 8, 16 and 32; for D-FINE N and S.

    >>> hgnet_b0().out_channels
    (256, 512, 1024)
    """
    return _published((16, 16), (16, 32, 64, 128), 64, blocks=(1, 1, 2, 1), layers=3, levels=levels, affine=True)


@door
def hgnet_b2(*, levels: Sequence[Whole] = (1, 2, 3)) -> HGNetBackbone:
    """HGNetV2-B2, with affine blocks: 96 to 1536 channels; for D-FINE M.

    >>> hgnet_b2().out_channels
    (384, 768, 1536)
    """
    return _published((24, 32), (32, 64, 128, 256), 96, blocks=(1, 1, 3, 1), layers=4, levels=levels, affine=True)


@door
def hgnet_b4(*, levels: Sequence[Whole] = (1, 2, 3)) -> HGNetBackbone:
    """HGNetV2-B4: 128 to 2048 channels; for D-FINE L.

    >>> hgnet_b4().out_channels
    (512, 1024, 2048)
    """
    return _published((32, 48), (48, 96, 192, 384), 128, blocks=(1, 1, 3, 1), layers=6, levels=levels)


@door
def hgnet_b5(*, levels: Sequence[Whole] = (1, 2, 3)) -> HGNetBackbone:
    """HGNetV2-B5: 128 to 2048 channels, twice as many blocks as B4; for D-FINE X.

    >>> hgnet_b5().out_channels
    (512, 1024, 2048)
    """
    return _published((32, 64), (64, 128, 256, 512), 128, blocks=(1, 2, 5, 2), layers=6, levels=levels)


def _published(
    stem: tuple[int, int],
    middle: Sequence[int],
    first: int,
    *,
    blocks: Sequence[int],
    layers: int,
    levels: Sequence[Whole],
    affine: bool = False,
) -> HGNetBackbone:
    """Four stages of ``first`` channels, 4 times that, and then twice as many each; the last two are light."""
    stages = [
        HGStage(width, first * (1, 4, 8, 16)[i], blocks[i], layers, 5 if i > 1 else 3, i > 1, 2 if i else None)
        for i, width in enumerate(middle)
    ]
    return HGNetBackbone(stem, stages, levels=levels, affine=affine)


class _Stem(nn.Module):
    """Convolutions to stride 4: two small ones beside a pooling, which keep the size as they pad right and below."""

    def __init__(self, width: int, channels: int, *, affine: bool) -> None:
        super().__init__()
        self.first = _conv(3, width, 3, stride=2, affine=affine)
        self.second = _conv(width, width // 2, 2, affine=affine)
        self.third = _conv(width // 2, width, 2, affine=affine)
        self.fourth = _conv(2 * width, width, 3, stride=2, affine=affine)
        self.last = _conv(width, channels, 1, affine=affine)

    def forward(self, images: Float[Tensor, "B D H W"]) -> Float[Tensor, "B _ _ _"]:
        features = F.pad(self.first(images), (0, 1, 0, 1))
        narrow = self.third(F.pad(self.second(features), (0, 1, 0, 1)))
        pooled = F.max_pool2d(features, 2, stride=1)
        return self.last(self.fourth(torch.cat((pooled, narrow), 1)))


class _Block(nn.Module):
    """A chain of convolutions; what it read and all that they gave are squeezed to half, then widened, channels."""

    def __init__(self, before: int, stage: HGStage, *, affine: bool, residual: bool) -> None:
        super().__init__()
        build = _light if stage.light else _conv
        widths = [before] + [stage.middle] * stage.layers
        self.layers = nn.ModuleList(
            build(width, stage.middle, stage.kernel_size, affine=affine) for width in widths[:-1]
        )
        half = stage.channels // 2
        self.squeeze = _conv(sum(widths), half, 1, affine=affine)
        self.widen = _conv(half, stage.channels, 1, affine=affine)
        self.residual = residual

    def forward(self, features: Float[Tensor, "B D H W"]) -> Float[Tensor, "B _ H W"]:
        computed = [features]
        for layer in self.layers:
            computed.append(layer(computed[-1]))
        found = self.widen(self.squeeze(torch.cat(computed, 1)))
        return found + features if self.residual else found


def _stage(before: int, stage: HGStage, *, affine: bool) -> nn.Sequential:
    parts: list[nn.Module] = []
    if stage.stride is not None:
        parts = [_conv(before, before, 3, stride=stage.stride, groups=before, activation=None)]
    for i in range(stage.blocks):
        parts.append(_Block(stage.channels if i else before, stage, affine=affine, residual=i > 0))
    return nn.Sequential(*parts)


def _light(before: int, after: int, kernel_size: int, *, affine: bool) -> nn.Sequential:
    """A 1 x 1 convolution without activation, then a depthwise one."""
    depthwise = _conv(after, after, kernel_size, groups=after, affine=affine)
    return nn.Sequential(_conv(before, after, 1, activation=None), depthwise)


def _conv(
    before: int,
    after: int,
    kernel_size: int,
    *,
    stride: int = 1,
    groups: int = 1,
    activation: Callable[[], nn.Module] | None = nn.ReLU,
    affine: bool = False,
) -> nn.Sequential:
    """A convolution, batch norm and, if there is an activation, that and perhaps an affine block."""
    padding = (kernel_size - 1) // 2
    parts: list[nn.Module] = [
        nn.Conv2d(before, after, kernel_size, stride=stride, padding=padding, groups=groups, bias=False),
        nn.BatchNorm2d(after),
    ]
    if activation is not None:
        parts += [activation(), *([Affine()] if affine else [])]
    return nn.Sequential(*parts)
