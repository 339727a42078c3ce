"""Detectors: where parts meet. A Detector is a trunk and stages; a recipe is a function that builds one."""

from detkit.detectors.dense import DenseCriterion, DenseOutputs, DenseStage
from detkit.detectors.detector import Detector, Stage
from detkit.detectors.postprocess import Postprocess
from detkit.detectors.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess, resize_target
from detkit.detectors.recipes import fpn_ssd, ssd, ssd300, ssd512, tiny_ssd

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "DenseCriterion",
    "DenseOutputs",
    "DenseStage",
    "Detector",
    "Postprocess",
    "Preprocess",
    "Stage",
    "fpn_ssd",
    "resize_target",
    "ssd",
    "ssd300",
    "ssd512",
    "tiny_ssd",
]
