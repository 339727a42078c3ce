"""Two published face detectors, written with torch's functions from the names and shapes of their tensors.

They call nothing of detkit, and keep the file's keys and its order of classes: (background, face).
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]


class Outputs(NamedTuple):
    """What a network says of each of its N anchors; anchors are center x, center y, width, height in its input."""

    logits: Tensor
    deltas: Tensor
    points: Tensor | None
    anchors: Tensor


def layer(state: State, features: Tensor, key: str, norm: str = "", *, stride=1, dilation=1, relu=True) -> Tensor:
    """A convolution, with its norm where one is named, and a ReLU."""
    weight, bias = state[f"{key}.weight"], state.get(f"{key}.bias")
    padding, groups = dilation * (weight.shape[-1] // 2), features.shape[1] // weight.shape[1]
    features = F.conv2d(features, weight, bias, stride, padding, dilation, groups)
    if norm:
        moments = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        features = F.batch_norm(features, *moments, state[f"{norm}.weight"], state[f"{norm}.bias"])
    return features.relu() if relu else features


def block(state: State, features: Tensor, key: str, *, stride: int) -> Tensor:
    return layer(state, layer(state, features, f"{key}.0", f"{key}.1", stride=stride), f"{key}.3", f"{key}.4")


def receptive_fields(state: State, features: Tensor) -> Tensor:
    def unit(given: Tensor, name: str, **settings) -> Tensor:
        return layer(state, given, f"base_net.7.{name}.conv", f"base_net.7.{name}.bn", **settings)

    branches = []
    for branch, depth, dilation in (("branch0", 3, 2), ("branch1", 3, 3), ("branch2", 4, 5)):
        own = unit(features, f"{branch}.0", relu=False)
        for i in range(1, depth - 1):
            own = unit(own, f"{branch}.{i}")
        branches.append(unit(own, f"{branch}.{depth - 1}", dilation=dilation, relu=False))
    mixed = unit(torch.cat(branches, 1), "ConvLinear", relu=False)
    return (mixed + unit(features, "shortcut", relu=False)).relu()


def rows(maps: list[Tensor], outputs: int) -> Tensor:
    return torch.cat([level.permute(0, 2, 3, 1).reshape(-1, outputs) for level in maps])


def lay(levels: list[Tensor], sides: tuple[tuple[int, ...], ...], height: int, width: int) -> Tensor:
    """One anchor after the other; none is larger than the picture."""
    anchors = []
    for level, own in zip(levels, sides, strict=True):
        down, across = height / level.shape[2], width / level.shape[3]
        for row in range(level.shape[2]):
            for column in range(level.shape[3]):
                center = ((column + 0.5) * across, (row + 0.5) * down)
                anchors += [(*center, min(side, width), min(side, height)) for side in own]
    return torch.tensor(anchors)


def ultra_light(state: State, image: Tensor) -> Outputs:
    """``image`` (3, H, W), red, green, blue in 0..255, which the network sees at 320 x 240."""
    features = (F.interpolate(image.float()[None], (240, 320), mode="bilinear") - 127) / 128
    features, levels = layer(state, features, "base_net.0.0", "base_net.0.1", stride=2), []
    for i in range(1, 13):
        if i == 7:
            features = receptive_fields(state, features)
        else:
            features = block(state, features, f"base_net.{i}", stride=2 if i in (2, 4, 8, 11) else 1)
        if i in (7, 10, 12):
            levels.append(features)
    features = layer(state, layer(state, features, "extras.0.0"), "extras.0.2.0", stride=2)
    levels.append(layer(state, features, "extras.0.2.2"))

    def predicted(kind: str) -> list[Tensor]:
        keys = [f"{kind}_headers.{i}" for i in range(3)]
        inner = [layer(state, level, f"{key}.0") for key, level in zip(keys, levels[:3], strict=True)]
        maps = [layer(state, level, f"{key}.2", relu=False) for key, level in zip(keys, inner, strict=True)]
        return [*maps, layer(state, levels[3], f"{kind}_headers.3", relu=False)]

    anchors = lay(levels, ((10, 16, 24), (32, 48), (64, 96), (128, 192, 256)), 240, 320)
    return Outputs(rows(predicted("classification"), 2), rows(predicted("regression"), 4), None, anchors)


def retinaface(state: State, image: Tensor) -> Outputs:
    """``image`` (3, H, W), red, green, blue in 0..255; what is missing to a multiple of 32 is as the mean color."""
    features = image.float().flip(0)[None] - torch.tensor([104.0, 117.0, 123.0]).view(3, 1, 1)
    features = F.pad(features, (0, -image.shape[2] % 32, 0, -image.shape[1] % 32))
    height, width = features.shape[2:]
    features, levels = layer(state, features, "body.stage1.0.0", "body.stage1.0.1", stride=2), []
    for stage, blocks, halving in ((1, range(1, 6), (2, 4)), (2, range(6), (0,)), (3, range(2), (0,))):
        for i in blocks:
            features = block(state, features, f"body.stage{stage}.{i}", stride=2 if i in halving else 1)
        levels.append(features)
    levels = [layer(state, level, f"fpn.output{i}.0", f"fpn.output{i}.1") for i, level in enumerate(levels, 1)]
    for i in (2, 1):
        coarser = levels[i].repeat_interleave(2, 2).repeat_interleave(2, 3)
        levels[i - 1] = layer(state, levels[i - 1] + coarser, f"fpn.merge{i}.0", f"fpn.merge{i}.1")
    levels = [context(state, level, f"ssh{i}") for i, level in enumerate(levels, 1)]

    def predicted(head: str) -> list[Tensor]:
        return [layer(state, level, f"{head}.{i}.conv1x1", relu=False) for i, level in enumerate(levels)]

    logits, deltas, points = rows(predicted("ClassHead"), 2), rows(predicted("BboxHead"), 4), predicted("LandmarkHead")
    anchors = lay(levels, ((10, 20), (32, 64), (128, 256)), height, width)
    return Outputs(logits, deltas, rows(points, 10), anchors)


def context(state: State, level: Tensor, key: str) -> Tensor:
    def unit(given: Tensor, name: str, *, relu: bool) -> Tensor:
        return layer(state, given, f"{key}.{name}.0", f"{key}.{name}.1", relu=relu)

    shared = unit(level, "conv5X5_1", relu=True)
    far = unit(unit(shared, "conv7X7_2", relu=True), "conv7x7_3", relu=False)
    return torch.cat((unit(level, "conv3X3", relu=False), unit(shared, "conv5X5_2", relu=False), far), 1).relu()
