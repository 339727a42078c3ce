"""Shared by the conversions of all torchvision detectors: key tables, trunk, anchors, transform."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool, LastLevelP6P7

from detkit.anchors import GridAnchors
from detkit.backbones import Backbone, ResNetBackbone, SequentialBackbone
from detkit.boxes import DeltaCoder
from detkit.detectors import Detector, Preprocess
from detkit.layers.blocks import lean_norms
from detkit.necks import FPN


class Change(NamedTuple):
    """A conversion of the values of some keys: a function for each direction."""

    to_ours: Callable[[Tensor], Tensor]
    to_theirs: Callable[[Tensor], Tensor]


class Rename(NamedTuple):
    """Keys that begin with ``theirs`` in torchvision's model begin with ``ours`` here; the rest of the key is the same.

    End both with a dot, unless they are whole keys. ``ours=None``: they have no counterpart here.
    """

    theirs: str
    ours: str | None
    change: Change | None = None


class Trunk(NamedTuple):
    """A converted backbone with its pyramid, and the declared channels and strides of its levels, finest first."""

    module: nn.Sequential
    out_channels: tuple[int, ...]
    strides: tuple[int, ...]


def state_to_ours(state: Mapping[str, Tensor], renames: Sequence[Rename]) -> dict[str, Tensor]:
    """torchvision's state_dict under this library's keys; if several rules fit a key, the first applies.

    Raises ValueError for a key that no rule fits.

    >>> state_to_ours({"head.weight": torch.ones(2)}, [Rename("head.", "dense.class_head.")])
    {'dense.class_head.weight': tensor([1., 1.])}
    """
    table = [(rule.theirs, rule.ours, rule.change and rule.change.to_ours) for rule in renames]
    return _renamed(state, table)


def state_to_theirs(state: Mapping[str, Tensor], renames: Sequence[Rename]) -> dict[str, Tensor]:
    """The inverse of :func:`state_to_ours`.

    >>> state_to_theirs({"dense.class_head.weight": torch.ones(2)}, [Rename("head.", "dense.class_head.")])
    {'head.weight': tensor([1., 1.])}
    """
    table = [(rule.ours, rule.theirs, rule.change and rule.change.to_theirs) for rule in renames if rule.ours]
    return _renamed(state, table)


def background_last(num_classes: int) -> Change:
    """Rows (anything * (C + 1), ...) of a softmax layer, class by class: background is first in torchvision, last here.

    >>> background_last(2).to_ours(torch.tensor([0.0, 1.0, 2.0]))
    tensor([1., 2., 0.])
    """

    def rolled(values: Tensor, places: int) -> Tensor:
        return values.unflatten(0, (-1, num_classes + 1)).roll(places, 1).flatten(0, 1)

    return Change(partial(rolled, places=-1), partial(rolled, places=1))


def without_background(rows: int = 1) -> Change:
    """Values whose first ``rows`` rows belong to a background that is never read: dropped here, zeros in torchvision.

    >>> without_background(2).to_ours(torch.tensor([7.0, 7.0, 1.0, 2.0]))
    tensor([1., 2.])
    """
    return Change(lambda values: values[rows:], lambda values: torch.cat((torch.zeros_like(values[:rows]), values)))


def trunk_from(backbone: nn.Module) -> Trunk:
    """A copy of torchvision's ``BackboneWithFPN`` as ``nn.Sequential(backbone, FPN)``.

    A ResNet becomes a :class:`~detkit.backbones.ResNetBackbone`, any other body (such as MobileNet) a
    :class:`~detkit.backbones.SequentialBackbone`. Raises ValueError for another backbone, or for extra pyramid levels
    other than the two kinds that torchvision has.

    >>> from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    >>> trunk_from(resnet_fpn_backbone(backbone_name="resnet18", weights=None)).strides
    (4, 8, 16, 32, 64)
    """
    if not isinstance(backbone, BackboneWithFPN):
        raise ValueError(
            f"from_torchvision: the backbone is a {type(backbone).__name__}; allowed is torchvision's BackboneWithFPN, "
            "around a ResNet, a MobileNet or another chain of layers"
        )
    body = copy.deepcopy(backbone.body)
    lean_norms(body)
    ours = _resnet(body) if hasattr(body, "layer1") else _chain(body)
    neck = _pyramid(backbone.fpn, ours)
    return Trunk(nn.Sequential(ours, neck), neck.out_channels, neck.strides)


def trunk_renames(trunk: nn.Module, *, prefix: str = "backbone.") -> list[Rename]:
    """The rules for the trunk of a Detector: a ResNet or a chain of named layers, followed by a feature pyramid.

    Raises ValueError for another trunk.

    >>> trunk_renames(nn.Sequential(nn.Conv2d(3, 8, 1)))
    Traceback (most recent call last):
    ValueError: to_torchvision: the trunk is Sequential(Conv2d); allowed is ...
    """
    body, neck = trunk if isinstance(trunk, nn.Sequential) and len(trunk) == 2 else (None, None)
    if not isinstance(body, ResNetBackbone | SequentialBackbone) or not isinstance(neck, FPN):
        parts = ", ".join(type(part).__name__ for part in trunk.children())
        raise ValueError(
            f"to_torchvision: the trunk is {type(trunk).__name__}({parts}); allowed is nn.Sequential(ResNetBackbone "
            "or SequentialBackbone, FPN), as from_torchvision makes it"
        )
    fpn = [("inner_blocks.", "laterals."), ("layer_blocks.", "outputs.")]
    fpn += [(f"extra_blocks.p{6 + i}.", f"extra.{i}.") for i in range(len(neck.extra))]
    return [*_body_renames(body, prefix), *(Rename(f"{prefix}fpn.{old}", f"trunk.1.{new}") for old, new in fpn)]


def anchors_from(generator: nn.Module) -> GridAnchors:
    """torchvision's grid anchors. Raises ValueError for another generator.

    >>> anchors_from(AnchorGenerator(((32,), (64,)), ((0.5, 1.0, 2.0),) * 2)).per_cell
    (3, 3)
    """
    if not isinstance(generator, AnchorGenerator):
        raise ValueError(
            f"from_torchvision: the anchor generator is a {type(generator).__name__}; allowed is AnchorGenerator"
        )
    ratios: list[Any] = list(generator.aspect_ratios)
    return GridAnchors(generator.sizes, aspect_ratios=ratios, ratio_is="h/w", centered=False, whole_pixels=True)


def coder_from(coder: BoxCoder) -> DeltaCoder:
    """torchvision's coding of boxes.

    >>> coder_from(BoxCoder((10.0, 10.0, 5.0, 5.0)))
    DeltaCoder(scale=(10.0, 10.0, 5.0, 5.0), clamp=4.135)
    """
    return DeltaCoder(coder.weights, clamp=coder.bbox_xform_clip)


def preprocess_from(transform: GeneralizedRCNNTransform) -> Preprocess:
    """torchvision's resizing, normalization and padding at inference: of several ``min_size`` the last one applies.

    >>> preprocess_from(GeneralizedRCNNTransform(800, 1333, [0.5] * 3, [0.2] * 3))
    Preprocess(size=800, max_size=1333, multiple_of=32)
    """
    sides: Any = transform.min_size
    fixed = transform.fixed_size  # torchvision's is (width, height)
    return Preprocess(
        sides[-1] if fixed is None else (fixed[1], fixed[0]),
        max_size=transform.max_size if fixed is None else None,
        mean=transform.image_mean,
        std=transform.image_std,
        multiple_of=transform.size_divisible,
    )


def carry_over(model: Any, detector: Detector, renames: Sequence[Rename]) -> Detector:
    """Give ``detector`` the weights, precision, device, mode, frozen parameters and normalization of ``model``.

    Raises ValueError if the keys or shapes do not match.
    """
    adopt(model, detector, renames, library="torchvision")
    for name, values in (("mean", model.transform.image_mean), ("std", model.transform.image_std)):
        colors = getattr(detector.preprocess, name)
        colors.copy_(torch.tensor(values, dtype=colors.dtype).reshape(-1, 1, 1))  # in double, not rounded to single
    return detector


def adopt(model: nn.Module, detector: Detector, renames: Sequence[Rename], *, library: str) -> Detector:
    """Give ``detector`` the weights, precision, device, mode and frozen parameters of ``model``.

    Raises ValueError, naming the ``library`` of the model, if the keys or shapes do not match.
    """
    example = next(model.parameters())
    detector.to(example.device, example.dtype)
    try:
        detector.load_state_dict(state_to_ours(model.state_dict(), renames))
    except RuntimeError as error:
        raise ValueError(
            f"from_{library}: this {type(model).__name__} is built unlike {library}'s own: {error}"
        ) from error
    frozen = {key: value for key, value in model.named_parameters() if not value.requires_grad}
    for key in state_to_ours(frozen, renames):
        detector.get_parameter(key).requires_grad_(False)
    return detector.train(model.training)


def _renamed(
    state: Mapping[str, Tensor], table: Sequence[tuple[str, str | None, Callable[[Tensor], Tensor] | None]]
) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for key, values in state.items():
        rule = next((rule for rule in table if key.startswith(rule[0])), None)
        if rule is None:
            known = ", ".join([old for old, _, _ in table[:8]] + ["..."] * (len(table) > 8))
            raise ValueError(f"there is no rule for the key {key!r}; known are {known}")
        old, new, change = rule
        if new is None:
            continue
        renamed[new + key.removeprefix(old)] = values if change is None else change(values)
    return renamed


def _resnet(body: IntermediateLayerGetter) -> ResNetBackbone:
    with torch.device("meta"):
        model = ResNet(BasicBlock, [1, 1, 1, 1])  # a shell: every layer that is read is replaced by the body's
    for name, layer in body.items():
        setattr(model, name, layer)
    return ResNetBackbone(model, levels=tuple(body.return_layers))


def _chain(body: IntermediateLayerGetter) -> SequentialBackbone:
    """Every stage keeps the names of its layers, so that keys can be mapped back."""
    stages: list[OrderedDict[str, nn.Module]] = [OrderedDict()]
    for name, layer in body.items():
        stages[-1][name] = layer
        if name in body.return_layers:
            stages.append(OrderedDict())
    return SequentialBackbone([nn.Sequential(stage) for stage in stages if stage])


def _pyramid(fpn: FeaturePyramidNetwork, backbone: Backbone) -> FPN:
    top = fpn.extra_blocks
    if not isinstance(top, LastLevelMaxPool | LastLevelP6P7 | None):
        raise ValueError(
            f"from_torchvision: the pyramid ends in {type(top).__name__}; allowed are LastLevelMaxPool and "
            "LastLevelP6P7"
        )
    block: Any = fpn.inner_blocks[0]
    source = "pool" if not isinstance(top, LastLevelP6P7) else "output" if top.use_P5 else "input"
    return FPN(
        backbone.out_channels,
        backbone.strides,
        channels=block[0].out_channels,
        extra=0 if top is None else 2 if isinstance(top, LastLevelP6P7) else 1,
        extra_from=source,
        norm=None if len(block) == 1 else lambda _: copy.deepcopy(block[1]),
    )


def _body_renames(body: ResNetBackbone | SequentialBackbone, prefix: str) -> list[Rename]:
    if isinstance(body, ResNetBackbone):
        return [Rename(f"{prefix}body.", "trunk.0.")]
    return [
        Rename(f"{prefix}body.{name}.", f"trunk.0.stages.{i}.{name}.")
        for i, stage in enumerate(body.stages)
        for name, _ in stage.named_children()
    ]
