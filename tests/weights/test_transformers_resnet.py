"""The ResNets under transformers' DETRs: which levels they give, and what of them is refused."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from detkit.weights.torchvision_trunk import state_to_ours, state_to_theirs
from detkit.weights.transformers_resnet import check_fields, is_timm, resnet_levels, resnet_renames, resnet_steps

KEYS = [
    "model.backbone.model.embedder.embedder.convolution.weight",
    "model.backbone.model.encoder.stages.1.layers.0.layer.2.normalization.bias",
    "model.backbone.model.encoder.stages.1.layers.1.shortcut.convolution.weight",
]
OURS = ["trunk.conv1.weight", "trunk.layer2.0.bn3.bias", "trunk.layer2.1.downsample.0.weight"]


def test_keys_go_both_ways():
    there = resnet_renames(KEYS, timm=False, ours=False)
    assert list(state_to_ours(dict.fromkeys(KEYS, torch.zeros(1)), there)) == OURS
    back = resnet_renames(OURS, timm=False, ours=True)
    assert list(state_to_theirs(dict.fromkeys(OURS, torch.zeros(1)), back)) == KEYS
    assert is_timm(["model.backbone.model.conv1.weight"])
    assert not is_timm(KEYS)


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        ({"model_type": "resnet", "out_features": ["stage2", "stage4"]}, ("layer2", "layer4")),
        ({"model_type": "timm_backbone", "out_indices": [2, 3, 4]}, ("layer2", "layer3", "layer4")),
    ],
)
def test_levels_are_those_that_the_configuration_names(backbone, expected):
    model = SimpleNamespace(config=SimpleNamespace(backbone_config=SimpleNamespace(**backbone)))
    assert resnet_levels(model) == expected


def test_steps_are_those_of_the_convolutions():
    model = nn.Module()
    model.model = nn.Module()
    model.model.backbone = nn.Module()
    model.model.backbone.model = nn.Module()
    model.model.backbone.model.conv1 = nn.Conv2d(3, 4, 7, stride=2, dilation=3)
    assert resnet_steps(model, resnet_renames([], timm=True, ours=False)) == {"conv1": (2, 3)}


def test_the_first_field_that_does_not_fit_is_named():
    check_fields([("one", 1, (1, 2))])
    with pytest.raises(ValueError, match="from_transformers: two='x'; allowed is 'a' or 'b'"):
        check_fields([("one", 1, (1,)), ("two", "x", ("a", "b"))])
