"""Layers that backbones, necks and heads share: small blocks, transformers, and the checks of feature levels."""

from detkit.layers.blocks import (
    ConvNormActivation,
    L2Norm,
    SeparableConv,
    conv_tower,
    freeze_batch_norm,
    init_convolutions,
)
from detkit.layers.box_decoder import BoxDecoder, BoxPositions, BoxPredictions, BoxQueries, DeformableDecoderLayer
from detkit.layers.conditional_decoder import ConditionalAttention, ConditionalDecoder, ConditionalDecoderLayer
from detkit.layers.deformable import DeformableAttention
from detkit.layers.edge_decoder import EdgeDecoder, EdgePredictions, GatedResidual
from detkit.layers.level_encoder import DeformableEncoderLayer, LevelEncoder
from detkit.layers.levels import check_features, check_levels
from detkit.layers.map_encoder import LevelMemory, LevelProjection, MapAttention, MapEncoder, Memory
from detkit.layers.passthrough import Passthrough
from detkit.layers.position import GridPositions, LearnedPositions, SinePositions
from detkit.layers.rep import CSPRepBlock, ELANBlock, RepVGGBlock, separable_downsampling
from detkit.layers.selection import PointQueries, Proposed, QuerySelection
from detkit.layers.transformer import Attention, DecoderLayer, EncoderLayer, TransformerDecoder, TransformerEncoder

__all__ = [
    "Attention",
    "BoxDecoder",
    "BoxPositions",
    "BoxPredictions",
    "BoxQueries",
    "CSPRepBlock",
    "ConditionalAttention",
    "ConditionalDecoder",
    "ConditionalDecoderLayer",
    "ConvNormActivation",
    "DecoderLayer",
    "DeformableAttention",
    "DeformableDecoderLayer",
    "DeformableEncoderLayer",
    "ELANBlock",
    "EdgeDecoder",
    "EdgePredictions",
    "EncoderLayer",
    "GatedResidual",
    "GridPositions",
    "L2Norm",
    "LearnedPositions",
    "LevelEncoder",
    "LevelMemory",
    "LevelProjection",
    "MapAttention",
    "MapEncoder",
    "Memory",
    "Passthrough",
    "PointQueries",
    "Proposed",
    "QuerySelection",
    "RepVGGBlock",
    "SeparableConv",
    "SinePositions",
    "TransformerDecoder",
    "TransformerEncoder",
    "check_features",
    "check_levels",
    "conv_tower",
    "freeze_batch_norm",
    "init_convolutions",
    "separable_downsampling",
]
