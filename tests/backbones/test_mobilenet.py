"""MobileNets cut where SSDlite reads them: in the last block with a stride, behind its expansion."""

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v2, mobilenet_v3_large, mobilenet_v3_small, resnet18

from detkit.backbones import mobilenet_backbone, vgg_features


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "channels"),
    [(mobilenet_v2, (576, 1280)), (mobilenet_v3_small, (288, 576)), (mobilenet_v3_large, (672, 960))],
)
def test_levels_are_the_last_expansion_at_stride_16_and_the_end(model, channels):
    features = model(weights=None).features.eval()
    backbone = mobilenet_backbone(features).eval()
    assert (backbone.out_channels, backbone.strides) == (channels, (16, 32))
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        middle, last = backbone(images)
        assert torch.equal(last, features(images))
    assert middle.shape == (1, channels[0], 4, 6)
    assert last.shape == (1, channels[1], 2, 3)


@pytest.mark.slow
def test_layers_are_shared_not_copied():
    features = mobilenet_v3_small(weights=None).features
    theirs, ours = features.parameters(), mobilenet_backbone(features).parameters()
    assert {id(weights) for weights in theirs} == {id(weights) for weights in ours}


@pytest.mark.parametrize(
    "features", [vgg_features(), nn.Sequential(), nn.Sequential(*resnet18(weights=None).children())[:8]]
)
def test_layers_of_another_kind_are_refused(features):
    with pytest.raises(ValueError, match=r"mobilenet_backbone: features are .*; allowed .* torchvision MobileNet"):
        mobilenet_backbone(features)
