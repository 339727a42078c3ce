"""Layers that backbones, necks and heads share: small blocks, and the checks of a list of feature levels."""

from detkit.layers.blocks import ConvNormActivation, L2Norm, freeze_batch_norm, init_convolutions
from detkit.layers.levels import check_features, check_levels

__all__ = [
    "ConvNormActivation",
    "L2Norm",
    "check_features",
    "check_levels",
    "freeze_batch_norm",
    "init_convolutions",
]
