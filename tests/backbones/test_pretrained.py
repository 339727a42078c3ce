"""Adapters: what the handed-over model computes, declared right, in channels-first order."""

import importlib.util
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torchvision.models import mobilenet_v3_small, resnet18, swin_t

from detkit import backbones
from detkit.backbones import TimmBackbone, TorchvisionBackbone


def timm_model(name, **settings):
    return timm.create_model(name, pretrained=False, features_only=True, **settings)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("resnet10t", {}),
        ("mobilenetv3_small_050", {"out_indices": (1, 2, 4)}),
        ("convnext_atto", {}),
        ("swin_tiny_patch4_window7_224", {"img_size": 64}),
        ("vit_tiny_patch16_224", {"img_size": 64}),
    ],
)
def test_timm_models_have_the_channels_and_strides_they_declare(name, settings):
    backbone = TimmBackbone(timm_model(name, **settings)).eval()
    with torch.no_grad():
        levels = backbone(torch.rand(1, 3, 64, 64))
    expected = [(1, c, 64 // s, 64 // s) for c, s in zip(backbone.out_channels, backbone.strides, strict=True)]
    assert [tuple(level.shape) for level in levels] == expected


@pytest.mark.slow
def test_channels_last_maps_of_timm_are_permuted():
    model = timm_model("swin_tiny_patch4_window7_224", img_size=64).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for level, raw in zip(TimmBackbone(model)(images), model(images), strict=True):
            assert torch.equal(level[0, :, 1, 0], raw[0, 1, 0, :])


def test_a_timm_model_without_feature_info_is_refused():
    with pytest.raises(ValueError, match="Linear has no feature_info; build it with timm"):
        TimmBackbone(nn.Linear(2, 2))


def test_maps_that_are_not_what_the_model_declared_are_refused():
    model = timm_model("resnet10t", out_indices=(3, 4))
    model.feature_info.out_indices = (2, 3)
    with pytest.raises(ValueError, match=r"feature maps.*channels \(128, 256\)"):
        TimmBackbone(model)(torch.rand(2, 3, 64, 64))


@pytest.mark.parametrize("file", sorted(Path(backbones.__file__).parent.glob("*.py")), ids=lambda file: file.stem)
def test_backbones_import_without_timm(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    spec = importlib.util.spec_from_file_location(f"fresh_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.__doc__


def test_torchvision_nodes_give_the_activations_of_the_model():
    torch.manual_seed(0)
    model = resnet18(weights=None).eval()
    backbone = TorchvisionBackbone(model, nodes=["layer2", "layer4"])
    assert (backbone.out_channels, backbone.strides) == ((128, 512), (8, 32))
    images = torch.rand(1, 3, 70, 64)
    with torch.no_grad():
        middle = model.layer2(model.layer1(model.maxpool(model.relu(model.bn1(model.conv1(images))))))
        levels = backbone(images)
    assert torch.equal(levels[0], middle)
    assert torch.equal(levels[1], model.layer4(model.layer3(middle)))


@pytest.mark.slow
def test_building_changes_neither_mode_nor_statistics_and_shares_the_weights():
    model = mobilenet_v3_small(weights=None).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    backbone = TorchvisionBackbone(model, nodes=["features.3", "features.12"])
    assert backbone.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    shared = {id(parameter) for parameter in model.parameters()}
    assert {id(parameter) for parameter in backbone.parameters()} < shared


@pytest.mark.slow
def test_torchvisions_swin_is_permuted():
    backbone = TorchvisionBackbone(swin_t(weights=None), nodes=["features.1", "features.7"], channels_last=True).eval()
    assert (backbone.out_channels, backbone.strides) == ((96, 768), (4, 32))
    with torch.no_grad():
        levels = backbone(torch.rand(1, 3, 96, 64))
    assert [tuple(level.shape) for level in levels] == [(1, 96, 24, 16), (1, 768, 3, 2)]


def test_a_node_that_is_no_map_is_refused():
    with pytest.raises(ValueError, match=r"nodes \['layer4', 'fc'\] give shapes .*4 dimensions"):
        TorchvisionBackbone(resnet18(weights=None), nodes=["layer4", "fc"])


def test_an_unknown_node_is_refused():
    with pytest.raises(ValueError, match="layer9"):
        TorchvisionBackbone(resnet18(weights=None), nodes=["layer9"])
