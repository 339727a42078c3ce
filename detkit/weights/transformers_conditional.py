"""Converts transformers' Conditional DETR to a Detector, and back to its state_dict."""

from typing import Any

from torch import Tensor, nn

from detkit.detectors import Detector, Preprocess, SetPostprocess, SetPredictionStage
from detkit.heads import RefinementHead
from detkit.heads.set_prediction import small_net
from detkit.layers import (
    ConditionalDecoderLayer,
    EncoderLayer,
    LearnedPositions,
    MapEncoder,
    SinePositions,
    TransformerEncoder,
)
from detkit.weights.detr_layout import OURS, TRANSFORMERS, count, detr_renames, detr_stage_of
from detkit.weights.torchvision_trunk import Rename, adopt, state_to_theirs
from detkit.weights.transformers_decoder import DroppedProjection, TransformersConditionalDecoder, set_dropout
from detkit.weights.transformers_resnet import (
    ACTIVATIONS,
    check_fields,
    check_resnet,
    focal_losses,
    is_timm,
    resnet_from,
    resnet_renames,
)

CONDITIONAL = "ConditionalDetrForObjectDetection"
"""The model that :func:`conditional_from_transformers` takes."""
_EDGE = 1e-5


def conditional_from_transformers(model: nn.Module) -> Detector:
    """A Detector with the weights and the behavior of :data:`CONDITIONAL`.

    Raises ValueError, naming the field, for anything that this library has no part for.
    """
    peer: Any = model
    config = peer.config
    allowed: dict[str, tuple[Any, ...]] = {
        "position_embedding_type": ("sine", "learned"),
        "activation_function": tuple(ACTIVATIONS),
        "encoder_layerdrop": (0.0,),
        "decoder_layerdrop": (0.0,),
    }
    check_fields([(name, getattr(config, name), values) for name, values in allowed.items()])
    check_resnet(peer)
    backbone, keys = resnet_from(peer), list(model.state_dict())
    stage = _stage(config, backbone.out_channels[-1])
    detector = Detector(backbone, preprocess=Preprocess(800, max_size=1333), objects=stage)
    renames = _renames(keys, timm=is_timm(keys))
    return adopt(model, detector, renames, library="transformers")


def conditional_to_transformers(detector: Detector, *, timm: bool) -> dict[str, Tensor]:
    """The state_dict of a Detector with a :class:`~detkit.layers.ConditionalDecoder` under transformers' keys.

    ``timm`` says whether that model's backbone comes from timm. Raises ValueError for a detector that transformers has
    no model for.
    """
    name, _ = detr_stage_of(detector, "to_transformers")
    state = detector.state_dict()
    return state_to_theirs(state, _renames(list(state), timm=timm, stage=name))


def _stage(config: Any, in_channels: int) -> SetPredictionStage:
    channels, learned = config.d_model, config.position_embedding_type == "learned"
    activation = ACTIVATIONS[config.activation_function]
    encoder = [
        EncoderLayer(*(channels, config.encoder_attention_heads), hidden=config.encoder_ffn_dim, activation=activation)
        for _ in range(config.encoder_layers)
    ]
    decoder = [
        ConditionalDecoderLayer(
            *(channels, config.decoder_attention_heads),
            hidden=config.decoder_ffn_dim,
            activation=activation,
            first=i == 0,
        )
        for i in range(config.decoder_layers)
    ]
    set_dropout([*encoder, *decoder], config)
    matcher, criterion = focal_losses(config)
    stage = SetPredictionStage(
        encoder=MapEncoder(
            DroppedProjection(in_channels, channels, dropout=config.dropout),
            positions=LearnedPositions(channels) if learned else SinePositions(channels),
            encoder=TransformerEncoder(encoder),
        ),
        decoder=TransformersConditionalDecoder(
            decoder,
            points=small_net(channels, channels, 2, 2),
            scale=small_net(channels, channels, channels, 2),
            norm=nn.LayerNorm(channels),
        ),
        queries=nn.Embedding(config.num_queries, channels),
        head=RefinementHead(channels, num_classes=config.num_labels, background=False, edge=_EDGE),
        matcher=matcher,
        criterion=criterion,
        postprocess=SetPostprocess(max_detections=100, every_class=True),
    )
    stage.decoder.auxiliary = config.auxiliary_loss  # pyright: ignore[reportAttributeAccessIssue]
    return stage


_ATTENTION = (
    ("query.", "q_content_proj."),
    ("key.", "k_content_proj."),
    ("query_position.", "q_pos_proj."),
    ("key_position.", "k_pos_proj."),
    ("place.", "q_pos_sine_proj."),
)


def _renames(keys: list[str], *, timm: bool, stage: str | None = None) -> list[Rename]:
    """All renaming rules; ``keys`` are this library's if ``stage`` is given, otherwise transformers'."""
    name, ours = stage or "objects", stage is not None
    rules = []
    for i in range(count(keys, f"{name}.decoder.layers." if ours else "model.decoder.layers.")):
        for part, other in (("attention", "self_attn"), ("memory_attention", "encoder_attn")):
            place, theirs = f"{name}.decoder.layers.{i}.{part}.", f"model.decoder.layers.{i}.{other}."
            rules += [Rename(theirs + new, place + old) for old, new in _ATTENTION]
    for part, other in (("points", "ref_point_head"), ("scale", "query_scale")):
        for i in range(2):
            rules.append(Rename(f"model.decoder.{other}.layers.{i}.", f"{name}.decoder.{part}.{2 * i}."))
    rules += detr_renames(keys, OURS if ours else TRANSFORMERS, other=TRANSFORMERS, stage=name)
    return rules + resnet_renames(keys, timm=timm, ours=ours)
