"""Heads: modules that turn feature maps into predictions for every anchor, (B, N, outputs), and know nothing else."""

from detkit.heads.centre import CentreHead
from detkit.heads.classification import ClassificationHead
from detkit.heads.keypoint import KeypointHead
from detkit.heads.mask import MaskHead
from detkit.heads.multibox import MultiBoxHead, flatten_levels, prediction_conv
from detkit.heads.regression import RegressionHead
from detkit.heads.roi import BoxHead, conv_body, dense_body
from detkit.heads.rpn import RPNHead

__all__ = [
    "BoxHead",
    "CentreHead",
    "ClassificationHead",
    "KeypointHead",
    "MaskHead",
    "MultiBoxHead",
    "RPNHead",
    "RegressionHead",
    "conv_body",
    "dense_body",
    "flatten_levels",
    "prediction_conv",
]
