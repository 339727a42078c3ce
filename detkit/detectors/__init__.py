"""Detectors: parts put together. A Detector is a trunk and stages; a recipe is a function that builds one."""

from detkit.detectors.box_queries import BoxQueryStage
from detkit.detectors.denoising import DenoisingQueries
from detkit.detectors.dense import DenseOutputs, DenseStage
from detkit.detectors.detector import Detector, Stage
from detkit.detectors.keypoint import KeypointStage, decode_heatmaps
from detkit.detectors.levelwise import LevelwisePostprocess
from detkit.detectors.mask import MaskStage
from detkit.detectors.paste import paste_masks
from detkit.detectors.postprocess import Postprocess
from detkit.detectors.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess, resize_target
from detkit.detectors.recipes import (
    box_query_stage,
    box_stage,
    detr,
    detr_dc5,
    detr_stage,
    fast_rcnn,
    faster_rcnn,
    fcos,
    fcos_anchors,
    fcos_stage,
    fpn_ssd,
    keypoint_rcnn,
    keypoint_stage,
    mask_rcnn,
    mask_stage,
    pix2seq,
    rcnn,
    retinanet,
    retinanet_anchors,
    retinanet_stage,
    retinanet_v2,
    rpn_anchors,
    rpn_stage,
    sequence_stage,
    small_detr,
    small_faster_rcnn,
    small_fcos,
    small_mask_rcnn,
    small_pix2seq,
    small_retinanet,
    ssd,
    ssd300,
    ssd512,
    ssd_stage,
    ssdlite,
    ssdlite320_mobilenet_v3_large,
    tiny_ssd,
)
from detkit.detectors.region import RegionFeatures, RegionStage
from detkit.detectors.roi import BoxStage
from detkit.detectors.rpn import ProposalPostprocess, RPNStage
from detkit.detectors.sequence import SequenceStage
from detkit.detectors.sequence_targets import SequenceTargetBuilder
from detkit.detectors.set_prediction import SetPostprocess, SetPredictionStage
from detkit.detectors.side_by_side import SideBySide

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "BoxQueryStage",
    "BoxStage",
    "DenoisingQueries",
    "DenseOutputs",
    "DenseStage",
    "Detector",
    "KeypointStage",
    "LevelwisePostprocess",
    "MaskStage",
    "Postprocess",
    "Preprocess",
    "ProposalPostprocess",
    "RPNStage",
    "RegionFeatures",
    "RegionStage",
    "SequenceStage",
    "SequenceTargetBuilder",
    "SetPostprocess",
    "SetPredictionStage",
    "SideBySide",
    "Stage",
    "box_query_stage",
    "box_stage",
    "decode_heatmaps",
    "detr",
    "detr_dc5",
    "detr_stage",
    "fast_rcnn",
    "faster_rcnn",
    "fcos",
    "fcos_anchors",
    "fcos_stage",
    "fpn_ssd",
    "keypoint_rcnn",
    "keypoint_stage",
    "mask_rcnn",
    "mask_stage",
    "paste_masks",
    "pix2seq",
    "rcnn",
    "resize_target",
    "retinanet",
    "retinanet_anchors",
    "retinanet_stage",
    "retinanet_v2",
    "rpn_anchors",
    "rpn_stage",
    "sequence_stage",
    "small_detr",
    "small_faster_rcnn",
    "small_fcos",
    "small_mask_rcnn",
    "small_pix2seq",
    "small_retinanet",
    "ssd",
    "ssd300",
    "ssd512",
    "ssd_stage",
    "ssdlite",
    "ssdlite320_mobilenet_v3_large",
    "tiny_ssd",
]
