"""The backbones of transformers' RT-DETR and D-FINE, from their configurations: ResNet-D and HGNetV2."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from detkit.backbones import Backbone, HGNetBackbone, HGStage, ResNetBackbone
from detkit.backbones.resnet import LAYERS, deep_stem, pooled_shortcut
from detkit.layers import freeze_batch_norm
from detkit.weights.torchvision_trunk import Rename
from detkit.weights.transformers_resnet import check_fields

_STEM_STRIDES = [2, 1, 1, 2, 1]


def backbone_from(config: Any, *, frozen: bool) -> Backbone:
    """The backbone that a configuration of transformers describes, with random weights; ``frozen``: its batch norms.

    Raises ValueError, naming the field, for another kind and for what this library has no part for.
    """
    builders = {"rt_detr_resnet": _resnet_d, "hgnet_v2": _hgnet}
    check_fields([("backbone_config.model_type", getattr(config, "model_type", None), tuple(builders))])
    check_fields(
        [
            ("backbone_config.num_channels", config.num_channels, (3,)),
            ("backbone_config.hidden_act", config.hidden_act, ("relu",)),
            ("the first of backbone_config.out_features", config.out_features[0], tuple(config.stage_names[1:])),
            ("the last of backbone_config.out_features", config.out_features[-1], (config.stage_names[-1],)),
        ]
    )
    backbone = builders[config.model_type](config, [config.stage_names.index(name) - 1 for name in config.out_features])
    return freeze_batch_norm(backbone) if frozen else backbone  # pyright: ignore[reportReturnType]


def backbone_renames(backbone: nn.Module, theirs: str, ours: str) -> list[Rename]:
    """The rules for a backbone of :func:`backbone_from` whose keys begin so. Raises ValueError for another one.

    >>> from detkit.backbones import SmallBackbone
    >>> backbone_renames(SmallBackbone(), "model.backbone.model.", "trunk.0.")
    Traceback (most recent call last):
    ValueError: to_transformers: the backbone is a SmallBackbone; allowed are a ResNetBackbone of variant D and ...
    """
    if isinstance(backbone, HGNetBackbone):
        pairs = _hgnet_pairs(backbone)
    elif isinstance(backbone, ResNetBackbone) and isinstance(backbone.conv1, nn.Sequential):
        pairs = _resnet_pairs(backbone)
    else:
        raise ValueError(
            f"to_transformers: the backbone is a {type(backbone).__name__}; allowed are a ResNetBackbone of variant D "
            "and an HGNetBackbone"
        )
    return [Rename(theirs + old, ours + new) for old, new in pairs]


def _resnet_d(config: Any, levels: list[int]) -> ResNetBackbone:
    with torch.device("meta"):
        model: Any = ResNet(BasicBlock, [1, 1, 1, 1])  # a shell: every layer that is read is replaced
    check_fields([("the number of backbone_config.depths", len(config.depths), (1, 2, 3, 4))])
    model.conv1, model.bn1 = deep_stem(3, config.embedding_size), nn.BatchNorm2d(config.embedding_size)
    before = config.embedding_size
    for i, (depth, after) in enumerate(zip(config.depths, config.hidden_sizes, strict=True)):
        stride = 2 if i or config.downsample_in_first_stage else 1
        blocks = [
            _block(config, *((after, after, 1, False) if j else (before, after, stride, True))) for j in range(depth)
        ]
        setattr(model, LAYERS[i], nn.Sequential(*blocks))
        before = after
    return ResNetBackbone(model, levels=[LAYERS[i] for i in levels])


def _block(config: Any, before: int, after: int, stride: int, first: bool) -> nn.Module:
    """A block with the shortcut that transformers gives it: which depends on the kind of block."""
    projected = nn.Sequential(nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after))
    if config.layer_type == "basic":
        if before != after and stride != 2:
            raise ValueError("from_transformers: backbone_config.hidden_sizes[0] must be its embedding_size")
        shortcut = pooled_shortcut(before, after) if before != after else projected if first else None
        return BasicBlock(before, after, stride, shortcut)
    if after % 4:
        raise ValueError(f"from_transformers: backbone_config.hidden_sizes holds {after}; allowed are multiples of 4")
    shortcut = pooled_shortcut(before, after) if stride == 2 else projected if before != after else None
    block = Bottleneck(before, after // 4, stride, shortcut)
    if config.downsample_in_bottleneck:
        block.conv1.stride, block.conv2.stride = (stride, stride), (1, 1)
    return block


def _hgnet(config: Any, levels: list[int]) -> HGNetBackbone:
    check_fields([("backbone_config.stem_strides", list(config.stem_strides), (_STEM_STRIDES,))])
    stages = [
        HGStage(
            config.stage_mid_channels[i],
            config.stage_out_channels[i],
            config.stage_num_blocks[i],
            config.stage_numb_of_layers[i],
            config.stage_kernel_size[i],
            config.stage_light_block[i],
            config.stage_downsample_strides[i] if config.stage_downsample[i] else None,
        )
        for i in range(len(config.stage_in_channels))
    ]
    return HGNetBackbone(
        (config.stem_channels[1], config.stem_channels[2]),
        stages,
        levels=levels,
        affine=config.use_learnable_affine_block,
    )


def _resnet_pairs(backbone: ResNetBackbone) -> Iterator[tuple[str, str]]:
    stem = "embedder.embedder."
    for i in range(2):
        yield from _convolution(f"{stem}{i}.", f"conv1.{3 * i}.", f"conv1.{3 * i + 1}.")
    yield from _convolution(f"{stem}2.", "conv1.6.", "bn1.")
    for i, layer in enumerate(name for name in LAYERS if hasattr(backbone, name)):
        for j, block in enumerate(backbone.get_submodule(layer).children()):
            theirs, ours = f"encoder.stages.{i}.layers.{j}.", f"{layer}.{j}."
            for k in range(3 if isinstance(block, Bottleneck) else 2):
                yield from _convolution(f"{theirs}layer.{k}.", f"{ours}conv{k + 1}.", f"{ours}bn{k + 1}.")
            pooled = block.downsample is not None and len(block.downsample) == 3  # pyright: ignore
            shortcut = f"{theirs}shortcut.1." if pooled else f"{theirs}shortcut."
            yield from _convolution(
                shortcut, f"{ours}downsample.{1 if pooled else 0}.", f"{ours}downsample.{2 if pooled else 1}."
            )


def _hgnet_pairs(backbone: HGNetBackbone) -> Iterator[tuple[str, str]]:
    stem = {"stem1": "first", "stem2a": "second", "stem2b": "third", "stem3": "fourth", "stem4": "last"}
    for theirs, ours in stem.items():
        yield from _layer(f"embedder.{theirs}.", f"stem.{ours}.")
    for i, stage in enumerate(backbone.stages):
        theirs, ours = f"encoder.stages.{i}.", f"stages.{i}."
        parts = list(stage.children())
        strided = int(isinstance(parts[0], nn.Sequential))
        if strided:
            yield from _layer(f"{theirs}downsample.", f"{ours}0.")
        for j, block in enumerate(parts[strided:]):
            yield from _block_pairs(block, f"{theirs}blocks.{j}.", f"{ours}{j + strided}.")


def _block_pairs(block: Any, theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    for k, layer in enumerate(block.layers):
        if isinstance(layer[0], nn.Sequential):
            for half in range(2):
                yield from _layer(f"{theirs}layers.{k}.conv{half + 1}.", f"{ours}layers.{k}.{half}.")
        else:
            yield from _layer(f"{theirs}layers.{k}.", f"{ours}layers.{k}.")
    for k, name in enumerate(("squeeze", "widen")):
        yield from _layer(f"{theirs}aggregation.{k}.", f"{ours}{name}.")


def _convolution(theirs: str, convolution: str, norm: str) -> list[tuple[str, str]]:
    return [(f"{theirs}convolution.", convolution), (f"{theirs}normalization.", norm)]


def _layer(theirs: str, ours: str) -> list[tuple[str, str]]:
    return [*_convolution(theirs, f"{ours}0.", f"{ours}1."), (f"{theirs}lab.", f"{ours}3.")]
