"""The layers of networks by depth: own, torchvision's and timm's, each parameter in one."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from detkit.backbones import ResNetBackbone, TorchvisionBackbone
from detkit.tricks.depth import layers_of

# How many layers a network has: stem, blocks or convolutions, head.
TORCHVISION = {"resnet18": 1 + 8 + 1, "resnet50": 1 + 16 + 1, "vgg11_bn": 8 + 3, "swin_t": 1 + 12 + 3 + 1,
               "convnext_tiny": 1 + 18 + 3 + 1, "mobilenet_v3_small": 1 + 11 + 1 + 2}  # fmt: skip


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_networks_are_stem_blocks_and_head(name):
    with torch.device("meta"):
        model = getattr(torchvision.models, name)()
    layers = layers_of(model)
    assert len(layers) == TORCHVISION[name]
    assert [key for layer in layers for key in layer] == [key for key, _ in model.named_parameters()]


def test_a_norm_belongs_to_the_convolution_before_it():
    layers = layers_of(torchvision.models.resnet18())
    assert layers[0] == ["conv1.weight", "bn1.weight", "bn1.bias"]
    assert {key.rsplit(".", 2)[0] for key in layers[4]} == {"layer2.1"}


@pytest.mark.slow
def test_backbones_have_the_layers_of_what_they_wrap():
    plain = layers_of(torchvision.models.resnet18())[:-1]
    assert layers_of(ResNetBackbone(torchvision.models.resnet18())) == plain
    nodes = ["layer2", "layer4"]
    wrapped = layers_of(TorchvisionBackbone(torchvision.models.resnet18(), nodes=nodes))
    assert [[key.removeprefix("body.") for key in layer] for layer in wrapped] == plain


@pytest.mark.parametrize(("name", "count"), [("vit_tiny_patch16_224", 1 + 12 + 1), ("convnext_atto", 1 + 12 + 1)])
def test_timms_models_group_their_layers_themselves(name, count):
    model = timm.create_model(name, pretrained=False)
    layers = layers_of(model)
    assert len(layers) == count
    assert sorted(key for layer in layers for key in layer) == sorted(key for key, _ in model.named_parameters())
    assert "head.fc.weight" in layers[-1] or "head.weight" in layers[-1]


def test_timms_feature_networks_have_layers_in_order_too():
    model = timm.create_model("resnet10t", pretrained=False, features_only=True)
    assert [layer[0].rsplit(".", 1)[0] for layer in layers_of(model)] == [
        "conv1.0", "conv1.3", "conv1.6", *(f"layer{i}.0.conv1" for i in range(1, 5))
    ]  # fmt: skip


def test_a_network_without_parameters_has_no_layers_and_one_of_norms_has_one():
    assert layers_of(nn.ReLU()) == []
    assert layers_of(nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))) == [
        ["0.weight", "0.bias", "1.weight", "1.bias"]
    ]
    assert layers_of(nn.Linear(1, 1)) == [["weight", "bias"]]
