"""Converts transformers' Deformable DETR to a Detector, and back to its state_dict."""

from collections.abc import Iterator
from typing import Any, cast

from torch import Tensor, nn

from detkit.backbones import ResNetBackbone
from detkit.detectors import Detector, Preprocess, QueryLosses, SelectedQueryStage, SetPostprocess
from detkit.detectors.recipes.deformable_detr import EDGE, box_selection, level_projections
from detkit.heads import RefinementHead
from detkit.layers import (
    BoxDecoder,
    DeformableAttention,
    DeformableDecoderLayer,
    DeformableEncoderLayer,
    LearnedPositions,
    LevelEncoder,
    LevelProjection,
    PointQueries,
    QuerySelection,
    SinePositions,
)
from detkit.weights.torchvision_trunk import Rename, adopt, state_to_theirs
from detkit.weights.transformers_resnet import (
    ACTIVATIONS,
    check_fields,
    check_resnet,
    focal_losses,
    is_timm,
    resnet_from,
    resnet_levels,
    resnet_renames,
)

DEFORMABLE = "DeformableDetrForObjectDetection"
"""The model that :func:`deformable_from_transformers` takes."""
_STAGE = "objects"


def deformable_from_transformers(model: nn.Module) -> Detector:
    """A Detector with the weights and the behavior of :data:`DEFORMABLE`.

    With ``two_stage`` the best cells of the first class become queries, and cells have no losses, as there. Class
    heads of all layers are one where the model ties them. Raises ValueError, naming the field, for anything that this
    library has no part for.
    """
    peer: Any = model
    _check(peer)
    backbone, keys = resnet_from(peer, levels=resnet_levels(peer)), list(model.state_dict())
    stage = _stage(peer, backbone.out_channels)
    detector = Detector(backbone, preprocess=Preprocess(800, max_size=1333), **{_STAGE: stage})
    trunk = resnet_renames(keys, timm=is_timm(keys), ours=False)
    return adopt(model, detector, trunk + _renames(stage, _STAGE), library="transformers")


def deformable_to_transformers(detector: Detector, *, timm: bool) -> dict[str, Tensor]:
    """The state_dict of a Detector with a :class:`~detkit.layers.LevelEncoder` under transformers' keys.

    ``timm`` says whether that model's backbone comes from timm. Raises ValueError for a detector that transformers has
    no model for.
    """
    (name, stage), *more = detector.stages.items()
    if more or not isinstance(detector.trunk, ResNetBackbone):
        raise ValueError(
            f"to_transformers: {1 + len(more)} stages on a {type(detector.trunk).__name__}; allowed is one on a "
            "ResNetBackbone"
        )
    state, stage = detector.state_dict(), cast(SelectedQueryStage, stage)
    theirs = state_to_theirs(state, resnet_renames(list(state), timm=timm, ours=True) + _renames(stage, name))
    inner = "model.decoder."  # what the decoder reads as well has both keys
    twice = {key: value for key, value in theirs.items() if key.startswith((f"{inner}class_", f"{inner}bbox_"))}
    return theirs | {key.removeprefix(inner): value for key, value in twice.items()}


def _check(model: Any) -> None:
    config = model.config
    allowed: dict[str, tuple[Any, ...]] = {
        "position_embedding_type": ("sine", "learned"),
        "activation_function": tuple(ACTIVATIONS),
        "encoder_layerdrop": (0.0,),
    }
    found = [(name, getattr(config, name), values) for name, values in allowed.items()]
    maps = len(model.model.backbone.intermediate_channel_sizes)
    if config.num_feature_levels < maps:
        raise ValueError(
            f"from_transformers: num_feature_levels={config.num_feature_levels}; allowed is at least {maps}, the "
            "number of the backbone's feature maps"
        )
    check_fields(found)
    check_resnet(model)


def _stage(model: Any, in_channels: tuple[int, ...]) -> SelectedQueryStage:
    config = model.config
    channels, levels, two_stage = config.d_model, config.num_feature_levels, config.two_stage
    learned = config.position_embedding_type == "learned"
    layers = [_encoder_layer(config) for _ in range(config.encoder_layers)]
    queries = PointQueries(config.num_queries, channels)
    return SelectedQueryStage(
        encoder=LevelEncoder(
            LevelProjection(level_projections(in_channels, channels, levels=levels), chained=True),
            positions=LearnedPositions(channels) if learned else SinePositions(channels, centered=True),
            layers=layers,
            channels=channels,
            dropout=config.dropout,
        ),
        selection=_selection(config) if two_stage else queries,
        decoder=BoxDecoder(
            [_decoder_layer(config) for _ in range(config.decoder_layers)],
            _heads(model),
            positions=None,
            refine=config.with_box_refine,
        ),
        denoising=None,
        losses=QueryLosses(*focal_losses(config), auxiliary=config.auxiliary_loss, proposals=False),
        postprocess=SetPostprocess(max_detections=100, every_class=True),
    )


def _selection(config: Any) -> QuerySelection:
    selection = box_selection(config.d_model, config.num_labels, config.two_stage_num_proposals)
    selection.first_logit = True
    return selection


def _heads(model: Any) -> list[RefinementHead]:
    """The heads of all layers, of which those share parts that the model ties."""
    config = model.config
    heads = [
        RefinementHead(config.d_model, num_classes=config.num_labels, background=False, edge=EDGE)
        for _ in range(config.decoder_layers)
    ]
    for i, head in enumerate(heads):
        if model.class_embed[i].weight is model.class_embed[0].weight:
            head.logits = heads[0].logits
        if model.bbox_embed[i].layers[0].weight is model.bbox_embed[0].layers[0].weight:
            head.boxes = heads[0].boxes
    return heads


def _encoder_layer(config: Any) -> DeformableEncoderLayer:
    layer = DeformableEncoderLayer(
        config.d_model,
        hidden=config.encoder_ffn_dim,
        attention=_attention(config, config.encoder_attention_heads, config.encoder_n_points),
        dropout=config.dropout,
        activation=ACTIVATIONS[config.activation_function],
    )
    layer.feed_forward.dropout.p = config.activation_dropout
    return layer


def _decoder_layer(config: Any) -> DeformableDecoderLayer:
    heads = config.decoder_attention_heads
    layer = DeformableDecoderLayer(
        *(config.d_model, heads),
        hidden=config.decoder_ffn_dim,
        memory_attention=_attention(config, heads, config.decoder_n_points),
        dropout=config.dropout,
        activation=ACTIVATIONS[config.activation_function],
    )
    layer.attention.dropout, layer.feed_forward.dropout.p = config.attention_dropout, config.activation_dropout
    return layer


def _attention(config: Any, heads: int, points: int) -> DeformableAttention:
    return DeformableAttention(config.d_model, heads, levels=config.num_feature_levels, points=points)


_WHOLE = (
    ("encoder.projection.projections.", "model.input_proj."),
    ("encoder.levels", "model.level_embed"),
    ("encoder.positions.rows.", "model.position_embedding.row_embeddings."),
    ("encoder.positions.columns.", "model.position_embedding.column_embeddings."),
    ("selection.queries.", "model.query_position_embeddings."),
    ("selection.points.", "model.reference_points."),
    ("selection.embed.0.", "model.enc_output."),
    ("selection.embed.1.", "model.enc_output_norm."),
    ("selection.boxes.net.0.", "model.pos_trans."),
    ("selection.boxes.net.1.", "model.pos_trans_norm."),
)
_LOOK = (
    ("offsets.", "sampling_offsets."),
    ("weights.", "attention_weights."),
    ("value.", "value_proj."),
    ("output.", "output_proj."),
)
_FEED_FORWARD = (
    ("feed_forward.inner.", "mlp.fc1."),
    ("feed_forward.outer.", "mlp.fc2."),
    ("feed_forward_residual.norm.", "final_layer_norm."),
    ("attention_residual.norm.", "self_attn_layer_norm."),
)
_ENCODER = (*_FEED_FORWARD, *((f"attention.{ours}", f"self_attn.{theirs}") for ours, theirs in _LOOK))
_DECODER = (
    *_FEED_FORWARD,
    *((f"attention.{part}.", f"self_attn.{part[0]}_proj.") for part in ("query", "key", "value", "output")),
    *((f"memory_attention.{ours}", f"encoder_attn.{theirs}") for ours, theirs in _LOOK),
    ("memory_residual.norm.", "encoder_attn_layer_norm."),
)


def _renames(stage: SelectedQueryStage, name: str) -> list[Rename]:
    """All rules but those of the backbone, for a stage of that name."""
    selected, encoder = isinstance(stage.selection, QuerySelection), cast(LevelEncoder, stage.encoder)
    decoder = cast(BoxDecoder, stage.decoder)
    pairs = [*_WHOLE, *_head_pairs(len(decoder.heads), refine=decoder.refine, selected=selected)]
    for part, rows, depth in (("encoder", _ENCODER, len(encoder.layers)), ("decoder", _DECODER, len(decoder.layers))):
        for i in range(depth):
            pairs += [(f"{part}.layers.{i}.{ours}", f"model.{part}.layers.{i}.{theirs}") for ours, theirs in rows]
    # The model has what its decoder reads twice, and names first what it freezes there.
    dropped = ["class_embed."] * selected + ["bbox_embed."] * decoder.refine
    return [*(Rename(key, None) for key in dropped), *(Rename(theirs, f"{name}.{ours}") for ours, theirs in pairs)]


def _head_pairs(depth: int, *, refine: bool, selected: bool) -> Iterator[tuple[str, str]]:
    classes = "model.decoder.class_embed" if selected else "class_embed"
    boxes = "model.decoder.bbox_embed" if refine else "bbox_embed"
    for i in range(depth + selected):
        ours = f"decoder.heads.{i}." if i < depth else "selection.head."
        yield f"{ours}logits.", f"{classes}.{i}."
        for k in range(3):
            yield f"{ours}boxes.{2 * k}.", f"{boxes}.{i}.layers.{k}."
