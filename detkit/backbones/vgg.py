"""VGG-16: as modified by SSD, and its plain stages; both from the ``features`` of a torchvision VGG."""

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor, nn

from detkit._door import door
from detkit._ranges import Count, Positive, Whole
from detkit.backbones.base import Backbone
from detkit.backbones.sequential import SequentialBackbone
from detkit.layers import L2Norm, init_convolutions

VGG16_DEPTHS = (2, 2, 3, 3, 3)
"""Convolutions of each of VGG-16's five stages."""


@door
def vgg_features(depths: Sequence[Count] = VGG16_DEPTHS) -> nn.Sequential:
    """Randomly initialized VGG layers, laid out as ``torchvision.models.vgg16().features``; each stage ends in a pool.

    Use it if no pretrained VGG is at hand: torchvision's constructor also initializes 120 million classifier weights.
    Source: arXiv 1409.1556, table 1 (column D for the default); He initialization.

    >>> [type(layer).__name__ for layer in vgg_features((1, 1))]
    ['Conv2d', 'ReLU', 'MaxPool2d', 'Conv2d', 'ReLU', 'MaxPool2d']
    """
    layers: list[nn.Module] = []
    channels = 3
    for width, depth in zip((64, 128, 256, 512, 512), depths, strict=False):
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(2))
    features = nn.Sequential(*layers)
    init_convolutions(features, nn.init.kaiming_normal_)
    return features


@door
def vgg_backbone(features: nn.Sequential, *, levels: Sequence[Whole] = (2, 3, 4)) -> SequentialBackbone:
    """The plain VGG: the last activation of each chosen stage, before its pooling.

    ``features`` come from a torchvision VGG, with batch norm or without, or from :func:`vgg_features`; its layers are
    shared, not copied. ``levels`` are ascending stage numbers in 0..4, of strides 1, 2, 4, 8, 16; layers after the last
    are dropped. Raises ValueError for other levels.

    >>> backbone = vgg_backbone(vgg_features(), levels=(3, 4))
    >>> backbone.out_channels, backbone.strides
    ((512, 512), (8, 16))
    """
    parts = _split_before_pools(features, "vgg_backbone")
    levels = tuple(levels)
    if not levels or list(levels) != sorted(set(levels)) or levels[0] < 0 or levels[-1] > 4:
        raise ValueError(f"vgg_backbone: levels={levels} must be ascending stage numbers in 0..4")
    starts = (0, *(level + 1 for level in levels))
    stages = [
        nn.Sequential(*(layer for part in parts[start : level + 1] for layer in part))
        for start, level in zip(starts, levels, strict=False)
    ]
    channels = [_last_convolution(parts[level]).out_channels for level in levels]
    return SequentialBackbone(stages, out_channels=channels, strides=[2**level for level in levels])


class SSDVGGBackbone(Backbone):
    """VGG-16 as SSD uses it: conv4_3 (512 channels, stride 8, L2-normalized) and fc7 (1024 channels, stride 16).

    ``features`` come from ``torchvision.models.vgg16`` or :func:`vgg_features`; the layers are shared, not copied. The
    third pooling rounds up (300 pixels give 38 cells), the fifth is 3 x 3 without stride, fc6 is a 3 x 3 convolution of
    dilation 6, fc7 a 1 x 1, both newly initialized (Xavier). Images (B, 3, H, W) need the range and mean that VGG was
    trained on. As in torchvision only the third pooling rounds up, while Caffe rounds all of them up, which makes no
    difference at 300 and 512 pixels.
    Source: SSD (arXiv 1512.02325, section 3, "Base network", and section 3.1 for the norm).
    Raises ValueError unless ``features`` are the five stages of a VGG of 512 channels.

    >>> backbone = SSDVGGBackbone(vgg_features())
    >>> backbone.out_channels, backbone.strides
    ((512, 1024), (8, 16))
    """

    @door
    def __init__(self, features: nn.Sequential, *, scale: Positive = 20.0) -> None:
        super().__init__(out_channels=(512, 1024), strides=(8, 16))
        *early, deep = _split_before_pools(features, "SSDVGGBackbone")
        if (last := _last_convolution(deep)).out_channels != 512 or len(early) != 4:
            raise ValueError(f"SSDVGGBackbone: features end in {last}; allowed is a VGG, whose five stages end in 512")
        early[3][0] = nn.MaxPool2d(2, ceil_mode=True)
        self.features = nn.Sequential(*(layer for part in early for layer in part))
        self.norm = L2Norm(512, scale=scale)
        fully = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1),
            nn.Conv2d(512, 1024, 3, padding=6, dilation=6),
            nn.ReLU(inplace=True),
            nn.Conv2d(1024, 1024, 1),
            nn.ReLU(inplace=True),
        )
        init_convolutions(fully, nn.init.xavier_uniform_)
        self.deep = nn.Sequential(*deep, fully)

    @door
    def forward(self, images: Float[Tensor, "B D H W"]) -> list[Tensor]:
        """The normalized conv4_3, and fc7."""
        self.check_images(images)
        features = self.run(self.features, images)
        # The layer behind works in place on its own output only, so the features may be shared.
        return [self.norm(features), self.run(self.deep, features)]


@door
def ssd_trunk_from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the ``backbone`` state_dict of torchvision's ``ssd300_vgg16`` to that of this library's SSD trunk.

    The trunk is ``nn.Sequential(SSDVGGBackbone(...), SSDExtra(...))``. Values are shared, not copied.
    Raises ValueError for a key that torchvision's backbone does not have.

    >>> import torch
    >>> list(ssd_trunk_from_torchvision({"scale_weight": torch.ones(512), "extra.2.0.bias": torch.ones(128)}))
    ['0.norm.weight', '1.blocks.1.0.bias']
    """
    return {_trunk_key(key): value for key, value in state.items()}


def _trunk_key(key: str) -> str:
    if key == "scale_weight":
        return "0.norm.weight"
    part, _, rest = key.partition(".")
    if part == "features":
        return f"0.{key}"
    block, _, rest = rest.partition(".")
    if part != "extra" or not block.isdecimal():
        raise ValueError(
            f"ssd_trunk_from_torchvision: key {key!r}; allowed are scale_weight, features.*, extra.<number>.*"
        )
    return f"0.deep.{rest}" if block == "0" else f"1.blocks.{int(block) - 1}.{rest}"


def _split_before_pools(features: nn.Sequential, function: str) -> list[list[nn.Module]]:
    """VGG's five stages, each but the first beginning with the pooling before it; the last pooling is dropped."""
    parts: list[list[nn.Module]] = [[]]
    for layer in features:
        if isinstance(layer, nn.MaxPool2d):
            parts.append([])
        parts[-1].append(layer)
    if len(parts) != 6 or len(parts[-1]) != 1:
        raise ValueError(
            f"{function}: features have {len(parts) - 1} max poolings; allowed are the features of a VGG, "
            "with five stages that each end in a max pooling"
        )
    return parts[:-1]


def _last_convolution(layers: Sequence[nn.Module]) -> nn.Conv2d:
    return [layer for layer in layers if isinstance(layer, nn.Conv2d)][-1]
