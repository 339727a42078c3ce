"""Shared code to convert both published forms of DETR: key tables, and a detector built from the weight shapes."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from detkit.anchors import HungarianMatcher
from detkit.backbones import ResNetBackbone
from detkit.detectors import Detector, Preprocess, SetPostprocess, SetPredictionStage
from detkit.heads.set_prediction import SetPredictionHead
from detkit.layers import (
    DecoderLayer,
    EncoderLayer,
    LearnedPositions,
    MapEncoder,
    SinePositions,
    TransformerDecoder,
    TransformerEncoder,
)
from detkit.losses.set_prediction import SetPredictionLoss
from detkit.weights.torchvision_trunk import Rename

STAGE = "objects"
"""The name of the stage in a detector converted from published weights."""

Step = tuple[int, int]
"""Stride and dilation of a convolution."""


class Layout(NamedTuple):
    """A column of the key tables and its prefixes: this library's, those of transformers' model, or facebook's."""

    column: int
    encoder: str
    decoder: str


OURS = Layout(0, f"{STAGE}.encoder.encoder.", f"{STAGE}.decoder.")
TRANSFORMERS = Layout(1, "model.encoder.", "model.decoder.")
FACEBOOK = Layout(2, "transformer.encoder.", "transformer.decoder.")

_WHOLE = (
    ("encoder.projection.", "model.input_projection.", "input_proj."),
    ("queries.", "model.query_position_embeddings.", "query_embed."),
    ("encoder.positions.rows.", "model.position_embedding.row_embeddings.", "backbone.1.row_embed."),
    ("encoder.positions.columns.", "model.position_embedding.column_embeddings.", "backbone.1.col_embed."),
    (
        "encoder.encoder.norm.",
        "model.encoder.layernorm.",
        "transformer.encoder.norm.",
    ),  # normalizing first
    ("decoder.norm.", "model.decoder.layernorm.", "transformer.decoder.norm."),
    ("head.logits.", "class_labels_classifier.", "class_embed."),
    *((f"head.boxes.{2 * i}.", f"bbox_predictor.layers.{i}.", f"bbox_embed.layers.{i}.") for i in range(3)),
)


def _attention(ours: str, transformers: str, facebook: str) -> list[tuple[str, str, str]]:
    parts = [(part, f"{part[0]}_proj", f"{part[0]}_proj") for part in ("query", "key", "value")]
    parts.append(("output", "o_proj", "out_proj"))
    return [(f"{ours}.{a}.", f"{transformers}.{b}.", f"{facebook}.{c}.") for a, b, c in parts]


_ENCODER = (
    *_attention("attention", "self_attn", "self_attn"),
    ("attention_residual.norm.", "self_attn_layer_norm.", "norm1."),
    ("feed_forward.inner.", "mlp.fc1.", "linear1."),
    ("feed_forward.outer.", "mlp.fc2.", "linear2."),
    ("feed_forward_residual.norm.", "final_layer_norm.", "norm2."),
)
_DECODER = (
    *_ENCODER[:-1],
    *_attention("memory_attention", "encoder_attn", "multihead_attn"),
    ("memory_residual.norm.", "encoder_attn_layer_norm.", "norm2."),
    ("feed_forward_residual.norm.", "final_layer_norm.", "norm3."),
)


def detr_renames(keys: Iterable[str], layout: Layout, *, other: Layout, stage: str = STAGE) -> list[Rename]:
    """Rules between ``other``'s keys and this library's, for all but the backbone; ``keys`` are in ``layout``.

    ``stage`` is the name of the detector's stage.

    >>> rule = detr_renames(["transformer.decoder.layers.0.norm3.bias"], FACEBOOK, other=FACEBOOK)[-1]
    >>> rule.theirs, rule.ours
    ('transformer.decoder.layers.0.norm3.', 'objects.decoder.layers.0.feed_forward_residual.norm.')
    """
    keys, column = list(keys), other.column
    rules = [Rename(row[column], f"{stage}.{row[0]}") for row in _WHOLE]
    for place, ours, own, rows in (
        (other.encoder, OURS.encoder, layout.encoder, _ENCODER),
        (other.decoder, OURS.decoder, layout.decoder, _DECODER),
    ):
        ours = ours.replace(STAGE, stage)
        own = ours if layout is OURS else own
        for i in range(count(keys, f"{own}layers.")):
            rules += [Rename(f"{place}layers.{i}.{row[column]}", f"{ours}layers.{i}.{row[0]}") for row in rows]
    return rules


def count(keys: Iterable[str], prefix: str) -> int:
    """The number of layers that are numbered after ``prefix``.

    >>> count(["layers.0.bias", "layers.11.bias", "norm.bias"], "layers.")
    12
    """
    found = (re.match(r"\d+", key[len(prefix) :]) for key in keys if key.startswith(prefix))
    return max((int(number[0]) + 1 for number in found if number), default=0)


def detector_of(
    state: Mapping[str, Tensor],
    steps: Mapping[str, Step],
    matcher: HungarianMatcher,
    criterion: SetPredictionLoss,
    *,
    heads: tuple[int, int],
    activations: tuple[Callable[[], nn.Module], Callable[[], nn.Module]] = (nn.ReLU, nn.ReLU),
) -> Detector:
    """A DETR whose parts have the sizes of ``state``, given under this library's keys; weights are not loaded yet.

    ``steps`` gives the stride and dilation of the backbone's convolutions by name; ``heads`` are those of the encoder
    and the decoder, ``activations`` those of the backbone and the transformer.
    """
    queries, channels = state[f"{STAGE}.queries.weight"].shape
    backbone = resnet_of(
        {key[6:]: value for key, value in state.items() if key.startswith("trunk.")}, steps, activations[0]
    )
    norm_first = f"{OURS.encoder}norm.weight" in state
    layers = [
        _layers(state, place, build, heads[i], activations[1], norm_first) for i, (place, build) in enumerate(_SIDES)
    ]
    stage = SetPredictionStage(
        encoder=MapEncoder(
            nn.Conv2d(backbone.out_channels[-1], channels, 1),
            positions=_positions(state, channels),
            encoder=TransformerEncoder(layers[0], norm=nn.LayerNorm(channels) if norm_first else None),
        ),
        decoder=TransformerDecoder(layers[1], norm=nn.LayerNorm(channels)),
        queries=nn.Embedding(queries, channels),
        head=SetPredictionHead(channels, num_classes=len(state[f"{STAGE}.head.logits.bias"]) - 1),
        matcher=matcher,
        criterion=criterion,
        postprocess=SetPostprocess(max_detections=queries),
    )
    return Detector(backbone, preprocess=Preprocess(800, max_size=1333), **{STAGE: stage})


def resnet_of(
    state: Mapping[str, Tensor],
    steps: Mapping[str, Step],
    activation: Callable[[], nn.Module] = nn.ReLU,
    *,
    levels: Sequence[str] | None = None,
) -> ResNetBackbone:
    """torchvision's ResNet with the sizes of ``state`` and frozen batch norm; it gives its deepest map, or ``levels``.

    Blocks may be of either kind, of any width and groups. Raises ValueError if the shapes do not fit a ResNet.

    >>> from torchvision.models import resnet18
    >>> state = resnet18(weights=None).state_dict()
    >>> resnet_of(state, published_steps(state)).out_channels
    (512,)
    """
    depth = next((i for i in range(5) if f"layer{i + 1}.0.conv1.weight" not in state), 5)
    if not 1 <= depth <= 4 or "conv1.weight" not in state:
        raise ValueError(f"the backbone has {depth} stages of residual blocks; allowed are 1 to 4 behind conv1")
    with torch.device("meta"):
        model: Any = ResNet(BasicBlock, [1, 1, 1, 1])  # a shell: every layer that is read is replaced
    stem = state["conv1.weight"]
    model.conv1 = nn.Conv2d(stem.shape[1], len(stem), stem.shape[2], padding=stem.shape[2] // 2, bias=False)
    model.bn1, model.relu = nn.BatchNorm2d(len(stem)), activation()
    for layer in (f"layer{i + 1}" for i in range(depth)):
        blocks = [_block(state, f"{layer}.{i}", steps, activation) for i in range(count(state, f"{layer}."))]
        setattr(model, layer, nn.Sequential(*blocks))
    _step(model.conv1, steps["conv1"])
    return ResNetBackbone(model, levels=levels or (f"layer{depth}",), frozen_norm=True)


def published_steps(state: Mapping[str, Tensor], *, dilated: bool = False) -> dict[str, Step]:
    """Stride and dilation of every convolution in a published ResNet; ``dilated`` for DC5, with a dilated last stage.

    >>> from torchvision.models import resnet50
    >>> steps = published_steps(resnet50(weights=None).state_dict(), dilated=True)
    >>> [steps[f"layer{i}.0.conv2"] for i in (1, 2, 3, 4)], steps["layer4.1.conv2"], steps["layer4.1.conv3"]
    ([(1, 1), (2, 1), (2, 1), (1, 1)], (1, 2), (1, 1))
    """
    steps: dict[str, Step] = {}
    for key in (key for key, value in state.items() if value.ndim == 4):
        name = key.removesuffix(".weight")
        block, _, part = name.partition(".conv")
        if name == "conv1":
            steps[name] = (2, 1)
            continue
        strided = name.endswith("downsample.0") or part == ("2" if f"{block}.conv3.weight" in state else "1")
        stride = 2 if strided and name[:7] in ("layer2.", "layer3.", "layer4.") and name[7:9] == "0." else 1
        if dilated and name.startswith("layer4."):
            first = name[7:9] == "0." and (part == "2" or f"{block}.conv3.weight" not in state)
            steps[name] = (1, 1 if first or state[key].shape[-1] == 1 else 2)
        else:
            steps[name] = (stride, 1)
    return steps


def detr_stage_of(detector: Detector, function: str) -> tuple[str, SetPredictionStage]:
    """The only stage of a detector on a ResNet, and its name. Raises ValueError, naming ``function``, for another.

    >>> from detkit.detectors import detr
    >>> detr_stage_of(detr(2), "to_transformers")[0]
    'objects'
    """
    stages = list(detector.stages.items())
    name, stage = stages[0]
    if len(stages) > 1 or not isinstance(stage, SetPredictionStage):
        kinds = ", ".join(type(stage).__name__ for _, stage in stages)
        raise ValueError(f"{function}: stages are {kinds}; allowed is one SetPredictionStage")
    if not isinstance(detector.trunk, ResNetBackbone):
        raise ValueError(f"{function}: the trunk is a {type(detector.trunk).__name__}; allowed is a ResNetBackbone")
    return name, stage


_SIDES: tuple[tuple[str, Callable[..., Any]], ...] = ((OURS.encoder, EncoderLayer), (OURS.decoder, DecoderLayer))


def _layers(
    state: Mapping[str, Tensor],
    place: str,
    build: Callable[..., Any],
    heads: int,
    activation: Callable[[], nn.Module],
    norm_first: bool,
) -> list[Any]:
    prefix = f"{place}layers."
    layers = []
    for i in range(count(state, prefix)):
        hidden, channels = state[f"{prefix}{i}.feed_forward.inner.weight"].shape
        layers.append(build(channels, heads, hidden=hidden, dropout=0.1, activation=activation, norm_first=norm_first))
    return layers


def _positions(state: Mapping[str, Tensor], channels: int) -> nn.Module:
    learned = [state.get(f"{STAGE}.encoder.positions.{name}.weight") for name in ("rows", "columns")]
    rows, columns = (0 if values is None else len(values) for values in learned)
    return LearnedPositions(channels, size=(rows, columns)) if rows else SinePositions(channels)


def _block(
    state: Mapping[str, Tensor], name: str, steps: Mapping[str, Step], activation: Callable[[], nn.Module]
) -> BasicBlock | Bottleneck:
    """A residual block with the shapes of the state and the stride and dilation of each convolution."""
    shapes = [state[f"{name}.conv{i}.weight"].shape for i in (1, 2, 3) if f"{name}.conv{i}.weight" in state]
    before, width, out = shapes[0][1], shapes[0][0], shapes[-1][0]
    shortcut = f"{name}.downsample.0" in steps
    downsample = nn.Sequential(nn.Conv2d(before, out, 1, bias=False), nn.BatchNorm2d(out)) if shortcut else None
    if len(shapes) == 2:
        block: Any = BasicBlock(before, out, downsample=downsample)
    else:
        if out % 4:
            raise ValueError(f"{name} of the backbone gives out {out} channels; a bottleneck's must be a multiple of 4")
        groups = width // shapes[1][1]
        # torchvision's width is planes * base_width / 64 * groups
        block = Bottleneck(
            before, out // 4, downsample=downsample, groups=groups, base_width=round(256 * width / (groups * out))
        )
    block.relu, block.stride = activation(), 1
    for i in range(len(shapes)):
        _step(getattr(block, f"conv{i + 1}"), steps[f"{name}.conv{i + 1}"])
        block.stride *= steps[f"{name}.conv{i + 1}"][0]
    past = steps[f"{name}.downsample.0"][0] if shortcut else 1
    if past != block.stride:
        raise ValueError(f"{name} of the backbone has stride {block.stride}, what passes it {past}; they must agree")
    if downsample is not None:
        _step(downsample[0], steps[f"{name}.downsample.0"])
    return block


def _step(convolution: Any, step: Step) -> None:
    """Sets stride, dilation, and the padding that preserves the size apart from the stride."""
    stride, dilation = step
    reach = dilation * (convolution.kernel_size[0] // 2)
    convolution.stride, convolution.dilation, convolution.padding = (stride,) * 2, (dilation,) * 2, (reach,) * 2
