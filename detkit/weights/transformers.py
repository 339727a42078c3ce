"""Converts transformers' DETR to a Detector, and a Detector to its state_dict, without importing transformers."""

from collections.abc import Sequence
from typing import Any, cast

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from detkit.anchors import HungarianMatcher
from detkit.detectors import Detector, SetPredictionStage
from detkit.layers import DecoderLayer, MapEncoder, TransformerDecoder
from detkit.losses.set_prediction import SetPredictionLoss
from detkit.weights.detr_layout import OURS, TRANSFORMERS, Step, count, detector_of, detr_renames, detr_stage_of
from detkit.weights.torchvision_trunk import Rename, adopt, state_to_ours, state_to_theirs

_ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}
_BACKBONE = "model.backbone.model."
_LEAVES = {"Conv2d", "DetrFrozenBatchNorm2d", "MaxPool2d", "Identity", "ReLU", "GELUActivation", "SiLU", "Tanh"}


def from_transformers(model: nn.Module) -> Detector:
    """A Detector with the weights and the behavior of transformers' DETR; the model itself is not changed.

    ``model`` is a ``DetrForObjectDetection`` of transformers 5, of any size, on a ResNet from transformers or timm,
    including DC5. Loss weights, dropouts, precision, device, frozen parameters and train/eval mode are kept; labels are
    the model's. Images are resized to 800 pixels, at most 1333, as its image processor does but without PIL's filter,
    and boxes are clipped to the image.
    With ``auxiliary_loss=True`` transformers normalizes the output of each decoder layer before the next layer, and
    normalizes the last output twice. DETR does not, but the Detector does, because weights trained that way need it.
    For facebook's weights, set ``model.config.auxiliary_loss = False`` first.
    Raises ValueError, naming the field, for another model and for anything that this library has no part for.

    >>> from_transformers(nn.Linear(2, 2))
    Traceback (most recent call last):
    ValueError: from_transformers: model is a Linear; allowed is transformers' DetrForObjectDetection
    """
    if "DetrForObjectDetection" not in (kind.__name__ for kind in type(model).__mro__):
        raise ValueError(
            f"from_transformers: model is a {type(model).__name__}; allowed is transformers' DetrForObjectDetection"
        )
    peer: Any = model
    config, state = peer.config, model.state_dict()
    _check(config, peer)
    renames = _renames(list(state), timm=f"{_BACKBONE}conv1.weight" in state)
    try:
        detector = detector_of(
            state_to_ours(state, renames),
            _steps(peer, renames),
            *_matcher_and_criterion(config),
            heads=(config.encoder_attention_heads, config.decoder_attention_heads),
            activations=(
                _ACTIVATIONS[getattr(config.backbone_config, "hidden_act", "relu")],
                _ACTIVATIONS[config.activation_function],
            ),
        )
    except (KeyError, ValueError) as error:
        raise ValueError(f"from_transformers: {type(model).__name__} is built unlike DETR's: {error}") from error
    stage = cast(SetPredictionStage, detector.stages["objects"])
    _set_dropout(stage, config)
    layers = [cast(DecoderLayer, layer) for layer in stage.decoder.layers]
    stage.decoder = TransformersDecoder(layers, auxiliary=config.auxiliary_loss, norm=stage.decoder.norm)
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
    name, stage = detr_stage_of(detector, "to_transformers")
    if not isinstance(cast(MapEncoder, stage.encoder).encoder.norm, nn.Identity):
        raise ValueError("to_transformers: the encoder normalizes first; transformers' DETR only normalizes last")
    state = detector.state_dict()
    return state_to_theirs(state, _renames(list(state), timm=timm, stage=name))


class DroppedProjection(nn.Conv2d):
    """A 1 x 1 convolution, then dropout: transformers applies dropout to the encoder's input, which DETR does not.

    >>> DroppedProjection(8, 4, dropout=0.1)
    DroppedProjection(8, 4, kernel_size=(1, 1), stride=(1, 1))
    """

    def __init__(self, in_channels: int, out_channels: int, *, dropout: float) -> None:
        super().__init__(in_channels, out_channels, 1)
        self.dropout = dropout

    def forward(self, input: Float[Tensor, "B D H W"]) -> Float[Tensor, "B E H W"]:
        """The projected cells, with dropout in training mode."""
        return F.dropout(super().forward(input), self.dropout, self.training)


class TransformersDecoder(TransformerDecoder):
    """DETR's decoder as transformers implements it, with its ``auxiliary_loss``.

    Without it, only the last output is returned, so only that one has a loss. With it, every layer starts from the
    normalized output of the previous layer, and the last output is normalized twice.

    >>> TransformersDecoder([DecoderLayer(8, 2, hidden=16)], auxiliary=False, norm=nn.LayerNorm(8)).auxiliary
    False
    """

    def __init__(self, layers: Sequence[DecoderLayer], *, auxiliary: bool, norm: nn.Module) -> None:
        super().__init__(layers, norm=norm)
        self.auxiliary = auxiliary

    def forward(
        self, embeddings: Float[Tensor, "B N D"], memory: Float[Tensor, "B K D"], **rules: Any
    ) -> list[Float[Tensor, "B N D"]]:
        """The normalized outputs that the loss uses; the last one is the output of the decoder."""
        outputs = super().forward(embeddings, memory, **rules)
        return [*outputs[:-1], self.norm(outputs[-1])] if self.auxiliary else outputs[-1:]

    def _handed_on(self, embeddings: Tensor, normalized: Tensor) -> Tensor:
        return normalized if self.auxiliary else embeddings


def _check(config: Any, model: Any) -> None:
    allowed: dict[str, tuple[Any, ...]] = {
        "num_channels": (3,),
        "position_embedding_type": ("sine", "learned"),
        "activation_function": tuple(_ACTIVATIONS),
        "encoder_layerdrop": (0.0,),
        "decoder_layerdrop": (0.0,),
    }
    found = [(name, getattr(config, name), values) for name, values in allowed.items()]
    backbone = config.backbone_config
    found.append(("backbone_config.model_type", backbone.model_type, ("resnet", "timm_backbone")))
    found.append(("backbone_config.hidden_act", getattr(backbone, "hidden_act", "relu"), tuple(_ACTIVATIONS)))
    if backbone.model_type == "resnet":
        last = f"stage{len(backbone.depths)}"
        found.append(("the last of backbone_config.out_features", backbone.out_features[-1], (last,)))
    leaves = {type(part).__name__ for part in model.model.backbone.modules() if not list(part.children())}
    found += [("a layer of the backbone", leaf, tuple(sorted(_LEAVES))) for leaf in sorted(leaves)]
    for name, came, values in found:
        if came not in values:
            raise ValueError(f"from_transformers: {name}={came!r}; allowed is {' or '.join(map(repr, values))}")


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


def _set_dropout(stage: SetPredictionStage, config: Any) -> None:
    """Sets the three dropout rates of transformers, and its additional dropout on the encoder's input."""
    encoder = cast(MapEncoder, stage.encoder)
    projection = cast(nn.Conv2d, encoder.projection)
    encoder.projection = DroppedProjection(projection.in_channels, projection.out_channels, dropout=config.dropout)
    for layer in (*encoder.encoder.layers, *stage.decoder.layers):
        for name, part in layer.named_children():
            if name.endswith("attention"):
                cast(Any, part).dropout = config.attention_dropout
            else:
                rate = config.activation_dropout if name == "feed_forward" else config.dropout
                cast(Any, part).dropout.p = rate


def _steps(model: Any, renames: list[Rename]) -> dict[str, Step]:
    """Stride and dilation of the backbone's convolutions, under this library's names."""
    steps: dict[str, Step] = {}
    for name, part in model.named_modules():
        if isinstance(part, nn.Conv2d) and name.startswith(_BACKBONE):
            (key,) = state_to_ours({f"{name}.weight": part.weight}, renames)
            steps[key.removeprefix("trunk.").removesuffix(".weight")] = (part.stride[0], part.dilation[0])
    return steps


def _renames(keys: list[str], *, timm: bool, stage: str | None = None) -> list[Rename]:
    """All renaming rules; ``keys`` are this library's if ``stage`` is given, otherwise transformers'."""
    layout = TRANSFORMERS if stage is None else OURS
    rules = detr_renames(keys, layout, other=TRANSFORMERS, stage=stage or "objects")
    if timm:
        return [*rules, Rename(_BACKBONE, "trunk.")]
    stem = f"{_BACKBONE}embedder.embedder."
    rules += [Rename(f"{stem}convolution.", "trunk.conv1."), Rename(f"{stem}normalization.", "trunk.bn1.")]
    for i in range(4):
        theirs, ours = f"{_BACKBONE}encoder.stages.{i}.layers.", f"trunk.layer{i + 1}."
        for block in range(count(keys, theirs if stage is None else ours)):
            rules += _block_renames(f"{theirs}{block}.", f"{ours}{block}.")
    return rules


def _block_renames(theirs: str, ours: str) -> list[Rename]:
    parts = [(f"layer.{i}.", f"conv{i + 1}.", f"bn{i + 1}.") for i in range(3)]
    parts.append(("shortcut.", "downsample.0.", "downsample.1."))
    rules = [(f"{part}convolution.", convolution) for part, convolution, _ in parts]
    rules += [(f"{part}normalization.", norm) for part, _, norm in parts]
    return [Rename(theirs + old, ours + new) for old, new in rules]
