"""torchvision's ResNets as backbones: the user passes in the model, with weights of their choice."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Annotated, Any

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from detkit._door import door
from detkit._ranges import Range
from detkit.backbones.base import Backbone
from detkit.layers import freeze_batch_norm, init_convolutions

LAYERS = ("layer1", "layer2", "layer3", "layer4")
"""The stages of a ResNet, by torchvision's names."""


class ResNetBackbone(Backbone):
    """Chosen stages of a torchvision ResNet (also ResNeXt, Wide ResNet, and dilated ones such as DETR's DC5).

    The layers of ``model`` are shared, not copied, and keep their names; layers after the last of ``levels`` are
    dropped. ``levels`` are names of stages, ascending. ``trainable_layers`` counts from the deepest: 5 trains all, 3
    freezes the stem and layer1 as torchvision's detectors do with pretrained weights, 0 freezes all. Frozen layers
    still update batch statistics in training mode, unless ``frozen_norm`` replaces every batch norm. Images (B, 3, H,
    W) need the range and mean that the weights were trained on; level sizes are rounded up.
    Raises ValueError for other levels, or trainable_layers outside 0..5.

    >>> from torchvision.models import resnet18
    >>> backbone = ResNetBackbone(resnet18(weights=None), frozen_norm=True, trainable_layers=3)
    >>> backbone.out_channels, backbone.strides
    ((128, 256, 512), (8, 16, 32))
    """

    @door
    def __init__(
        self,
        model: ResNet,
        *,
        levels: Sequence[str] = ("layer2", "layer3", "layer4"),
        frozen_norm: bool = False,
        trainable_layers: Annotated[int, Range(0, 5)] = 5,
    ) -> None:
        if not levels or list(levels) != [name for name in LAYERS if name in levels]:
            raise ValueError(f"ResNetBackbone: levels={levels!r} must be some of {LAYERS}, in this order")
        built: tuple[str, ...] = LAYERS[: LAYERS.index(levels[-1]) + 1]
        channels = {name: _out_channels(getattr(model, name)) for name in built}
        strides: dict[str, int] = dict(zip(built, _strides(model, built), strict=True))
        super().__init__(out_channels=[channels[name] for name in levels], strides=[strides[name] for name in levels])
        self.levels = tuple(levels)
        self.conv1, self.bn1, self.relu, self.maxpool = model.conv1, model.bn1, model.relu, model.maxpool
        for name in built:
            self.add_module(name, getattr(model, name))
        if frozen_norm:
            freeze_batch_norm(self)
        for part in (("conv1", "bn1"), *((name,) for name in built))[: 5 - trainable_layers]:
            for name in part:
                self.get_submodule(name).requires_grad_(False)

    def steps(self) -> list[list[nn.Module]]:
        """The layers of each level; the stem belongs to the first."""
        built = LAYERS[: LAYERS.index(self.levels[-1]) + 1]
        ends = [0, *(built.index(name) + 1 for name in self.levels)]
        layers = [self.get_submodule(name) for name in built]
        steps = [layers[begin:end] for begin, end in pairwise(ends)]
        return [[self.conv1, self.bn1, self.relu, self.maxpool, *steps[0]], *steps[1:]]

    @door
    def forward(self, images: Float[Tensor, "B D H W"]) -> list[Tensor]:
        """The outputs of the chosen stages, finest first."""
        self.check_images(images)
        features, outputs = self.run(self._stem, images), []
        for name in LAYERS[: LAYERS.index(self.levels[-1]) + 1]:
            features = self._stage(getattr(self, name), features)
            if name in self.levels:
                outputs.append(features)
        return outputs

    def _stage(self, layer: nn.Sequential, features: Tensor) -> Tensor:
        """A first block, which is twice as wide as the others, is recomputed by itself."""
        if not self.recomputes or len(layer) == 1:
            return self.run(layer, features)
        return self.run(layer[1:], self.run(layer[0], features))

    def _stem(self, images: Tensor) -> Tensor:
        return self.maxpool(self.relu(self.bn1(self.conv1(images))))


@door
def resnet_d(model: ResNet) -> ResNet:
    """``model``, changed in place into its variant D: a deep stem, and shortcuts that average before they project.

    Three 3 x 3 convolutions, half as wide but for the last, replace the first one; a block that strides averages 2 x 2
    cells on its shortcut, rounded up, and then projects them without stride. The first block of all always projects,
    as in RT-DETR's backbone. Batch norms are new, and weights are those of torchvision's ResNets at the start.
    Sources: He et al. 2019, "Bag of Tricks for Image Classification", section 4.2; Zhao et al. 2024, "RT-DETR".
    Raises ValueError for a model that is variant D already.

    >>> from torchvision.models import resnet18
    >>> backbone = ResNetBackbone(resnet_d(resnet18(weights=None)))
    >>> backbone.out_channels, backbone.strides
    ((128, 256, 512), (8, 16, 32))
    """
    if isinstance(model.conv1, nn.Sequential):
        raise ValueError("resnet_d: model has a deep stem already; allowed is a ResNet of torchvision")
    shell: Any = model
    width, stride = model.conv1.out_channels, model.conv1.stride[0]
    shell.conv1 = deep_stem(model.conv1.in_channels, width, stride=stride)
    for name in LAYERS:
        for block in getattr(model, name):
            if block.stride > 1:
                block.downsample = pooled_shortcut(*_ends(block), stride=block.stride)
    first: Any = model.layer1[0]
    if first.downsample is None:
        first.downsample = _projection(*_ends(first))
    return model


def deep_stem(in_channels: int, width: int, *, stride: int = 2) -> nn.Sequential:
    """Three 3 x 3 convolutions to ``width`` channels, without the norm of the last: the ``conv1`` of variant D.

    >>> deep_stem(3, 64)[-1]
    Conv2d(32, 64, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
    """
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(pairwise((in_channels, width // 2, width // 2, width))):
        layers += [nn.Conv2d(before, after, 3, stride=1 if i else stride, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(after), nn.ReLU(inplace=True)] if i < 2 else []
    return _initialized(nn.Sequential(*layers))


def pooled_shortcut(before: int, after: int, *, stride: int = 2) -> nn.Sequential:
    """The ``downsample`` of variant D: the mean of stride x stride cells, then a 1 x 1 convolution and a norm.

    >>> pooled_shortcut(8, 16)[0]
    AvgPool2d(kernel_size=2, stride=2, padding=0)
    """
    return nn.Sequential(nn.AvgPool2d(stride, stride, ceil_mode=True), *_projection(before, after))


def _projection(before: int, after: int) -> nn.Sequential:
    return _initialized(nn.Sequential(nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after)))


def _initialized(layers: nn.Sequential) -> nn.Sequential:
    init_convolutions(layers, partial(nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu"))
    return layers


def _ends(block: BasicBlock | Bottleneck) -> tuple[int, int]:
    """The channels that a block reads and gives out."""
    return block.conv1.in_channels, (block.conv3 if isinstance(block, Bottleneck) else block.conv2).out_channels


def _out_channels(layer: nn.Sequential) -> int:
    block = layer[-1]
    if not isinstance(block, BasicBlock | Bottleneck):
        raise ValueError(f"ResNetBackbone: the model's stages hold {type(block).__name__}; allowed are torchvision's")
    return _ends(block)[1]


def _strides(model: ResNet, layers: Sequence[str]) -> list[int]:
    """The stride at the end of each layer; a dilated layer keeps the stride of the one before."""
    pool = model.maxpool.stride
    stem: Any = model.conv1  # variant D's is a chain, whose first convolution strides
    stem = stem[0] if isinstance(stem, nn.Sequential) else stem
    stride = stem.stride[0] * (pool if isinstance(pool, int) else pool[0])
    strides = []
    for name in layers:
        for block in getattr(model, name):
            stride *= block.stride
        strides.append(stride)
    return strides
