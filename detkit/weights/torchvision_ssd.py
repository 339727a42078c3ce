"""torchvision's SSDs as Detectors of this library: on VGG, MobileNet or a pyramid, with the plain head or SSDlite's."""

import copy
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD, SSDFeatureExtractorVGG, SSDHead
from torchvision.models.detection.ssdlite import SSDLiteFeatureExtractorMobileNet, SSDLiteHead

from detkit.anchors import BipartiteMatcher, GridAnchors
from detkit.backbones import Backbone, SequentialBackbone, SSDVGGBackbone, vgg_features
from detkit.detectors import DenseStage, Detector, Postprocess
from detkit.heads import DenseHead, MultiBoxHead, prediction_conv
from detkit.layers import SeparableConv
from detkit.losses import MultiBoxLoss
from detkit.necks import ExtraLevel, SSDExtra
from detkit.weights.torchvision_trunk import (
    Rename,
    Trunk,
    background_last,
    carry_over,
    coder_from,
    preprocess_from,
    trunk_from,
    trunk_renames,
)


def ssd_from(model: SSD) -> Detector:
    """torchvision's SSD or SSDlite as a Detector. In torchvision label 0 is background, so ours are one less.

    Raises ValueError for another backbone, head or generator of default boxes.
    """
    if type(model.head) not in (SSDHead, SSDLiteHead) or not isinstance(model.anchor_generator, DefaultBoxGenerator):
        raise ValueError(
            f"from_torchvision: SSD has a head {type(model.head).__name__} and anchors "
            f"{type(model.anchor_generator).__name__}; allowed are SSDHead or SSDLiteHead, and DefaultBoxGenerator"
        )
    trunk, anchors, head = _trunk_from(model.backbone), _default_boxes(model), cast(Any, model.head)
    stage = DenseStage(
        head=DenseHead(
            _multibox_head(head.classification_head, trunk, anchors),
            _multibox_head(head.regression_head, trunk, anchors),
        ),
        anchors=anchors,
        matcher=BipartiteMatcher(
            positive_iou=model.proposal_matcher.high_threshold, greedy=False, force_match_zero=True
        ),
        coder=coder_from(model.box_coder),
        criterion=MultiBoxLoss(negatives_per_positive=model.neg_to_pos_ratio),
        postprocess=Postprocess(
            score_threshold=model.score_thresh,
            iou_threshold=model.nms_thresh,
            max_detections=model.detections_per_img,
            candidates_per_class=model.topk_candidates,
        ),
    )
    detector = Detector(trunk.module, preprocess=preprocess_from(model.transform), dense=stage)
    return carry_over(model, detector, ssd_renames(detector))


def ssd_renames(detector: Detector) -> list[Rename]:
    """The rules between a Detector of one DenseStage with two MultiBoxHeads and torchvision's SSD or SSDlite.

    Raises ValueError for a trunk that torchvision's don't have.

    >>> from detkit.detectors import ssd300
    >>> ssd_renames(ssd300(2))[0]
    Rename(theirs='backbone.scale_weight', ours='trunk.0.norm.weight', change=None)
    """
    ((name, stage),) = detector.stages.items()
    classes = cast(Any, stage).head.class_head
    old, new = "head.{}_head.module_list.", f"{name}.head.{{}}_head.levels."
    depthwise = [
        Rename(f"{old.format('classification')}{i}.0.", f"{new.format('class')}{i}.0.")
        for i, level in enumerate(classes.levels)
        if isinstance(level, SeparableConv)
    ]
    return [
        *_trunk_renames(detector.trunk),
        *depthwise,
        Rename(old.format("classification"), new.format("class"), background_last(classes.outputs - 1)),
        Rename(old.format("regression"), new.format("box")),
    ]


def _multibox_head(part: Any, trunk: Trunk, anchors: GridAnchors) -> MultiBoxHead:
    """``part`` is torchvision's head for classes, or the one for boxes."""
    convolution: Callable[[int, int], nn.Module] = prediction_conv
    if not isinstance(part.module_list[0], nn.Conv2d):
        convolution = partial(SeparableConv, norm=_copies(level[0][1] for level in part.module_list), linear=True)
    return MultiBoxHead(trunk.out_channels, anchors.per_cell, outputs=part.num_columns, convolution=convolution)


def _copies(norms: Iterable[nn.Module]) -> Callable[[int], nn.Module]:
    """A builder that hands out a copy of each of the ``norms``, in this order: theirs may be of any kind."""
    rest = iter([copy.deepcopy(norm) for norm in norms])
    return lambda _: next(rest)


def _trunk_from(backbone: nn.Module) -> Trunk:
    body: Backbone
    extra: list[Any]
    match backbone:
        case SSDFeatureExtractorVGG():
            body, extra = SSDVGGBackbone(vgg_features()), list(backbone.extra)[1:]
            levels = [_level(reduce, shrink) for reduce, _, shrink, _ in extra]
            neck = SSDExtra(body.out_channels, body.strides, levels=levels)
        case SSDLiteFeatureExtractorMobileNet():
            body, extra = SequentialBackbone(copy.deepcopy(list(backbone.features))), list(backbone.extra)
            neck = SSDExtra(
                body.out_channels,
                body.strides,
                levels=[ExtraLevel(reduce[0].out_channels, mix[0].out_channels) for reduce, _, mix in extra],
                norm=_copies(step[1] for block in extra for step in block),
                activation=nn.ReLU6,
                convolution=SeparableConv,
            )
        case _:
            return trunk_from(backbone)
    return Trunk(nn.Sequential(body, neck), neck.out_channels, neck.strides)


def _level(reduce: nn.Conv2d, shrink: nn.Conv2d) -> ExtraLevel:
    (kernel_size, _), (stride, _), (padding, _) = shrink.kernel_size, shrink.stride, cast(Any, shrink.padding)
    return ExtraLevel(reduce.out_channels, shrink.out_channels, kernel_size, stride, padding)


def _trunk_renames(trunk: nn.Module) -> list[Rename]:
    body, neck = trunk if isinstance(trunk, nn.Sequential) and len(trunk) == 2 else (None, None)
    if not isinstance(neck, SSDExtra):
        return trunk_renames(trunk)
    if isinstance(body, SSDVGGBackbone):
        return [
            Rename("backbone.scale_weight", "trunk.0.norm.weight"),
            Rename("backbone.features.", "trunk.0.features."),
            Rename("backbone.extra.0.", "trunk.0.deep."),
            *(Rename(f"backbone.extra.{i + 1}.", f"trunk.1.blocks.{i}.") for i in range(len(neck.blocks))),
        ]
    if not isinstance(body, SequentialBackbone) or not all(map(_is_separable, neck.blocks)):
        raise ValueError(
            f"to_torchvision: the trunk is {type(body).__name__} with an SSDExtra; allowed are SSDVGGBackbone with a "
            "plain SSDExtra, and mobilenet_backbone with an SSDExtra of SeparableConv and a norm, as ssd300 and "
            "ssdlite320_mobilenet_v3_large build them"
        )
    # Depthwise and 1 x 1 first: what is left of the flat block is the convolution and the norm before them.
    steps = [(".1.", ".3."), (".2.", ".4."), (".0.", ".")]
    extra = [
        Rename(f"backbone.extra.{i}{a}", f"trunk.1.blocks.{i}{b}") for i in range(len(neck.blocks)) for a, b in steps
    ]
    return [Rename("backbone.features.", "trunk.0.stages."), *extra]


def _is_separable(block: Any) -> bool:
    return len(block) == 5


def _default_boxes(model: SSD) -> GridAnchors:
    """torchvision's default boxes: relative to the image, whose size is fixed, and no larger than the image if
    clipped."""
    generator = model.anchor_generator
    width, height = cast(tuple[int, int], model.transform.fixed_size)
    shapes: list[Tensor] = [rows.clamp(0, 1) if generator.clip else rows for rows in generator._wh_pairs]
    size = torch.tensor([width, height])
    return GridAnchors(shapes=[rows * size for rows in shapes], strides=generator.steps)
