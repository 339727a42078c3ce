"""Shared by several recipes: untrained trunks with a feature pyramid, and the size that images are resized to."""

from collections.abc import Callable
from typing import Literal

from torch import nn
from torchvision.models.resnet import resnet50

from detkit._door import door
from detkit._ranges import Count
from detkit.backbones import Backbone, ResNetBackbone, SmallBackbone
from detkit.detectors.preprocess import Preprocess
from detkit.necks import FPN

Norm = Callable[[int], nn.Module]
Finest = Literal[4, 8]


def pyramid(backbone: Backbone | None) -> tuple[nn.Sequential, FPN]:
    """``backbone`` or an untrained ResNet-50, with a pyramid of 256 channels and two extra levels; and that pyramid.

    >>> pyramid(None)[1].strides
    (8, 16, 32, 64, 128)
    """
    backbone = ResNetBackbone(resnet50(weights=None)) if backbone is None else backbone
    neck = FPN(backbone.out_channels, backbone.strides, extra=2, extra_from="input")
    return nn.Sequential(backbone, neck), neck


@door
def small_pyramid(
    channels: Count, blocks: Count, norm: Norm, backbone: Backbone | None = None, finest: Finest = 8
) -> tuple[nn.Sequential, tuple[int, ...]]:
    """A small residual net, or ``backbone``, with a pyramid of ``channels`` at its strides; and those.

    The net's strides are (8, 16, 32), with ``finest=4`` (4, 8, 16, 32). Raises ValueError for another ``finest``, and
    for ``blocks``, a ``norm`` or a ``finest`` level beside a backbone, which has its own.

    >>> small_pyramid(8, 1, nn.BatchNorm2d, finest=4)[1]
    (4, 8, 16, 32)
    """
    if finest not in (4, 8):
        raise ValueError(f"small_pyramid: finest={finest!r}; allowed are 4 and 8")
    given = {"blocks": blocks != 1, "norm": norm is not nn.BatchNorm2d, "finest": finest != 8}
    if backbone is None:
        widths = (channels // 2, channels, channels * 2, channels * 4)
        backbone = SmallBackbone(widths, levels=range(finest == 8, 4), blocks=blocks, norm=norm)
    elif any(given.values()):
        name = next(name for name, own in given.items() if own)
        raise ValueError(f"small_pyramid: {name} is given beside a backbone, which has its own; leave one of them out")
    neck = FPN(backbone.out_channels, backbone.strides, channels=channels)
    return nn.Sequential(backbone, neck), neck.strides


def short_side_800() -> Preprocess:
    """Resize the short side to 800 pixels, the long side at most 1333, and pad batches to multiples of 32: as on COCO.

    >>> short_side_800()
    Preprocess(size=800, max_size=1333, multiple_of=32)
    """
    return Preprocess(800, max_size=1333, multiple_of=32)
