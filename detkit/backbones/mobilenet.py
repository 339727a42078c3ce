"""torchvision's MobileNets as SSDlite uses them: the user passes in the layers, with weights of their choice."""

from torch import nn

from detkit._door import door
from detkit.backbones.sequential import SequentialBackbone


@door
def mobilenet_backbone(features: nn.Sequential) -> SequentialBackbone:
    """A MobileNet's last expansion at stride 16, and its end at stride 32.

    ``features`` are the layers ``torchvision.models.mobilenet_v3_large(...).features``, or those of MobileNetV2 or V3
    small; they are shared, not copied. The first level is what the last block with a stride expands its input to.
    Images (B, 3, H, W) need the range and mean that the weights were trained on; level sizes are rounded up.
    Source: Howard et al. 2019 (MobileNetV3), section 6.3. Raises ValueError for layers without such a block.

    >>> from torchvision.models import mobilenet_v3_large
    >>> backbone = mobilenet_backbone(mobilenet_v3_large(weights=None).features)
    >>> backbone.out_channels, backbone.strides
    ((672, 960), (16, 32))
    """
    strided = [i for i, block in enumerate(features) if _halves(block)]
    layers = next(features[strided[-1]].children(), None) if strided else None
    if not isinstance(layers, nn.Sequential) or len(strided) < 2:
        found = ", ".join(type(layer).__name__ for layer in features)
        raise ValueError(
            f"mobilenet_backbone: features are {found}; allowed are those of a torchvision MobileNet, whose last block "
            "with a stride expands its input first"
        )
    middle = strided[-1]
    return SequentialBackbone(
        [nn.Sequential(*features[:middle], layers[0]), nn.Sequential(layers[1:], *features[middle + 1 :])]
    )


def _halves(block: nn.Module) -> bool:
    return any(isinstance(layer, nn.Conv2d) and layer.stride != (1, 1) for layer in block.modules())
