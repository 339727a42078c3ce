"""torchvision's one-stage detectors, RetinaNet, FCOS and SSD300, as Detectors of this library, and their key tables."""

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD, SSDFeatureExtractorVGG, SSDHead

from detkit.anchors import BipartiteMatcher, CenterMatcher, GridAnchors, ThresholdMatcher
from detkit.backbones import SSDVGGBackbone, vgg_features
from detkit.boxes import DeltaCoder, DistanceCoder
from detkit.detectors import DenseStage, Detector, LevelwisePostprocess, Postprocess
from detkit.heads import ClassificationHead, DenseHead, FCOSHead, MultiBoxHead, RegressionHead
from detkit.losses import FCOSLoss, MultiBoxLoss, RetinaNetLoss, giou_cost, l1_cost, smooth_l1_cost
from detkit.necks import SSDExtra
from detkit.weights.torchvision_trunk import (
    Rename,
    anchors_from,
    background_last,
    carry_over,
    preprocess_from,
    trunk_from,
    trunk_renames,
)

_BOX_COSTS = {"l1": l1_cost, "smooth_l1": smooth_l1_cost, "giou": giou_cost}


def retinanet_from(model: RetinaNet) -> Detector:
    """torchvision's RetinaNet of either version as a Detector. Labels are the same, including class 0.

    Raises ValueError for a backbone, anchors or a box loss that torchvision's own models don't have.
    """
    trunk, head, matcher = trunk_from(model.backbone), model.head, model.proposal_matcher
    coder = _delta_coder(model.box_coder)
    loss = head.regression_head._loss_type
    if loss not in _BOX_COSTS:
        raise ValueError(f"from_torchvision: RetinaNet's box loss is {loss!r}; allowed are {', '.join(_BOX_COSTS)}")
    anchors, channels = anchors_from(model.anchor_generator), trunk.out_channels[0]
    num_classes, towers = head.classification_head.num_classes, _towers(head)
    stage = DenseStage(
        head=DenseHead(
            ClassificationHead(channels, anchors.per_cell[0], num_classes=num_classes, tower=towers[0]),
            RegressionHead(channels, anchors.per_cell[0], tower=towers[1]),
        ),
        anchors=anchors,
        matcher=ThresholdMatcher(
            positive_iou=matcher.high_threshold,
            negative_iou=matcher.low_threshold,
            low_quality=matcher.allow_low_quality_matches,
        ),
        coder=coder,
        criterion=RetinaNetLoss(_BOX_COSTS[loss]),
        postprocess=_levelwise(model),
    )
    detector = Detector(trunk.module, preprocess=preprocess_from(model.transform), dense=stage)
    return carry_over(model, detector, dense_renames(detector))


def fcos_from(model: FCOS) -> Detector:
    """torchvision's FCOS as a Detector. Labels are the same, including class 0.

    Raises ValueError for a backbone or anchors that torchvision's own model doesn't have.
    """
    head: Any = model.head
    trunk, anchors = trunk_from(model.backbone), anchors_from(model.anchor_generator)
    channels, towers = trunk.out_channels[0], _towers(head)
    stage = DenseStage(
        head=DenseHead(
            ClassificationHead(channels, 1, num_classes=head.classification_head.num_classes, tower=towers[0]),
            FCOSHead(channels, tower=towers[1]),
        ),
        anchors=anchors,
        matcher=CenterMatcher(radius=model.center_sampling_radius),
        coder=DistanceCoder(unit=1.0 if model.box_coder.normalize_by_size else None),
        criterion=FCOSLoss(),
        postprocess=_levelwise(model),
    )
    detector = Detector(trunk.module, preprocess=preprocess_from(model.transform), dense=stage)
    return carry_over(model, detector, dense_renames(detector))


def ssd_from(model: SSD) -> Detector:
    """torchvision's SSD300 on VGG-16 as a Detector. In torchvision label 0 is background, so ours are one less.

    Raises ValueError for another backbone, head or generator of default boxes.
    """
    if not isinstance(model.backbone, SSDFeatureExtractorVGG) or len(model.backbone.extra) != 5:
        raise ValueError(
            f"from_torchvision: SSD has a backbone {type(model.backbone).__name__}; allowed is the one of ssd300_vgg16"
        )
    if type(model.head) is not SSDHead or not isinstance(model.anchor_generator, DefaultBoxGenerator):
        raise ValueError(
            f"from_torchvision: SSD has a head {type(model.head).__name__} and anchors "
            f"{type(model.anchor_generator).__name__}; allowed are SSDHead and DefaultBoxGenerator"
        )
    backbone = SSDVGGBackbone(vgg_features())
    neck = SSDExtra(backbone.out_channels, backbone.strides)
    anchors, outputs = _default_boxes(model), model.head.classification_head.num_columns
    stage = DenseStage(
        head=DenseHead(
            MultiBoxHead(neck.out_channels, anchors.per_cell, outputs=outputs),
            MultiBoxHead(neck.out_channels, anchors.per_cell, outputs=4),
        ),
        anchors=anchors,
        matcher=BipartiteMatcher(
            positive_iou=model.proposal_matcher.high_threshold, greedy=False, force_match_zero=True
        ),
        coder=_delta_coder(model.box_coder),
        criterion=MultiBoxLoss(negatives_per_positive=model.neg_to_pos_ratio),
        postprocess=Postprocess(
            score_threshold=model.score_thresh,
            iou_threshold=model.nms_thresh,
            max_detections=model.detections_per_img,
            candidates_per_class=model.topk_candidates,
        ),
    )
    trunk = nn.Sequential(backbone, neck)
    detector = Detector(trunk, preprocess=preprocess_from(model.transform), dense=stage)
    return carry_over(model, detector, dense_renames(detector))


def dense_renames(detector: Detector) -> list[Rename]:
    """The rules between a Detector of one DenseStage and torchvision's RetinaNet, FCOS or SSD.

    Raises ValueError for a detector with other parts.

    >>> from detkit.detectors import ssd300
    >>> dense_renames(ssd300(2))[0]
    Rename(theirs='backbone.scale_weight', ours='trunk.0.norm.weight', change=None)
    """
    ((name, stage),) = detector.stages.items()
    head = getattr(stage, "head", None)
    parts = type(getattr(head, "class_head", None)), type(getattr(head, "box_head", None))
    old = "head.classification_head.", "head.regression_head."
    new = f"{name}.head.class_head.", f"{name}.head.box_head."
    if isinstance(stage, DenseStage) and parts == (MultiBoxHead, MultiBoxHead):
        change = background_last(head.class_head.outputs - 1)
        heads = [("module_list.", "levels.", change)], [("module_list.", "levels.", None)]
        rules = _ssd_trunk_renames()
    elif isinstance(stage, DenseStage) and parts in (
        (ClassificationHead, RegressionHead),
        (ClassificationHead, FCOSHead),
    ):
        points = [("bbox_reg.", "distances."), ("bbox_ctrness.", "center.")]
        box = points if parts[1] is FCOSHead else [("bbox_reg.", "deltas.")]
        heads = [("conv.", "tower."), ("cls_logits.", "logits.")], [("conv.", "tower."), *box]
        rules = trunk_renames(detector.trunk)
    else:
        raise ValueError(
            f"to_torchvision: the stage is a {type(stage).__name__} with heads {parts[0].__name__} and "
            f"{parts[1].__name__}; allowed are a DenseStage with two MultiBoxHeads (SSD), or with a ClassificationHead "
            "and a RegressionHead (RetinaNet) or an FCOSHead (FCOS)"
        )
    rows = zip(old, new, heads, strict=True)
    return rules + [Rename(a + b, c + d, *change) for a, c, pairs in rows for b, d, *change in pairs]


def _ssd_trunk_renames() -> list[Rename]:
    extra = [Rename(f"backbone.extra.{i + 1}.", f"trunk.1.blocks.{i}.") for i in range(4)]
    return [
        Rename("backbone.scale_weight", "trunk.0.norm.weight"),
        Rename("backbone.features.", "trunk.0.features."),
        Rename("backbone.extra.0.", "trunk.0.deep."),
        *extra,
    ]


def _towers(head: Any) -> list[nn.Module]:
    return [copy.deepcopy(part.conv) for part in (head.classification_head, head.regression_head)]


def _delta_coder(coder: Any) -> DeltaCoder:
    return DeltaCoder(coder.weights, clamp=coder.bbox_xform_clip)


def _levelwise(model: RetinaNet | FCOS) -> LevelwisePostprocess:
    return LevelwisePostprocess(
        score_threshold=model.score_thresh,
        iou_threshold=model.nms_thresh,
        max_detections=model.detections_per_img,
        candidates_per_level=model.topk_candidates,
    )


def _default_boxes(model: SSD) -> GridAnchors:
    """torchvision's default boxes: relative to the image, whose size is fixed, and no larger than the image if
    clipped."""
    generator = model.anchor_generator
    width, height = cast(tuple[int, int], model.transform.fixed_size)
    shapes: list[Tensor] = [rows.clamp(0, 1) if generator.clip else rows for rows in generator._wh_pairs]
    size = torch.tensor([width, height])
    return GridAnchors(shapes=[rows * size for rows in shapes], strides=generator.steps)
