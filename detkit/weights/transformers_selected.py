"""Converts transformers' RT-DETR, RT-DETR v2 and D-FINE to a Detector, and back to their state_dict."""

from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from detkit.anchors import HungarianMatcher
from detkit.boxes import EdgeCoder
from detkit.detectors import DenoisingQueries, Detector, Preprocess, SetPostprocess
from detkit.detectors.recipes.rt_detr import EDGE, box_embedding
from detkit.detectors.selected_queries import (
    QueryLosses,
    SelectedQueryStage,
    layers_of,
    weight_of,
)
from detkit.detectors.set_prediction import match_layers
from detkit.heads import EdgeHead, QualityEstimator, RefinementHead
from detkit.heads.set_prediction import small_net
from detkit.layers import (
    BoxDecoder,
    ConvNormActivation,
    CSPRepBlock,
    DeformableAttention,
    DeformableDecoderLayer,
    EdgeDecoder,
    EdgePredictions,
    ELANBlock,
    EncoderLayer,
    GatedResidual,
    GridPositions,
    LevelProjection,
    MapAttention,
    Proposed,
    QuerySelection,
    TransformerEncoder,
    separable_downsampling,
)
from detkit.losses import EdgeLoss, VarifocalSetLoss
from detkit.losses.set_prediction import SetCriterion, total_weight
from detkit.necks import HybridNeck
from detkit.structures import Assignment, Targets
from detkit.weights.torchvision_trunk import Change, Rename, adopt, state_to_theirs
from detkit.weights.transformers_backbones import backbone_from, backbone_renames
from detkit.weights.transformers_resnet import ACTIVATIONS, check_fields

SELECTED = ("RTDetrForObjectDetection", "RTDetrV2ForObjectDetection", "DFineForObjectDetection")
"""The models that :func:`selected_from_transformers` takes."""
_STAGE = "objects"


def selected_from_transformers(model: nn.Module) -> Detector:
    """A Detector with the weights and the behavior of one of :data:`SELECTED`.

    Raises ValueError, naming the field, for anything that this library has no part for.
    """
    peer: Any = model
    config, fine = peer.config, _is_fine(peer)
    _check(config, fine=fine)
    backbone = backbone_from(config.backbone_config, frozen=config.freeze_backbone_batch_norms)
    trunk = nn.Sequential(backbone, _neck(config, backbone.out_channels, fine=fine))
    stage = _stage(peer, fine=fine)
    detector = Detector(trunk, preprocess=Preprocess((640, 640), mean=(0, 0, 0), std=(1, 1, 1)), **{_STAGE: stage})
    return adopt(model, detector, _renames(detector, _STAGE), library="transformers")


def selected_to_transformers(detector: Detector) -> dict[str, Tensor]:
    """The state_dict of a Detector with one :class:`~detkit.detectors.SelectedQueryStage` under transformers' keys.

    They are those of D-FINE or RT-DETR v2; the first RT-DETR has the same but for ``n_points_scale``, and for
    ``class_embed`` and ``bbox_embed`` outside the decoder. Raises ValueError for a
    detector that transformers has no model for.
    """
    (name, stage), *more = detector.stages.items()
    if more or not isinstance(detector.trunk, nn.Sequential) or not isinstance(detector.trunk[1], HybridNeck):
        raise ValueError("to_transformers: allowed is one stage on nn.Sequential(backbone, HybridNeck)")
    state = state_to_theirs(detector.state_dict(), _renames(detector, name))
    decoder: Any = cast(SelectedQueryStage, stage).decoder
    example = next(detector.parameters())
    for i, layer in enumerate(decoder.layers):
        points = [1 / count for count in layer.memory_attention.points for _ in range(count)]
        key = "num_points_scale" if isinstance(decoder, EdgeDecoder) else "n_points_scale"
        state[f"model.decoder.layers.{i}.encoder_attn.{key}"] = torch.tensor(points, dtype=torch.float32).to(example)
    if isinstance(decoder, EdgeDecoder):
        for key, value in (("up", decoder.coder.reach), ("reg_scale", decoder.coder.scale)):
            state[f"model.decoder.{key}"] = torch.tensor([value]).to(example)
    for key in [key for key in state if key.startswith(("model.decoder.class_embed.", "model.decoder.bbox_embed."))]:
        state[key.removeprefix("model.decoder.")] = state[key]
    return state


class TransformersEdgeLosses(nn.Module):
    """D-FINE's losses as transformers has them, in place of :class:`~detkit.detectors.EdgeQueryLosses`.

    There the predictions before the first layer's distributions count as a layer of their own, so that the
    distributions of each layer are judged by the matching and the boxes of the layer before; the layer before the last
    has no losses of classes and boxes, nor has the last one of noised queries; and that of plain queries none of
    distributions. Boxes are clamped to the image. Each layer learns its own matches.
    """

    def __init__(self, matcher: HungarianMatcher, criterion: SetCriterion, edges: EdgeLoss) -> None:
        super().__init__()
        self.matcher, self.criterion, self.edges = matcher, criterion, edges

    def forward(
        self,
        predictions: EdgePredictions,
        targets: Targets,
        *,
        proposed: Proposed | None = None,
        known: Assignment | None = None,
    ) -> dict[str, Tensor]:
        """Losses named as in :class:`~detkit.detectors.EdgeQueryLosses`."""
        names, logits, boxes = layers_of(predictions, proposed)
        boxes, names = boxes.clamp(0, 1), [*names, ""]
        start, layers = names.index("first"), len(predictions.logits)
        judged = [i for i in range(len(names)) if i != start + layers - (known is None)]
        assignment = match_layers(self.matcher, logits[judged], boxes[judged], targets) if known is None else known
        count = None if known is None else weight_of(known, targets)
        costs = self.criterion.costs(logits[judged], boxes[judged], targets, assignment, count=count)
        losses = {
            f"{names[row]}.{name}".lstrip("."): values[i]
            for i, row in enumerate(judged)
            for name, values in costs.items()
        }
        pairs = slice(start, start + layers - (known is None))
        if pairs.start == pairs.stop:
            return losses
        paired = (
            Assignment(*(rows.unflatten(0, (-1, len(targets.valid)))[pairs].flatten(0, 1) for rows in assignment))
            if known is None
            else known
        )
        edges = self.edges(
            predictions.distributions[: pairs.stop - pairs.start],
            boxes[pairs],
            predictions.first_boxes,
            (predictions.logits[-1], predictions.distributions[-1]),
            targets,
            paired,
            count=total_weight(targets) if known is None else count,
        )
        rest = {f"layer{i}.{name}": value for name, values in edges.items() for i, value in enumerate(values)}
        return losses | rest


def _is_fine(model: nn.Module) -> bool:
    return "DFineForObjectDetection" in (kind.__name__ for kind in type(model).__mro__)


def _check(config: Any, *, fine: bool) -> None:
    levels = len(config.encoder_in_channels)
    allowed: dict[str, tuple[Any, ...]] = {
        "num_feature_levels": (levels,),
        "layer_norm_eps": (1e-5,),
        "normalize_before": (False,),
        "eval_size": (None,),
        "learn_initial_query": (False,),
        "with_box_refine": (True,),
        "use_focal_loss": (True,),
        "dropout": (0.0,),
        "activation_dropout": (0.0,),
        "attention_dropout": (0.0,),
        "activation_function": ("silu",) if fine else tuple(ACTIVATIONS),
        "encoder_activation_function": tuple(ACTIVATIONS),
        "decoder_activation_function": tuple(ACTIVATIONS),
    }
    found = [(name, getattr(config, name), values) for name, values in allowed.items()]
    found.append(("encode_proj_layers", list(config.encode_proj_layers), ([levels - 1],)))
    found.append(("the number of decoder_in_channels", len(config.decoder_in_channels), (levels,)))
    if hasattr(config, "decoder_n_levels"):
        found.append(("decoder_n_levels", config.decoder_n_levels, (levels,)))
    if not config.auxiliary_loss:  # then noised queries have no loss there
        found.append(("num_denoising", config.num_denoising, (0,)))
    if not config.box_noise_scale > 0:  # then there the boxes of noised queries are taken for their logits
        raise ValueError(f"from_transformers: box_noise_scale={config.box_noise_scale}; allowed is above 0")
    if fine:
        found.append(("eval_idx", config.eval_idx, (-1, config.decoder_layers - 1)))
        found.append(("auxiliary_loss", config.auxiliary_loss, (True,)))
    check_fields(found)


def _neck(config: Any, in_channels: tuple[int, ...], *, fine: bool) -> HybridNeck:
    channels, norm = config.encoder_hidden_dim, partial(nn.BatchNorm2d, eps=config.batch_norm_eps)
    activation = ACTIVATIONS[config.activation_function]
    layers = [
        EncoderLayer(
            *(channels, config.encoder_attention_heads),
            hidden=config.encoder_ffn_dim,
            activation=ACTIVATIONS[config.encoder_activation_function],
        )
        for _ in range(config.encoder_layers)
    ]
    convolution = partial(ConvNormActivation, norm=norm, activation=activation)
    if fine:
        width, depth = round(config.hidden_expansion * channels // 2), round(3 * config.depth_mult)
        fuse: Any = partial(ELANBlock, width=width, depth=depth, norm=norm, activation=activation)
        lateral, downsample = partial(convolution, activation=None), partial(separable_downsampling, norm=norm)
    else:
        fuse = partial(CSPRepBlock, expansion=config.hidden_expansion, norm=norm, activation=activation)
        lateral, downsample = convolution, lambda width: convolution(width, width, stride=2)
    positions = GridPositions(channels, temperature=float(config.positional_encoding_temperature))
    return HybridNeck(
        *(in_channels, tuple(config.feat_strides)),
        channels=channels,
        attention=MapAttention(positions, TransformerEncoder(layers)),
        fuse=fuse,
        lateral=lambda width: lateral(width, width, kernel_size=1),
        downsample=downsample,
    )


def _stage(model: Any, *, fine: bool) -> SelectedQueryStage:
    config = model.config
    channels, classes = config.d_model, config.num_labels
    norm = partial(nn.BatchNorm2d, eps=config.batch_norm_eps)
    project = partial(ConvNormActivation, kernel_size=1, norm=norm, activation=None)
    plain = fine and channels == config.decoder_in_channels[-1]
    head = partial(RefinementHead, channels, num_classes=classes, background=False, edge=EDGE)
    embed = nn.Sequential(nn.Linear(channels, channels), nn.LayerNorm(channels))
    matcher = HungarianMatcher(
        class_cost="focal",
        class_weight=float(config.matcher_class_cost),
        l1_weight=float(config.matcher_bbox_cost),
        giou_weight=float(config.matcher_giou_cost),
        alpha=float(config.matcher_alpha),
        gamma=float(config.matcher_gamma),
    )
    criterion = VarifocalSetLoss(
        alpha=float(config.focal_loss_alpha),
        gamma=float(config.focal_loss_gamma),
        class_weight=float(config.weight_loss_vfl),
        l1_weight=float(config.weight_loss_bbox),
        giou_weight=float(config.weight_loss_giou),
    )
    if fine:
        decoder: nn.Module = _edge_decoder(model)
        weights = {"fgl_weight": float(config.weight_loss_fgl), "ddf_weight": float(config.weight_loss_ddf)}
        coder = EdgeCoder(bins=config.max_num_bins, reach=float(config.up), scale=float(config.reg_scale))
        losses: Any = TransformersEdgeLosses(matcher, criterion, EdgeLoss(coder, **weights))
    else:
        layers = [_decoder_layer(config, fine=False) for _ in range(config.decoder_layers)]
        decoder = BoxDecoder(layers, [head() for _ in layers], positions=box_embedding(channels))
        auxiliary = config.auxiliary_loss
        losses = QueryLosses(matcher, criterion, auxiliary=auxiliary, proposals=auxiliary)
    return SelectedQueryStage(
        encoder=LevelProjection(
            [nn.Identity() if plain else project(width, channels) for width in config.decoder_in_channels]
        ),
        selection=QuerySelection(embed, head(), count=config.num_queries),
        decoder=decoder,
        denoising=_denoising(config),
        losses=losses,
        postprocess=SetPostprocess(max_detections=config.num_queries, every_class=True),
    )


def _denoising(config: Any) -> DenoisingQueries | None:
    if not config.num_denoising:
        return None
    return DenoisingQueries(
        *(config.num_labels, config.d_model),
        groups=config.num_denoising,
        label_noise=config.label_noise_ratio / 2,
        box_noise=float(config.box_noise_scale),
        max_queries=2 * config.num_denoising,
        contrastive=True,
    )


def _decoder_layer(config: Any, *, fine: bool) -> DeformableDecoderLayer:
    channels, heads, levels = config.d_model, config.decoder_attention_heads, config.num_feature_levels
    look = DeformableAttention(
        *(channels, heads),
        levels=levels,
        points=config.decoder_n_points,
        offset_scale=float(getattr(config, "decoder_offset_scale", 0.5)),
        discrete=getattr(config, "decoder_method", "default") == "discrete",
        projected=not fine,
    )
    return DeformableDecoderLayer(
        *(channels, heads),
        hidden=config.decoder_ffn_dim,
        memory_attention=look,
        activation=ACTIVATIONS[config.decoder_activation_function],
        memory_residual=GatedResidual(channels) if fine else None,
    )


def _edge_decoder(model: Any) -> EdgeDecoder:
    config, channels = model.config, model.config.d_model
    bins, decoder = config.max_num_bins, model.model.decoder
    quality = partial(
        QualityEstimator,
        bins=bins,
        top=config.top_prob_values,
        hidden=config.lqe_hidden_dim,
        depth=config.lqe_layers,
    )
    layers = [_decoder_layer(config, fine=True) for _ in range(config.decoder_layers)]
    return EdgeDecoder(
        layers,
        [EdgeHead(channels, num_classes=config.num_labels, bins=bins, quality=quality()) for _ in layers],
        positions=box_embedding(channels).append(nn.Hardtanh(-10, 10)),
        initial=small_net(channels, channels, 4, 3),
        coder=EdgeCoder(bins=bins, reach=abs(float(decoder.up)), scale=abs(float(decoder.reg_scale))),
        edge=EDGE,
    )


_ATTENTION = (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("output", "o_proj"))
_LAYER = (
    *((f"attention.{ours}.", f"self_attn.{theirs}.") for ours, theirs in _ATTENTION),
    ("attention_residual.norm.", "self_attn_layer_norm."),
    ("feed_forward_residual.norm.", "final_layer_norm."),
)
_LOOK = (
    ("memory_attention.offsets.", "encoder_attn.sampling_offsets."),
    ("memory_attention.weights.", "encoder_attn.attention_weights."),
    ("memory_attention.value.", "encoder_attn.value_proj."),
    ("memory_attention.output.", "encoder_attn.output_proj."),
)
_BLOCK = (("deep.", "conv1."), ("short.", "conv2."), ("output.", "conv3."))
_ELAN = (("input.", "conv1."), ("first.1.", "conv2."), ("second.1.", "conv3."), ("output.", "conv4."))


def _renames(detector: Detector, stage: str) -> list[Rename]:
    """All rules for a detector of this kind, whose stage has that name."""
    trunk, objects = cast(nn.Sequential, detector.trunk), cast(Any, detector.stages[stage])
    fine = isinstance(objects.decoder, EdgeDecoder)
    rules = backbone_renames(trunk[0], "model.backbone.model.", "trunk.0.")
    pairs = [*_neck_pairs(cast(HybridNeck, trunk[1]), fine=fine)]
    pairs += [(theirs, f"{stage}.{ours}") for theirs, ours in _stage_pairs(objects.decoder, fine=fine)]
    rules += [Rename(theirs, ours) for theirs, ours in pairs]
    classes = Change(lambda rows: rows[:-1], lambda rows: torch.cat((rows, torch.zeros_like(rows[:1]))))
    rules.append(Rename("model.denoising_class_embed.weight", f"{stage}.denoising.labels.weight", classes))
    dropped = ["class_embed.", "bbox_embed.", "model.decoder.up", "model.decoder.reg_scale"]
    for i in range(len(objects.decoder.layers)):
        dropped += [f"model.decoder.layers.{i}.encoder_attn.{name}" for name in ("n_points_scale", "num_points_scale")]
    return [*(Rename(key, None) for key in dropped), *rules]


def _neck_pairs(neck: HybridNeck, *, fine: bool) -> Iterator[tuple[str, str]]:
    yield "model.encoder_input_proj.", "trunk.1.projections."
    attention = cast(MapAttention, neck.attention)
    for i in range(len(attention.encoder.layers)):
        yield from _layer_pairs(
            f"model.encoder.aifi.0.layers.{i}.", f"trunk.1.attention.encoder.layers.{i}.", fine=fine
        )
    for i in range(len(neck.down)):
        yield from _convolution(f"model.encoder.lateral_convs.{i}.", f"trunk.1.laterals.{i}.")
        theirs, ours = f"model.encoder.downsample_convs.{i}.", f"trunk.1.downsamples.{i}."
        halves = [(f"{theirs}conv{k + 1}.", f"{ours}{k}.") for k in range(2)] if fine else [(theirs, ours)]
        for half in halves:
            yield from _convolution(*half)
        for kind, name in (("fpn_blocks", "down"), ("pan_blocks", "up")):
            block = neck.get_submodule(f"{name}.{i}")
            yield from _fuse_pairs(block, f"model.encoder.{kind}.{i}.", f"trunk.1.{name}.{i}.")


def _fuse_pairs(block: nn.Module, theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    if isinstance(block, ELANBlock):
        for own, other in _ELAN:
            yield from _convolution(theirs + other, ours + own)
        for k, part in enumerate((block.first, block.second)):
            yield from _fuse_pairs(part[0], f"{theirs}csp_rep{k + 1}.", f"{ours}{('first', 'second')[k]}.0.")
        return
    for own, other in _BLOCK:
        yield from _convolution(theirs + other, ours + own)
    for k in range(len(cast(CSPRepBlock, block).blocks)):
        for j, own in enumerate(("wide", "narrow")):
            yield from _convolution(f"{theirs}bottlenecks.{k}.conv{j + 1}.", f"{ours}blocks.{k}.{own}.")


def _stage_pairs(decoder: Any, *, fine: bool) -> Iterator[tuple[str, str]]:
    yield "model.decoder_input_proj.", "encoder.projections."
    yield "model.enc_output.", "selection.embed."
    yield "model.enc_score_head.", "selection.head.logits."
    yield from _net("model.enc_bbox_head.", "selection.head.boxes.")
    yield from _net("model.decoder.query_pos_head.", "decoder.positions.")
    yield from _net("model.decoder.pre_bbox_head.", "decoder.initial.")
    residual = "memory_residual.norm."
    for i in range(len(decoder.layers)):
        theirs, ours = f"model.decoder.layers.{i}.", f"decoder.layers.{i}."
        yield from _layer_pairs(theirs, ours, fine=fine)
        for own, other in _LOOK:
            yield theirs + other, ours + own
        yield f"{theirs}gateway.gate.", f"{ours}memory_residual.gates."
        yield f"{theirs}{'gateway.norm.' if fine else 'encoder_attn_layer_norm.'}", ours + residual
        yield f"model.decoder.class_embed.{i}.", f"decoder.heads.{i}.logits."
        yield from _net(f"model.decoder.bbox_embed.{i}.", f"decoder.heads.{i}.{'edges' if fine else 'boxes'}.")
        yield from _net(f"model.decoder.lqe_layers.{i}.reg_conf.", f"decoder.heads.{i}.quality.net.")


def _layer_pairs(theirs: str, ours: str, *, fine: bool) -> Iterator[tuple[str, str]]:
    for own, other in _LAYER:
        yield theirs + other, ours + own
    for i, own in enumerate(("inner", "outer")):
        yield f"{theirs}mlp.{f'layers.{i}' if fine else f'fc{i + 1}'}.", f"{ours}feed_forward.{own}."


def _net(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    """The linear layers of an MLP, which has an activation after each."""
    for i in range(8):
        yield f"{theirs}layers.{i}.", f"{ours}{2 * i}."


def _convolution(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    yield f"{theirs}conv.", f"{ours}0."
    yield f"{theirs}norm.", f"{ours}1."
