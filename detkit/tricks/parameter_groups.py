"""Groups of parameters for an optimizer: other rates for a backbone and its layers, no decay of biases and norms."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from detkit._door import door
from detkit._ranges import Fraction, NotNegative, Positive
from detkit._wrappers import unwrapped
from detkit.tricks.depth import layers_of


@door
def parameter_groups(
    model: nn.Module,
    lr: Positive,
    *,
    weight_decay: NotNegative = 0.0,
    backbone: nn.Module | None = None,
    backbone_factor: NotNegative = 1.0,
    layer_decay: Fraction = 1.0,
    undecayed: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """All trainable parameters of ``model``, each once, in groups of one rate and decay, for a torch optimizer.

    A parameter of ``backbone``, a part of the model, learns at ``lr * backbone_factor * layer_decay ** k``, where k is
    1 in the backbone's last layer and one more in each layer before; all others learn at ``lr``. Without ``backbone``
    the model itself is decayed by layers, and k is 0 in its last one, a classifier's head. Layers of own, torchvision
    and timm networks are found by :func:`~detkit.tricks.layers_of`. ``weight_decay`` is for matrices and kernels:
    vectors and scalars (biases, norms) are not decayed, nor are parameters whose own name is one of ``undecayed``
    (Swin's ``relative_position_bias_table``, ViT's ``pos_embedding``), or which a timm model's ``no_weight_decay()``
    names. Frozen parameters are left out.

    Each group is a dict of ``params``, ``lr``, ``weight_decay`` and ``param_names``, in the order of the model. Raises
    ValueError for a backbone that is no part of the model, an unknown name in ``undecayed``, a ``backbone_factor``
    without backbone, and a model that is frozen as a whole. Sources: Carion et al. 2020 (DETR: a tenth for the
    backbone); Bao et al. 2022 (BEiT), appendix: layer-wise decay.

    >>> model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    >>> groups = parameter_groups(model, 0.1, weight_decay=0.05, backbone=model[0], backbone_factor=0.5)
    >>> for group in groups:
    ...     print(group["lr"], group["weight_decay"], group["param_names"])
    0.05 0.05 ['0.weight']
    0.05 0.0 ['0.bias']
    0.1 0.0 ['1.weight', '1.bias', '2.bias']
    0.1 0.05 ['2.weight']
    """
    model, backbone = unwrapped(model), None if backbone is None else unwrapped(backbone)
    named = {name: value for name, value in model.named_parameters() if value.requires_grad}
    if not named:
        raise ValueError("parameter_groups: model has no parameter that requires a gradient; unfreeze some")
    factors = _factors(model, backbone, backbone_factor, layer_decay)
    still = _undecayed(model, undecayed)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, value in named.items():
        decay = 0.0 if value.ndim <= 1 or id(value) in still else weight_decay
        rate = lr * factors.get(id(value), 1.0)
        group = {"params": [], "lr": rate, "weight_decay": decay, "param_names": []}
        group = groups.setdefault((rate, decay), group)
        group["params"].append(value)
        group["param_names"].append(name)
    return list(groups.values())


def _factors(model: nn.Module, backbone: nn.Module | None, factor: float, decay: float) -> dict[int, float]:
    """What multiplies the rate of a parameter, by its id; 1 for those that are not here."""
    if backbone is None and factor != 1:
        raise ValueError(f"parameter_groups: backbone_factor={factor} needs the backbone: name a part of the model")
    body = model if backbone is None else backbone
    parameters, layers = dict(body.named_parameters()), layers_of(body)
    held = {id(part) for part in (*model.parameters(), *model.modules())}
    if not held.issuperset(map(id, parameters.values() if parameters else (body,))):
        raise ValueError(
            f"parameter_groups: backbone is a {type(body).__name__} that is no part of the model; allowed is a part of "
            "it, such as detector.trunk[0]"
        )
    steps = len(layers) - (body is model)
    return {
        id(parameters[name]): factor * decay ** (steps - depth) for depth, layer in enumerate(layers) for name in layer
    }


def _undecayed(model: nn.Module, names: Iterable[str]) -> set[int]:
    """The ids of the parameters that are named, by their own names, or by a timm model inside."""
    own = {name: {id(value) for key, value in model.named_parameters() if key.split(".")[-1] == name} for name in names}
    if unknown := [name for name, found in own.items() if not found]:
        raise ValueError(
            f"parameter_groups: undecayed names {unknown}, which no parameter is called; allowed are the last parts of "
            "their names"
        )
    timm = [part for part in model.modules() if hasattr(part, "no_weight_decay")]
    return set().union(*own.values(), *map(_undecayed_by_timm, timm))


def _undecayed_by_timm(model: Any) -> set[int]:
    names = model.no_weight_decay()
    return {id(value) for name, value in model.named_parameters() if name in names}
