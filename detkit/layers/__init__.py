"""Layers that backbones, necks and heads share: small blocks, transformers, and the checks of feature levels."""

from detkit.layers.blocks import (
    ConvNormActivation,
    L2Norm,
    SeparableConv,
    conv_tower,
    freeze_batch_norm,
    init_convolutions,
)
from detkit.layers.box_decoder import BoxDecoder, BoxPositions, BoxQueries, DeformableDecoderLayer
from detkit.layers.deformable import DeformableAttention
from detkit.layers.levels import check_features, check_levels
from detkit.layers.map_encoder import MapEncoder, Memory
from detkit.layers.passthrough import Passthrough
from detkit.layers.position import LearnedPositions, SinePositions
from detkit.layers.transformer import Attention, DecoderLayer, EncoderLayer, TransformerDecoder, TransformerEncoder

__all__ = [
    "Attention",
    "BoxDecoder",
    "BoxPositions",
    "BoxQueries",
    "ConvNormActivation",
    "DecoderLayer",
    "DeformableAttention",
    "DeformableDecoderLayer",
    "EncoderLayer",
    "L2Norm",
    "LearnedPositions",
    "MapEncoder",
    "Memory",
    "Passthrough",
    "SeparableConv",
    "SinePositions",
    "TransformerDecoder",
    "TransformerEncoder",
    "check_features",
    "check_levels",
    "conv_tower",
    "freeze_batch_norm",
    "init_convolutions",
]
