"""Heads: modules that turn feature maps into predictions for every anchor, (B, N, outputs), and do nothing else."""

from detkit.heads.cell import CellHead
from detkit.heads.classification import ClassificationHead
from detkit.heads.dense import DenseHead
from detkit.heads.edges import EdgeHead, QualityEstimator
from detkit.heads.embedding import EmbeddingHead
from detkit.heads.fcos import FCOSHead
from detkit.heads.grid import GridHead
from detkit.heads.image import ImageHead
from detkit.heads.keypoint import KeypointHead
from detkit.heads.mask import MaskHead
from detkit.heads.multibox import MultiBoxHead, flatten_levels, prediction_conv
from detkit.heads.regression import RegressionHead
from detkit.heads.roi import BoxHead, conv_body, dense_body
from detkit.heads.rpn import RPNHead
from detkit.heads.segmentation import SegmentationHead
from detkit.heads.sequence import BoxGrammar, TokenSampler
from detkit.heads.set_prediction import RefinementHead, SetPredictionHead
from detkit.heads.token_decoder import TokenDecoder

__all__ = [
    "BoxGrammar",
    "BoxHead",
    "CellHead",
    "ClassificationHead",
    "DenseHead",
    "EdgeHead",
    "EmbeddingHead",
    "FCOSHead",
    "GridHead",
    "ImageHead",
    "KeypointHead",
    "MaskHead",
    "MultiBoxHead",
    "QualityEstimator",
    "RPNHead",
    "RefinementHead",
    "RegressionHead",
    "SegmentationHead",
    "SetPredictionHead",
    "TokenDecoder",
    "TokenSampler",
    "conv_body",
    "dense_body",
    "flatten_levels",
    "prediction_conv",
]
