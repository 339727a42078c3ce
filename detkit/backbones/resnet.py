"""torchvision's ResNets as backbones: the user passes in the model, with weights of their choice."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from detkit._door import door
from detkit._ranges import Range
from detkit.backbones.base import Backbone
from detkit.layers import freeze_batch_norm

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


def _out_channels(layer: nn.Sequential) -> int:
    block = layer[-1]
    if not isinstance(block, BasicBlock | Bottleneck):
        raise ValueError(f"ResNetBackbone: the model's stages hold {type(block).__name__}; allowed are torchvision's")
    return (block.conv3 if isinstance(block, Bottleneck) else block.conv2).out_channels


def _strides(model: ResNet, layers: Sequence[str]) -> list[int]:
    """The stride at the end of each layer; a dilated layer keeps the stride of the one before."""
    pool = model.maxpool.stride
    stride = model.conv1.stride[0] * (pool if isinstance(pool, int) else pool[0])
    strides = []
    for name in layers:
        for block in getattr(model, name):
            stride *= block.stride
        strides.append(stride)
    return strides
