"""Published detectors as functions: each puts parts together and returns a Detector; nothing here holds logic."""

from detkit.detectors.recipes.detr import detr, detr_dc5, small_detr
from detkit.detectors.recipes.fcos import fcos, small_fcos
from detkit.detectors.recipes.pix2seq import pix2seq, small_pix2seq
from detkit.detectors.recipes.rcnn import (
    fast_rcnn,
    faster_rcnn,
    keypoint_rcnn,
    mask_rcnn,
    small_faster_rcnn,
    small_mask_rcnn,
)
from detkit.detectors.recipes.regions import rcnn
from detkit.detectors.recipes.retinanet import retinanet, retinanet_v2, small_retinanet
from detkit.detectors.recipes.ssd import fpn_ssd, ssd, ssd300, ssd512, tiny_ssd

__all__ = [
    "detr",
    "detr_dc5",
    "fast_rcnn",
    "faster_rcnn",
    "fcos",
    "fpn_ssd",
    "keypoint_rcnn",
    "mask_rcnn",
    "pix2seq",
    "rcnn",
    "retinanet",
    "retinanet_v2",
    "small_detr",
    "small_faster_rcnn",
    "small_fcos",
    "small_mask_rcnn",
    "small_pix2seq",
    "small_retinanet",
    "ssd",
    "ssd300",
    "ssd512",
    "tiny_ssd",
]
