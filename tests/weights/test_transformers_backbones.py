"""Backbones from configurations of transformers: the same maps, both ways, and what is refused."""

from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from detkit.backbones import ResNetBackbone
from detkit.weights.torchvision_trunk import state_to_ours, state_to_theirs
from detkit.weights.transformers_backbones import backbone_from, backbone_renames

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: its backbones were NOT taken over"
)


def resnet(*hidden: int, **settings: Any) -> Any:
    given = {"embedding_size": 8, "hidden_sizes": list(hidden), "depths": [1, 2, 1, 1], "layer_type": "basic"}
    return transformers.RTDetrResNetConfig(**{**given, "out_features": ["stage2", "stage4"], **settings})


def hgnet(**settings: Any) -> Any:
    given = {
        "stem_channels": [3, 8, 8],
        "stage_in_channels": [8, 12, 16, 20],
        "stage_mid_channels": [4] * 4,
        "stage_out_channels": [12, 16, 20, 24],
        "stage_num_blocks": [2, 1, 2, 1],
        "stage_numb_of_layers": [2] * 4,
        "hidden_sizes": [12, 16, 20, 24],
    }
    return transformers.HGNetV2Config(**{**given, "out_features": ["stage1", "stage4"], **settings})


CONFIGS = {
    "basic": lambda: (resnet(8, 8, 16, 24), transformers.RTDetrResNetBackbone),
    "bottleneck": lambda: (
        resnet(16, 16, 24, 32, layer_type="bottleneck", downsample_in_bottleneck=True, downsample_in_first_stage=True),
        transformers.RTDetrResNetBackbone,
    ),
    "hgnet": lambda: (hgnet(), transformers.HGNetV2Backbone),
    "hgnet, affine": lambda: (hgnet(use_learnable_affine_block=True), transformers.HGNetV2Backbone),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_maps_are_the_same_and_weights_go_both_ways(config):
    torch.manual_seed(0)
    settings, kind = config()
    peer = kind(settings).double().eval()
    for parameter in peer.parameters():
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3)
    for name, buffer in peer.named_buffers():
        if buffer.ndim == 1:
            nn.init.uniform_(buffer, *((0.5, 1.5) if name.endswith("var") else (-0.3, 0.3)))
    backbone = backbone_from(settings, frozen=False).double().eval()
    renames = backbone_renames(backbone, "", "")
    backbone.load_state_dict(state_to_ours(peer.state_dict(), renames))
    assert state_to_theirs(backbone.state_dict(), renames).keys() == peer.state_dict().keys()
    images = torch.rand(2, 3, 66, 90, dtype=torch.float64)
    with torch.no_grad():
        for found, expected in zip(backbone(images), peer(images).feature_maps, strict=True):
            torch.testing.assert_close(found, expected)


def test_batch_norms_are_frozen_if_told():
    kinds = {type(part).__name__ for part in backbone_from(resnet(8, 8, 16, 24), frozen=True).modules()}
    assert "FrozenBatchNorm2d" in kinds
    assert "BatchNorm2d" not in kinds


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: resnet(12, 8, 16, 24), r"hidden_sizes\[0\] must be its embedding_size"),
        (lambda: resnet(8, 8, 16, 26, layer_type="bottleneck"), "hidden_sizes holds 26; allowed are multiples of 4"),
        (lambda: resnet(8, 8, 16, 24, hidden_act="gelu"), "backbone_config.hidden_act='gelu'; allowed is 'relu'"),
        (lambda: resnet(8, 8, 16, 24, num_channels=1), "backbone_config.num_channels=1; allowed is 3"),
        (lambda: resnet(8, 8, 16, 24, out_features=["stem", "stage4"]), "the first of backbone_config.out_features="),
        (lambda: resnet(8, 8, 16, 24, out_features=["stage2"]), "the last of backbone_config.out_features='stage2'"),
        (lambda: hgnet(stem_strides=[2, 1, 1, 1, 1]), r"backbone_config.stem_strides=\[2, 1, 1, 1, 1\]; allowed is"),
        (lambda: transformers.ResNetConfig(), "backbone_config.model_type='resnet'; allowed is 'rt_detr_resnet' or"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(config, message):
    with pytest.raises(ValueError, match=rf"^from_transformers: .*{message}"):
        backbone_from(config(), frozen=False)


def test_a_plain_resnet_has_no_counterpart():
    with pytest.raises(ValueError, match="allowed are a ResNetBackbone of variant D and an HGNetBackbone"):
        backbone_renames(ResNetBackbone(resnet18(weights=None)), "", "")
