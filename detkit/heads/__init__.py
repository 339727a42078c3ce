"""Heads: modules that turn feature maps into predictions for every anchor, (B, N, outputs), and know nothing else."""

from detkit.heads.classification import ClassificationHead
from detkit.heads.multibox import MultiBoxHead, flatten_levels, prediction_conv
from detkit.heads.regression import RegressionHead

__all__ = ["ClassificationHead", "MultiBoxHead", "RegressionHead", "flatten_levels", "prediction_conv"]
