"""torchvision's one-stage detectors, RetinaNet and FCOS, as Detectors of this library, and their key tables."""

import copy
from typing import Any

from torch import nn
from torchvision.models.detection import FCOS, RetinaNet

from detkit.anchors import CenterMatcher, ThresholdMatcher
from detkit.boxes import DistanceCoder
from detkit.detectors import DenseStage, Detector, LevelwisePostprocess
from detkit.heads import ClassificationHead, DenseHead, FCOSHead, MultiBoxHead, RegressionHead
from detkit.losses import FCOSLoss, RetinaNetLoss, giou_cost, l1_cost, smooth_l1_cost
from detkit.weights.torchvision_ssd import ssd_renames
from detkit.weights.torchvision_trunk import (
    Rename,
    anchors_from,
    carry_over,
    coder_from,
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
    coder = coder_from(model.box_coder)
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
        return ssd_renames(detector)
    if not isinstance(stage, DenseStage) or parts not in (
        (ClassificationHead, RegressionHead),
        (ClassificationHead, FCOSHead),
    ):
        raise ValueError(
            f"to_torchvision: the stage is a {type(stage).__name__} with heads {parts[0].__name__} and "
            f"{parts[1].__name__}; allowed are a DenseStage with two MultiBoxHeads (SSD), or with a ClassificationHead "
            "and a RegressionHead (RetinaNet) or an FCOSHead (FCOS)"
        )
    points = [("bbox_reg.", "distances."), ("bbox_ctrness.", "center.")]
    box = points if parts[1] is FCOSHead else [("bbox_reg.", "deltas.")]
    heads = [("conv.", "tower."), ("cls_logits.", "logits.")], [("conv.", "tower."), *box]
    rows = zip(old, new, heads, strict=True)
    rules = [Rename(a + b, c + d) for a, c, pairs in rows for b, d in pairs]
    return trunk_renames(detector.trunk) + rules


def _towers(head: Any) -> list[nn.Module]:
    return [copy.deepcopy(part.conv) for part in (head.classification_head, head.regression_head)]


def _levelwise(model: RetinaNet | FCOS) -> LevelwisePostprocess:
    return LevelwisePostprocess(
        score_threshold=model.score_thresh,
        iou_threshold=model.nms_thresh,
        max_detections=model.detections_per_img,
        candidates_per_level=model.topk_candidates,
    )
