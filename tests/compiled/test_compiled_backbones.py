"""Trunks compile without a graph break, follow changing sizes, and export with dynamic height and width."""

from functools import partial

import pytest
import timm
import torch
import torch._dynamo.testing
from torch import nn
from torchvision.models import mobilenet_v3_small, resnet18

from detkit.backbones import (
    Backbone,
    ResNetBackbone,
    SmallBackbone,
    SSDVGGBackbone,
    TimmBackbone,
    TorchvisionBackbone,
    tiny_ssd_backbone,
    vgg_features,
)
from detkit.necks import FPN, SSD300_LEVELS, SSDExtra


def trunk(backbone: Backbone, neck=None) -> nn.Sequential:
    return nn.Sequential(backbone, *([neck(backbone.out_channels, backbone.strides)] if neck else []))


def timm_backbone(name: str, **settings) -> TimmBackbone:
    return TimmBackbone(timm.create_model(name, pretrained=False, features_only=True, **settings))


SHALLOW = (1, 1, 1, 1, 1)
TRUNKS = {
    "small, fpn P6 P7": lambda: trunk(
        SmallBackbone((8, 12), norm=partial(nn.GroupNorm, 2)), partial(FPN, channels=8, extra=2, extra_from="input")
    ),
    "tiny ssd": lambda: trunk(tiny_ssd_backbone()),
    "ssd": lambda: trunk(SSDVGGBackbone(vgg_features(SHALLOW)), partial(SSDExtra, levels=SSD300_LEVELS[:2])),
    "resnet18, frozen norm": lambda: trunk(
        ResNetBackbone(resnet18(weights=None), levels=("layer2",), frozen_norm=True)
    ),
    "torchvision": lambda: trunk(
        TorchvisionBackbone(mobilenet_v3_small(weights=None), nodes=["features.1", "features.3"])
    ),
    "timm, fpn pool": lambda: trunk(timm_backbone("resnet10t", out_indices=(2, 3)), partial(FPN, channels=8, extra=1)),
}
# Two images and more: for one, torch's CPU convolution picks its kernel by size, and guards on it.
SIZES = [(128, 128), (130, 176), (161, 144)]


@pytest.fixture(params=TRUNKS)
def model(request):
    torch.manual_seed(0)
    torch.compiler.reset()
    return TRUNKS[request.param]().eval()


def assert_equal_levels(levels, expected):
    assert len(levels) == len(expected)
    for level, wanted in zip(levels, expected, strict=True):
        torch.testing.assert_close(level, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", ["small, fpn P6 P7", "ssd", "timm, fpn pool"], indirect=True)
def test_it_compiles_whole_and_follows_sizes_without_a_new_graph_for_each(model):
    graphs = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(model, backend=graphs, fullgraph=True)
    with torch.no_grad():
        for size in SIZES:
            images = torch.rand(2, 3, *size)
            assert_equal_levels(compiled(images), model(images))
    assert graphs.frame_count <= 3  # two new graphs at most


@pytest.mark.parametrize("model", ["resnet18, frozen norm"], indirect=True)
def test_it_trains_compiled_as_it_trains_eagerly(model):
    model.train()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    images = torch.rand(2, 3, 128, 128)
    gradients = []
    for run in (model, compiled):
        model.zero_grad()
        sum(level.square().mean() for level in run(images)).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for eager, traced in zip(*gradients, strict=True):
        torch.testing.assert_close(traced, eager, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(torch.__version__.startswith("2.11"), reason="torch 2.11's export guards on the parity of sizes")
def test_it_exports_with_dynamic_height_and_width(model):
    dynamic = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(model, (torch.rand(2, 3, 144, 160),), dynamic_shapes=[dynamic])
    with torch.no_grad():
        for batch, size in zip((2, 3, 4), SIZES, strict=True):
            images = torch.rand(batch, 3, *size)
            assert_equal_levels(program.module()(images), model(images))
