"""What every backbone promises, checked on one of each kind."""

from functools import partial

import pytest
import timm
import torch
from torch import nn
from torchvision.models import mobilenet_v3_small, resnet18, resnet50

from detkit.backbones import (
    ResNetBackbone,
    SmallBackbone,
    SSDVGGBackbone,
    TimmBackbone,
    TorchvisionBackbone,
    darknet19_backbone,
    darknet53_backbone,
    mobilenet_backbone,
    residual_backbone,
    ssd7_backbone,
    tiny_darknet_backbone,
    tiny_ssd_backbone,
    tiny_yolo_v1_backbone,
    vgg_backbone,
    vgg_features,
    yolo_v1_backbone,
)

GROUP_NORM = partial(nn.GroupNorm, 4)


def timm_backbone(name, **settings):
    return TimmBackbone(timm.create_model(name, pretrained=False, features_only=True, **settings))


BACKBONES = {
    "small": SmallBackbone,
    "small, stride 2, group norm": partial(SmallBackbone, (8, 12), stem_stride=2, norm=GROUP_NORM),
    "small, two levels": partial(SmallBackbone, (8, 12, 16, 20), levels=(1, 2), blocks=2),
    "darknet53": partial(darknet53_backbone, width=4),
    "darknet19": partial(darknet19_backbone, width=4),
    "darknet tiny": partial(tiny_darknet_backbone, width=4),
    "yolo v1": partial(yolo_v1_backbone, width=4),
    "yolo v1 tiny": partial(tiny_yolo_v1_backbone, width=4),
    "residual": residual_backbone,
    "ssd7": ssd7_backbone,
    "ssd vgg": lambda: SSDVGGBackbone(vgg_features()),
    "vgg": lambda: vgg_backbone(vgg_features(), levels=(1, 3)),
    "resnet18": lambda: ResNetBackbone(resnet18(weights=None), levels=("layer1", "layer3")),
    "resnet18, group norm": lambda: ResNetBackbone(resnet18(weights=None, norm_layer=GROUP_NORM)),
    "resnet50, dilated": lambda: ResNetBackbone(
        resnet50(weights=None, replace_stride_with_dilation=[False, False, True]), frozen_norm=True
    ),
    "torchvision mobilenet": lambda: TorchvisionBackbone(
        mobilenet_v3_small(weights=None), nodes=["features.3", "features.8", "features.12"]
    ),
    "mobilenet": lambda: mobilenet_backbone(mobilenet_v3_small(weights=None).features),
    "timm resnet": partial(timm_backbone, "resnet10t", out_indices=(2, 3, 4)),
    "timm mobilenet": partial(timm_backbone, "mobilenetv3_small_050"),
}


@pytest.fixture(scope="module", params=BACKBONES)
def backbone(request):
    torch.manual_seed(0)
    return BACKBONES[request.param]()


@pytest.mark.slow
@pytest.mark.parametrize("size", [(64, 96), (97, 70), (65, 127)])
def test_levels_have_the_declared_channels_and_strides(backbone, size):
    with torch.no_grad():
        levels = backbone.eval()(torch.rand(2, 3, *size))
    assert [level.shape[:2] for level in levels] == [(2, channels) for channels in backbone.out_channels]
    for level, stride in zip(levels, backbone.strides, strict=True):
        for cells, pixels in zip(level.shape[2:], size, strict=True):
            assert pixels // stride <= cells <= -(-pixels // stride)


@pytest.mark.slow
def test_every_parameter_gets_a_gradient(backbone):
    backbone.train().zero_grad()
    levels = backbone(torch.rand(2, 3, 72, 96))
    sum(level.square().mean() for level in levels).backward()
    missing = [name for name, parameter in backbone.named_parameters() if parameter.grad is None]
    dead = [name for name, parameter in backbone.named_parameters() if not parameter.grad.isfinite().all()]
    assert (missing, dead) == ([], [])


@pytest.mark.slow
def test_evaluation_changes_no_statistics_and_repeats_itself(backbone):
    state = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    with torch.no_grad():
        first, second = (backbone.eval()(torch.ones(2, 3, 64, 64))[-1] for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(buffer, state[name]) for name, buffer in backbone.named_buffers())


@pytest.mark.parametrize(
    ("images", "came"),
    [
        (torch.zeros(2, 1, 64, 64), r"shape \(2, 1, 64, 64\)"),
        (torch.zeros(2, 4, 64, 64, dtype=torch.float64), r"shape \(2, 4, 64, 64\)"),
    ],
)
def test_images_of_other_channels_are_refused_by_name(backbone, images, came):
    with pytest.raises(ValueError, match=rf"{type(backbone).__name__}: images have {came}.*\(B, 3, H, W\)"):
        backbone(images)


def test_integer_images_are_refused():
    with pytest.raises(ValueError, match=r"dtype torch\.uint8; allowed is floating point"):
        SmallBackbone((4,)).check_images(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def test_tiny_ssd_ends_in_one_cell_at_every_size():
    backbone = tiny_ssd_backbone().eval()
    assert (backbone.out_channels, backbone.strides) == ((64, 128, 128, 128, 128), (8, 16, 32, 64, 256))
    for size, expected in {
        (256, 256): [(32, 32), (16, 16), (8, 8), (4, 4), (1, 1)],
        (130, 200): [(16, 25), (8, 12), (4, 6), (2, 3), (1, 1)],
    }.items():
        levels = backbone(torch.rand(2, 3, *size))
        assert [tuple(level.shape) for level in levels] == [
            (2, channels, *cells) for channels, cells in zip(backbone.out_channels, expected, strict=True)
        ]
