"""The layers of any network by their depth, from the names of its parameters: what thaws or learns first, and last."""

import re
from typing import Any

from torch import nn

from detkit._door import door

_NUMBERED = re.compile(r"(?:[^.]+\.)*?[^.]*\d+(?:\.\d+)*(?=\.)")


@door
def layers_of(module: nn.Module) -> list[list[str]]:
    """The names of all parameters by the layers they belong to, from the input on, each name in one layer.

    A layer is the part of the path to a parameter that ends at its first numbers: ``features.3.1``, ``layer2.0``,
    ``conv1``; or the module that holds it, where there is no number. Layers stand in the order in which they were
    built, and one with vectors only, a norm say, belongs to the one before it. A timm model groups its layers itself,
    by its ``group_matcher``.

    >>> from torchvision.models import resnet18
    >>> [layer[0] for layer in layers_of(resnet18())[:3]]
    ['conv1.weight', 'layer1.0.conv1.weight', 'layer1.1.conv1.weight']
    """
    depths = _depths_by_timm(module) if hasattr(module, "group_matcher") else _depths(module)
    last = max(depths.values(), default=0)  # of a part that timm names no group for, as heads
    layers: dict[int, list[str]] = {depth: [] for depth in sorted(set(depths.values()))}
    for name, _ in module.named_parameters():
        layers.setdefault(depths.get(name, last), []).append(name)
    return list(layers.values())


def _depths_by_timm(module: Any) -> dict[str, int]:
    from timm.models import group_parameters

    depths: Any = group_parameters(module, module.group_matcher(coarse=False), reverse=True)
    return depths


def _depths(module: nn.Module) -> dict[str, int]:
    """The depth of every parameter."""
    parameters = dict(module.named_parameters())
    paths = {name: found[0] if (found := _NUMBERED.match(name)) else name.rpartition(".")[0] for name in parameters}
    solid = dict.fromkeys(paths.values(), False)
    for name, path in paths.items():
        solid[path] |= parameters[name].ndim > 1
    depths, depth = {}, -1
    for path, is_solid in solid.items():
        depth += is_solid or depth < 0
        depths[path] = depth
    return {name: depths[path] for name, path in paths.items()}
