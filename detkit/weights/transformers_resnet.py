"""The ResNets that transformers' DETRs stand on, its own and timm's: keys, strides and what is allowed of them."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from detkit.anchors import HungarianMatcher
from detkit.backbones import ResNetBackbone
from detkit.losses import FocalSetLoss
from detkit.weights.detr_layout import Step, count, resnet_of
from detkit.weights.torchvision_trunk import Rename, state_to_ours

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}
"""Of transformers' names, those that this library has a layer for."""
_BACKBONE = "model.backbone.model."
_LEAVES = {"Conv2d", "MaxPool2d", "Identity", "ReLU", "GELUActivation", "SiLU", "Tanh"}
_NORM = "FrozenBatchNorm2d"


def check_fields(found: Iterable[tuple[str, Any, tuple[Any, ...]]]) -> None:
    """Raise ValueError for the first (name, what came, what is allowed) that does not fit.

    >>> check_fields([("dropout", 0.1, (0.0,))])
    Traceback (most recent call last):
    ValueError: from_transformers: dropout=0.1; allowed is 0.0
    """
    for name, came, values in found:
        if came not in values:
            raise ValueError(f"from_transformers: {name}={came!r}; allowed is {' or '.join(map(repr, values))}")


def check_resnet(model: Any) -> None:
    """Raise ValueError, naming the field, unless the backbone of a DETR of transformers is a ResNet down to its end."""
    backbone = model.config.backbone_config
    found: list[tuple[str, Any, tuple[Any, ...]]] = [
        ("num_channels", model.config.num_channels, (3,)),
        ("backbone_config.model_type", backbone.model_type, ("resnet", "timm_backbone")),
        ("backbone_config.hidden_act", getattr(backbone, "hidden_act", "relu"), tuple(ACTIVATIONS)),
    ]
    if backbone.model_type == "resnet":
        last = f"stage{len(backbone.depths)}"
        found.append(("the last of backbone_config.out_features", backbone.out_features[-1], (last,)))
    leaves = {type(part).__name__ for part in model.model.backbone.modules() if not list(part.children())}
    leaves = {leaf for leaf in leaves if not leaf.endswith(_NORM)}
    found += [("a layer of the backbone", leaf, tuple(sorted(_LEAVES))) for leaf in sorted(leaves)]
    check_fields(found)


def resnet_levels(model: Any) -> tuple[str, ...]:
    """The stages whose maps the model reads, by torchvision's names."""
    config = model.config.backbone_config
    stages = [int(name.removeprefix("stage")) for name in config.out_features] if config.model_type == "resnet" else []
    return tuple(f"layer{i}" for i in stages or config.out_indices)


def resnet_steps(model: nn.Module, renames: list[Rename]) -> dict[str, Step]:
    """Stride and dilation of the backbone's convolutions, under this library's names."""
    steps: dict[str, Step] = {}
    for name, part in model.named_modules():
        if isinstance(part, nn.Conv2d) and name.startswith(_BACKBONE):
            (key,) = state_to_ours({f"{name}.weight": part.weight}, renames)
            steps[key.removeprefix("trunk.").removesuffix(".weight")] = (part.stride[0], part.dilation[0])
    return steps


def resnet_from(model: Any, *, levels: tuple[str, ...] | None = None) -> ResNetBackbone:
    """The backbone of a DETR of transformers, without its weights: its deepest map, or ``levels``.

    Raises ValueError for what is no ResNet of torchvision's blocks.
    """
    state = {key: value for key, value in model.state_dict().items() if key.startswith(_BACKBONE)}
    renames = resnet_renames(list(state), timm=is_timm(state), ours=False)
    activation = ACTIVATIONS[getattr(model.config.backbone_config, "hidden_act", "relu")]
    try:
        ours = {key.removeprefix("trunk."): value for key, value in state_to_ours(state, renames).items()}
        return resnet_of(ours, resnet_steps(model, renames), activation, levels=levels)
    except (KeyError, ValueError) as error:
        raise ValueError(f"from_transformers: {type(model).__name__} is built unlike DETR's: {error}") from error


def focal_losses(config: Any) -> tuple[HungarianMatcher, FocalSetLoss]:
    """Matcher and criterion of the DETRs of transformers whose classes are independent; class losses count once."""
    matcher = HungarianMatcher(
        class_cost="focal",
        class_weight=float(config.class_cost),
        l1_weight=float(config.bbox_cost),
        giou_weight=float(config.giou_cost),
    )
    criterion = FocalSetLoss(
        alpha=float(config.focal_alpha),
        class_weight=1.0,
        l1_weight=float(config.bbox_loss_coefficient),
        giou_weight=float(config.giou_loss_coefficient),
    )
    return matcher, criterion


def is_timm(keys: Iterable[str]) -> bool:
    """Whether a model with these keys has a backbone of timm.

    >>> is_timm([])
    False
    """
    return f"{_BACKBONE}conv1.weight" in keys


def resnet_renames(keys: list[str], *, timm: bool, ours: bool) -> list[Rename]:
    """The rules for the backbone; ``keys`` are this library's (``ours``) or transformers'.

    >>> resnet_renames([], timm=True, ours=True)
    [Rename(theirs='model.backbone.model.', ours='trunk.', change=None)]
    """
    if timm:
        return [Rename(_BACKBONE, "trunk.")]
    stem = f"{_BACKBONE}embedder.embedder."
    rules = [Rename(f"{stem}convolution.", "trunk.conv1."), Rename(f"{stem}normalization.", "trunk.bn1.")]
    for i in range(4):
        stage, layer = f"{_BACKBONE}encoder.stages.{i}.layers.", f"trunk.layer{i + 1}."
        for block in range(count(keys, layer if ours else stage)):
            rules += _block_renames(f"{stage}{block}.", f"{layer}{block}.")
    return rules


def _block_renames(theirs: str, ours: str) -> list[Rename]:
    parts = [(f"layer.{i}.", f"conv{i + 1}.", f"bn{i + 1}.") for i in range(3)]
    parts.append(("shortcut.", "downsample.0.", "downsample.1."))
    rules = [(f"{part}convolution.", convolution) for part, convolution, _ in parts]
    rules += [(f"{part}normalization.", norm) for part, _, norm in parts]
    return [Rename(theirs + old, ours + new) for old, new in rules]
