"""Published detectors as functions: each composes parts and returns a Detector, without logic of its own.

Functions that end in ``_stage`` or ``_anchors`` build a part of one, for detectors of your own.
"""

from detkit.detectors.recipes.d_fine import d_fine, d_fine_stage, elan_neck, small_d_fine
from detkit.detectors.recipes.deformable_detr import deformable_detr, deformable_detr_stage, small_deformable_detr
from detkit.detectors.recipes.detr import box_query_stage, detr, detr_dc5, detr_stage, small_detr
from detkit.detectors.recipes.fcos import fcos, fcos_anchors, fcos_stage, small_fcos
from detkit.detectors.recipes.hourglass import (
    at_scales,
    hourglass_anchors,
    hourglass_rpn,
    hourglass_stage,
    small_hourglass_rpn,
)
from detkit.detectors.recipes.localizers import joint_localizer, residual_classifier
from detkit.detectors.recipes.multitask import (
    image_box_stage,
    image_class_stage,
    segmentation_stage,
    segmenter,
    three_tasks,
)
from detkit.detectors.recipes.one_shot import (
    one_shot_stage,
    small_tood,
    small_yolox,
    square_anchors,
    tood,
    tood_stage,
    yolox,
    yolox_stage,
)
from detkit.detectors.recipes.pix2seq import pix2seq, sequence_stage, small_pix2seq
from detkit.detectors.recipes.rcnn import (
    box_stage,
    fast_rcnn,
    faster_rcnn,
    keypoint_rcnn,
    keypoint_stage,
    mask_rcnn,
    mask_stage,
    rpn_anchors,
    rpn_stage,
    small_faster_rcnn,
    small_mask_rcnn,
)
from detkit.detectors.recipes.regions import rcnn
from detkit.detectors.recipes.retinanet import (
    retinanet,
    retinanet_anchors,
    retinanet_stage,
    retinanet_v2,
    small_retinanet,
)
from detkit.detectors.recipes.rt_detr import hybrid_neck, rt_detr_stage, rt_detr_v2, small_rt_detr
from detkit.detectors.recipes.ssd import fpn_ssd, ssd, ssd300, ssd512, ssd_stage, tiny_ssd
from detkit.detectors.recipes.ssd7 import modified_ssd, ssd7
from detkit.detectors.recipes.ssdlite import ssdlite, ssdlite320_mobilenet_v3_large
from detkit.detectors.recipes.yolo import (
    small_yolo_v3,
    yolo_stage,
    yolo_v1,
    yolo_v1_tiny,
    yolo_v2,
    yolo_v2_tiny,
    yolo_v3,
    yolo_v3_tiny,
)

__all__ = [
    "at_scales",
    "box_query_stage",
    "box_stage",
    "d_fine",
    "d_fine_stage",
    "deformable_detr",
    "deformable_detr_stage",
    "detr",
    "detr_dc5",
    "detr_stage",
    "elan_neck",
    "fast_rcnn",
    "faster_rcnn",
    "fcos",
    "fcos_anchors",
    "fcos_stage",
    "fpn_ssd",
    "hourglass_anchors",
    "hourglass_rpn",
    "hourglass_stage",
    "hybrid_neck",
    "image_box_stage",
    "image_class_stage",
    "joint_localizer",
    "keypoint_rcnn",
    "keypoint_stage",
    "mask_rcnn",
    "mask_stage",
    "modified_ssd",
    "one_shot_stage",
    "pix2seq",
    "rcnn",
    "residual_classifier",
    "retinanet",
    "retinanet_anchors",
    "retinanet_stage",
    "retinanet_v2",
    "rpn_anchors",
    "rpn_stage",
    "rt_detr_stage",
    "rt_detr_v2",
    "segmentation_stage",
    "segmenter",
    "sequence_stage",
    "small_d_fine",
    "small_deformable_detr",
    "small_detr",
    "small_faster_rcnn",
    "small_fcos",
    "small_hourglass_rpn",
    "small_mask_rcnn",
    "small_pix2seq",
    "small_retinanet",
    "small_rt_detr",
    "small_tood",
    "small_yolo_v3",
    "small_yolox",
    "square_anchors",
    "ssd",
    "ssd7",
    "ssd300",
    "ssd512",
    "ssd_stage",
    "ssdlite",
    "ssdlite320_mobilenet_v3_large",
    "three_tasks",
    "tiny_ssd",
    "tood",
    "tood_stage",
    "yolo_stage",
    "yolo_v1",
    "yolo_v1_tiny",
    "yolo_v2",
    "yolo_v2_tiny",
    "yolo_v3",
    "yolo_v3_tiny",
    "yolox",
    "yolox_stage",
]
