"""torchvision's Faster, Mask and Keypoint R-CNN as Detectors, and the key table that serves both directions."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead as TheirRPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from detkit.anchors import BalancedSampler, ThresholdMatcher
from detkit.boxes import PyramidRoIAlign
from detkit.detectors import BoxStage, Detector, KeypointStage, MaskStage, Postprocess, ProposalPostprocess, RPNStage
from detkit.detectors.detector import Stage
from detkit.heads import BoxHead, KeypointHead, MaskHead, RPNHead, conv_body, dense_body
from detkit.losses import RCNNLoss, RPNLoss
from detkit.weights.torchvision_trunk import (
    Rename,
    Trunk,
    anchors_from,
    background_last,
    carry_over,
    coder_from,
    preprocess_from,
    trunk_from,
    trunk_renames,
    without_background,
)

_BOX, _MASK, _KEYPOINT = "roi_heads.box_", "roi_heads.mask_", "roi_heads.keypoint_"


def rcnn_from(model: FasterRCNN) -> Detector:
    """The Detector of a FasterRCNN, MaskRCNN or KeypointRCNN; masks are returned as probabilities, as in torchvision.

    Raises ValueError for parts that torchvision's own builders do not use.

    >>> from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn
    >>> model = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=4)
    >>> list(rcnn_from(model).stages)
    ['rpn', 'box']
    """
    trunk = trunk_from(model.backbone)
    stages: dict[str, Stage] = {"rpn": _rpn(model, trunk), "box": _box(model, trunk)}
    if isinstance(model, MaskRCNN):
        stages["mask"] = _mask(model, trunk)
    if isinstance(model, KeypointRCNN):
        stages["keypoint"] = _keypoint(model, trunk)
    detector = Detector(
        trunk.module, preprocess=preprocess_from(_expect(model.transform, GeneralizedRCNNTransform)), **stages
    )
    detector.preprocess.mask_threshold = None
    return carry_over(model, detector, rcnn_renames(detector))


def rcnn_renames(detector: Detector) -> list[Rename]:
    """The rules for every key of a Detector with the stages "rpn", "box" and optionally "mask" or "keypoint".

    Raises ValueError for other stages.

    >>> from detkit.detectors import faster_rcnn
    >>> rcnn_renames(faster_rcnn(num_classes=2))[-1]
    Rename(theirs='roi_heads.box_head.fc7.', ours='box.head.body.3.', change=None)
    """
    rules = {"rpn": _rpn_renames, "box": _box_renames, "mask": _mask_renames, "keypoint": _keypoint_renames}
    known = {"rpn": RPNStage, "box": BoxStage, "mask": MaskStage, "keypoint": KeypointStage}
    stages = detector.stages
    if not {"rpn", "box"} <= stages.keys() or any(type(stage) is not known.get(name) for name, stage in stages.items()):
        found = ", ".join(f"{name}={type(stage).__name__}" for name, stage in stages.items())
        raise ValueError(
            f"to_torchvision: stages are {found}; allowed are rpn=RPNStage and box=BoxStage, with mask=MaskStage or "
            "keypoint=KeypointStage"
        )
    heads: dict[str, Any] = {name: detector.get_submodule(f"{name}.head") for name in stages}
    return [*trunk_renames(detector.trunk), *(rule for name, head in heads.items() for rule in rules[name](head))]


def _rpn(model: Any, trunk: Trunk) -> RPNStage:
    rpn = model.rpn
    depth = len(_expect(rpn.head, TheirRPNHead).conv)
    anchors = anchors_from(rpn.anchor_generator)
    postprocesses = [
        ProposalPostprocess(
            candidates_per_level=rpn._pre_nms_top_n[mode],
            max_proposals=rpn._post_nms_top_n[mode],
            iou_threshold=rpn.nms_thresh,
            min_size=rpn.min_size,
            score_threshold=rpn.score_thresh,
        )
        for mode in ("testing", "training")
    ]
    return RPNStage(
        head=RPNHead(trunk.out_channels[0], anchors.per_cell[0], depth=depth),
        anchors=anchors,
        matcher=_matcher(rpn.proposal_matcher),
        sampler=_sampler(rpn.fg_bg_sampler),
        coder=coder_from(rpn.box_coder),
        criterion=RPNLoss(),
        postprocess=postprocesses[0],
        training_postprocess=postprocesses[1],
    )


def _box(model: Any, trunk: Trunk) -> BoxStage:
    heads = model.roi_heads
    predictor = _expect(heads.box_predictor, FastRCNNPredictor)
    body, width = _body(heads.box_head, trunk.out_channels[0], heads.box_roi_pool.output_size[0])
    return BoxStage(
        pool=_pool(heads.box_roi_pool, trunk),
        head=BoxHead(body, width, num_classes=predictor.cls_score.out_features - 1),
        matcher=_matcher(heads.proposal_matcher),
        sampler=_sampler(heads.fg_bg_sampler),
        coder=coder_from(heads.box_coder),
        criterion=RCNNLoss(),
        postprocess=Postprocess(
            score_threshold=heads.score_thresh,
            iou_threshold=heads.nms_thresh,
            max_detections=heads.detections_per_img,
            candidates_per_class=None,
            min_size=1e-2,
        ),
    )


def _mask(model: Any, trunk: Trunk) -> MaskStage:
    heads = model.roi_heads
    blocks, predictor = _expect(heads.mask_head, MaskRCNNHeads), _expect(heads.mask_predictor, MaskRCNNPredictor)
    norm = _norm(blocks[0])
    return MaskStage(
        _pool(heads.mask_roi_pool, trunk),
        MaskHead(
            trunk.out_channels[0],
            predictor.mask_fcn_logits.out_channels - 1,
            channels=[block[0].out_channels for block in blocks],
            norm=norm,
        ),
    )


def _keypoint(model: Any, trunk: Trunk) -> KeypointStage:
    heads = model.roi_heads
    layers = _expect(heads.keypoint_head, KeypointRCNNHeads)
    predictor = _expect(heads.keypoint_predictor, KeypointRCNNPredictor)
    widths = [layer.out_channels for layer in layers if isinstance(layer, nn.Conv2d)]
    head = KeypointHead(trunk.out_channels[0], predictor.out_channels, channels=widths)
    return KeypointStage(_pool(heads.keypoint_roi_pool, trunk), head)


def _body(head: Any, channels: int, size: int) -> tuple[nn.Module, int]:
    """The layers between pooled features and predictions, and the size of their output."""
    if isinstance(head, TwoMLPHead):
        return dense_body(channels, size, width=head.fc7.out_features), head.fc7.out_features
    blocks: list[Any] = [block for block in _expect(head, FastRCNNConvFCHead) if isinstance(block, nn.Sequential)]
    linear = [layer for layer in head.children() if isinstance(layer, nn.Linear)]
    if len(linear) != 1:
        raise ValueError(f"from_torchvision: the box head has {len(linear)} linear layers; allowed is 1")
    norm = _norm(blocks[0]) if blocks else None
    widths = [block[0].out_channels for block in blocks]
    return conv_body(channels, size, channels=widths, width=linear[0].out_features, norm=norm), linear[0].out_features


def _norm(block: Any) -> Callable[[int], nn.Module] | None:
    """The builder of the norm in a block of a convolution, an activation and optionally a norm between them."""
    if len(block) < 3:
        return None
    kinds: Any = (nn.BatchNorm2d, FrozenBatchNorm2d)
    layer = block[1]
    if isinstance(layer, nn.GroupNorm):
        return partial(nn.GroupNorm, layer.num_groups, eps=layer.eps)
    if not isinstance(layer, kinds):
        raise ValueError(
            f"from_torchvision: the model holds a {type(layer).__name__} where a BatchNorm2d, FrozenBatchNorm2d or "
            "GroupNorm is allowed"
        )
    return partial(type(layer), eps=layer.eps)


def _pool(pool: Any, trunk: Trunk) -> PyramidRoIAlign:
    names = _expect(pool, MultiScaleRoIAlign).featmap_names
    levels = len(names)
    if list(names) != [str(level) for level in range(levels)]:
        raise ValueError(f"from_torchvision: regions are read from {names}; allowed are the finest levels, from '0' on")
    present = trunk.strides[: len(list(trunk.module.get_submodule("1.laterals").children()))][
        :levels
    ]  # it passes over the others
    return PyramidRoIAlign(
        pool.output_size[0],
        strides=sorted(set(present)),  # of two levels with one stride (MobileNet) it reads the first
        sampling_ratio=pool.sampling_ratio,
        canonical_size=pool.canonical_scale,
        canonical_level=pool.canonical_level,
    )


def _matcher(matcher: Any) -> ThresholdMatcher:
    return ThresholdMatcher(
        positive_iou=matcher.high_threshold,
        negative_iou=matcher.low_threshold,
        low_quality=matcher.allow_low_quality_matches,
    )


def _sampler(sampler: Any) -> BalancedSampler:
    return BalancedSampler(sampler.batch_size_per_image, positive_fraction=sampler.positive_fraction)


def _rpn_renames(head: RPNHead) -> list[Rename]:
    tower = [Rename(f"rpn.head.conv.{i}.0.", f"rpn.head.tower.{2 * i}.") for i in range(len(head.tower) // 2)]
    return [
        *tower,
        Rename("rpn.head.cls_logits.", "rpn.head.logits."),
        Rename("rpn.head.bbox_pred.", "rpn.head.deltas."),
    ]


def _box_renames(head: BoxHead) -> list[Rename]:
    classes = head.logits.out_features - 1
    if head.deltas.out_features != 4 * classes:
        raise ValueError("to_torchvision: the box head is class-agnostic; torchvision's has deltas for every class")
    dense = isinstance(head.body, nn.Sequential) and isinstance(head.body[0], nn.Flatten)
    body = [("fc6.", "1."), ("fc7.", "3.")] if dense else [("", "")]
    return [
        Rename(f"{_BOX}predictor.cls_score.", "box.head.logits.", background_last(classes)),
        Rename(f"{_BOX}predictor.bbox_pred.", "box.head.deltas.", without_background(4)),
        *(Rename(f"{_BOX}head.{theirs}", f"box.head.body.{ours}") for theirs, ours in body),
    ]


def _mask_renames(head: MaskHead) -> list[Rename]:
    return [
        Rename(f"{_MASK}head.", "mask.head.tower."),
        Rename(f"{_MASK}predictor.conv5_mask.", "mask.head.upsample."),
        Rename(f"{_MASK}predictor.mask_fcn_logits.", "mask.head.logits.", without_background()),
    ]


def _keypoint_renames(head: KeypointHead) -> list[Rename]:
    tower = range(len(head.tower))
    return [
        *(Rename(f"{_KEYPOINT}head.{2 * i}.", f"keypoint.head.tower.{i}.0.") for i in tower),
        Rename(f"{_KEYPOINT}predictor.kps_score_lowres.", "keypoint.head.upsample."),
    ]


def _expect(part: Any, kind: type) -> Any:
    if not isinstance(part, kind):
        raise ValueError(
            f"from_torchvision: the model holds a {type(part).__name__} where a {kind.__name__} is allowed"
        )
    return part
