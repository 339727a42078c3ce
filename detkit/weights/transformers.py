"""Converts transformers' DETR to a Detector, and a Detector to its state_dict, without importing transformers."""

from typing import Any, cast

from torch import Tensor, nn

from detkit.anchors import HungarianMatcher
from detkit.detectors import Detector, SelectedQueryStage, SetPredictionStage
from detkit.layers import ConditionalDecoder, DecoderLayer, LevelEncoder, MapEncoder
from detkit.losses.set_prediction import SetPredictionLoss
from detkit.weights.detr_layout import OURS, TRANSFORMERS, detector_of, detr_renames, detr_stage_of
from detkit.weights.torchvision_trunk import Rename, adopt, state_to_ours, state_to_theirs
from detkit.weights.transformers_conditional import (
    CONDITIONAL,
    conditional_from_transformers,
    conditional_to_transformers,
)
from detkit.weights.transformers_decoder import DroppedProjection, TransformersDecoder, set_dropout
from detkit.weights.transformers_deformable import DEFORMABLE, deformable_from_transformers, deformable_to_transformers
from detkit.weights.transformers_resnet import (
    ACTIVATIONS,
    check_fields,
    check_resnet,
    is_timm,
    resnet_renames,
    resnet_steps,
)
from detkit.weights.transformers_selected import SELECTED, selected_from_transformers, selected_to_transformers


def from_transformers(model: nn.Module) -> Detector:
    """A Detector with the weights and the behavior of transformers' DETRs; the model itself is not changed.

    ``model`` is a ``DetrForObjectDetection``, ``ConditionalDetrForObjectDetection`` or
    ``DeformableDetrForObjectDetection`` of transformers 5, of any size, on a ResNet from transformers or timm,
    including DC5; or an ``RTDetrForObjectDetection``,
    ``RTDetrV2ForObjectDetection`` or ``DFineForObjectDetection`` on an RTDetrResNet or HGNetV2. Loss weights, dropouts,
    precision, device, frozen parameters and train/eval mode are kept; labels are the model's, and ``categories`` their
    names in its configuration, if it has some. Images are resized as its image processor does, but without PIL's
    filter: to 800 pixels, at most 1333, or 640 x 640. Boxes are clipped to the image.
    With ``auxiliary_loss=True`` transformers normalizes the output of each decoder layer before the next layer, and
    normalizes the last output twice. DETR does not, but the Detector does, because weights trained that way need it.
    For facebook's weights, set ``model.config.auxiliary_loss = False`` first.
    Raises ValueError, naming the field, for another model and for anything that this library has no part for.

    >>> from_transformers(nn.Linear(2, 2))
    Traceback (most recent call last):
    ValueError: from_transformers: model is a Linear; allowed are transformers' DetrForObjectDetection, ...
    """
    detector = _taken(model)
    names = [*cast(Any, model).config.id2label.values()]
    if names != [f"LABEL_{i}" for i in range(len(names))]:  # which transformers makes up where none are given
        detector.categories = tuple(map(str, names))
    return detector


def _taken(model: nn.Module) -> Detector:
    kinds = {kind.__name__ for kind in type(model).__mro__}
    if DEFORMABLE in kinds:
        return deformable_from_transformers(model)
    if CONDITIONAL in kinds:
        return conditional_from_transformers(model)
    if kinds & set(SELECTED):
        return selected_from_transformers(model)
    if "DetrForObjectDetection" not in kinds:
        raise ValueError(
            f"from_transformers: model is a {type(model).__name__}; allowed are transformers' DetrForObjectDetection, "
            f"{', '.join((CONDITIONAL, DEFORMABLE, *SELECTED))}"
        )
    peer: Any = model
    config, state = peer.config, model.state_dict()
    _check(config, peer)
    renames = _renames(list(state), timm=is_timm(state))
    try:
        detector = detector_of(
            state_to_ours(state, renames),
            resnet_steps(peer, renames),
            *_matcher_and_criterion(config),
            heads=(config.encoder_attention_heads, config.decoder_attention_heads),
            activations=(
                ACTIVATIONS[getattr(config.backbone_config, "hidden_act", "relu")],
                ACTIVATIONS[config.activation_function],
            ),
        )
    except (KeyError, ValueError) as error:
        raise ValueError(f"from_transformers: {type(model).__name__} is built unlike DETR's: {error}") from error
    stage = cast(SetPredictionStage, detector.stages["objects"])
    encoder = cast(MapEncoder, stage.encoder)
    projection = cast(nn.Conv2d, encoder.projection)
    encoder.projection = DroppedProjection(projection.in_channels, projection.out_channels, dropout=config.dropout)
    layers = [cast(DecoderLayer, layer) for layer in stage.decoder.layers]
    set_dropout([*encoder.encoder.layers, *layers], config)
    stage.decoder = TransformersDecoder(layers, norm=stage.decoder.norm)
    stage.decoder.auxiliary = config.auxiliary_loss
    return adopt(model, detector, renames, library="transformers")


def to_transformers(detector: Detector, *, timm: bool = False) -> dict[str, Tensor]:
    """The state_dict of ``detector`` under transformers' keys, which the original model loads strictly.

    ``timm`` says whether that model's backbone comes from timm. Works for every detector from :func:`from_transformers`
    and ``detr_from_facebook``, and for the DETR recipes on a ResNet. Values are shared. Raises ValueError for a
    detector that transformers has no model for.

    >>> from detkit.backbones import SmallBackbone
    >>> from detkit.detectors import detr
    >>> to_transformers(detr(2, backbone=SmallBackbone()))
    Traceback (most recent call last):
    ValueError: to_transformers: the trunk is a SmallBackbone; allowed is a ResNetBackbone
    """
    first = next(iter(detector.stages.values()))
    if isinstance(first, SelectedQueryStage) and isinstance(first.encoder, LevelEncoder):
        return deformable_to_transformers(detector, timm=timm)
    if isinstance(first, SetPredictionStage) and isinstance(first.decoder, ConditionalDecoder):
        return conditional_to_transformers(detector, timm=timm)
    if isinstance(first, SelectedQueryStage):
        return selected_to_transformers(detector)
    name, stage = detr_stage_of(detector, "to_transformers")
    if not isinstance(cast(MapEncoder, stage.encoder).encoder.norm, nn.Identity):
        raise ValueError("to_transformers: the encoder normalizes first; transformers' DETR only normalizes last")
    state = detector.state_dict()
    return state_to_theirs(state, _renames(list(state), timm=timm, stage=name))


def _check(config: Any, model: Any) -> None:
    allowed: dict[str, tuple[Any, ...]] = {
        "position_embedding_type": ("sine", "learned"),
        "activation_function": tuple(ACTIVATIONS),
        "encoder_layerdrop": (0.0,),
        "decoder_layerdrop": (0.0,),
    }
    check_fields([(name, getattr(config, name), values) for name, values in allowed.items()])
    check_resnet(model)


def _matcher_and_criterion(config: Any) -> tuple[HungarianMatcher, SetPredictionLoss]:
    matcher = HungarianMatcher(
        class_weight=float(config.class_cost), l1_weight=float(config.bbox_cost), giou_weight=float(config.giou_cost)
    )
    criterion = SetPredictionLoss(
        background_weight=float(config.eos_coefficient),
        l1_weight=float(config.bbox_loss_coefficient),
        giou_weight=float(config.giou_loss_coefficient),
    )
    return matcher, criterion


def _renames(keys: list[str], *, timm: bool, stage: str | None = None) -> list[Rename]:
    """All renaming rules; ``keys`` are this library's if ``stage`` is given, otherwise transformers'."""
    layout = TRANSFORMERS if stage is None else OURS
    rules = detr_renames(keys, layout, other=TRANSFORMERS, stage=stage or "objects")
    return rules + resnet_renames(keys, timm=timm, ours=stage is not None)
