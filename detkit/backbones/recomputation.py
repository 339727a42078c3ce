"""Half the memory of a training step for a fifth more time: the backbone's insides are computed twice."""

from typing import TypeVar

from torch import nn

from detkit._door import door
from detkit.backbones.base import Backbone

Module = TypeVar("Module", bound=nn.Module)


@door
def recompute_backbone(module: Module, on: bool = True) -> Module:
    """Let every backbone in ``module`` keep only what is between its parts; the backward pass computes the rest again.

    Losses, gradients and running statistics are the same, weights load and save as before, and DistributedDataParallel
    and ``torch.compile`` work as they did. Parts are the stem and the stages of a ResNet, or the stages of another
    backbone; a network of torchvision or timm is one part. ``on=False`` takes it back. Returns the module.
    Raises ValueError for a module without a :class:`~detkit.backbones.Backbone`. Source: Chen et al. 2016, "Training
    Deep Nets with Sublinear Memory Cost".

    >>> from detkit.detectors import fpn_ssd
    >>> detector = recompute_backbone(fpn_ssd(3, size=(64, 96)))
    >>> detector.trunk[0].recomputes
    True
    """
    backbones = [part for part in module.modules() if isinstance(part, Backbone)]
    if not backbones:
        raise ValueError(
            f"recompute_backbone: module is a {type(module).__name__} without a Backbone; allowed is a detector, or "
            "what else contains one of detkit.backbones"
        )
    for backbone in backbones:
        backbone.recomputes = on
    return module
