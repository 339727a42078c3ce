"""Losses: elementary ones are unreduced functions, those of a detector family are modules that weight and sum them.

A family's loss also turns its logits into scores, so that training and inference cannot disagree.
"""

from detkit.losses.box_costs import (
    BoxCoder,
    ciou_cost,
    diou_cost,
    giou_cost,
    grid_cost,
    iou_cost,
    l1_cost,
    l2_cost,
    smooth_l1_cost,
)
from detkit.losses.classification import (
    distribution_focal_loss,
    label_smoothed_cross_entropy,
    quality_focal_loss,
    sigmoid_focal_loss,
    varifocal_loss,
)
from detkit.losses.dense import DenseCriterion, box_costs, mean_count, sigmoid_scores, softmax_scores
from detkit.losses.edges import EdgeLoss
from detkit.losses.fcos import FCOSLoss
from detkit.losses.hourglass import HourglassLoss
from detkit.losses.keypoint import keypoint_loss, keypoint_targets
from detkit.losses.mask import mask_loss, mask_targets
from detkit.losses.multibox import MultiBoxLoss
from detkit.losses.objectness import ObjectnessLoss
from detkit.losses.quality import QualityLoss
from detkit.losses.rcnn import RCNNLoss, RPNLoss
from detkit.losses.regression import (
    box_iou_loss,
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
    smooth_l1_loss,
)
from detkit.losses.retinanet import RetinaNetLoss
from detkit.losses.sequence import SequenceLoss
from detkit.losses.set_prediction import FocalSetLoss, SetCriterion, SetPredictionLoss, VarifocalSetLoss
from detkit.losses.yolo import YOLOLoss
from detkit.losses.yolo_v1 import YOLOv1Loss

__all__ = [
    "BoxCoder",
    "DenseCriterion",
    "EdgeLoss",
    "FCOSLoss",
    "FocalSetLoss",
    "HourglassLoss",
    "MultiBoxLoss",
    "ObjectnessLoss",
    "QualityLoss",
    "RCNNLoss",
    "RPNLoss",
    "RetinaNetLoss",
    "SequenceLoss",
    "SetCriterion",
    "SetPredictionLoss",
    "VarifocalSetLoss",
    "YOLOLoss",
    "YOLOv1Loss",
    "box_costs",
    "box_iou_loss",
    "ciou_cost",
    "complete_box_iou_loss",
    "diou_cost",
    "distance_box_iou_loss",
    "distribution_focal_loss",
    "generalized_box_iou_loss",
    "giou_cost",
    "grid_cost",
    "iou_cost",
    "keypoint_loss",
    "keypoint_targets",
    "l1_cost",
    "l2_cost",
    "label_smoothed_cross_entropy",
    "mask_loss",
    "mask_targets",
    "mean_count",
    "quality_focal_loss",
    "sigmoid_focal_loss",
    "sigmoid_scores",
    "smooth_l1_cost",
    "smooth_l1_loss",
    "softmax_scores",
    "varifocal_loss",
]
