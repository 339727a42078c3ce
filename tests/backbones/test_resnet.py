"""ResNets handed over: same maps as torchvision's, right strides when dilated, frozen when told."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet18, resnet34, resnet50, resnext50_32x4d, wide_resnet50_2
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from detkit.backbones import ResNetBackbone, resnet_d


def on_meta(build, **settings):
    with torch.device("meta"):
        return build(weights=None, **settings)


@pytest.mark.parametrize(
    ("build", "dilated", "strides"),
    [
        (resnet18, (False, False, False), (4, 8, 16, 32)),
        (resnet34, (False, False, False), (4, 8, 16, 32)),
        (resnet50, (False, False, False), (4, 8, 16, 32)),
        (resnet50, (False, False, True), (4, 8, 16, 16)),
        (resnet50, (False, True, True), (4, 8, 8, 8)),
        (resnext50_32x4d, (False, False, True), (4, 8, 16, 16)),
        (wide_resnet50_2, (True, False, False), (4, 4, 8, 16)),
    ],
)
def test_channels_and_strides_are_what_forward_gives(build, dilated, strides):
    model = on_meta(build, replace_stride_with_dilation=dilated)
    backbone = ResNetBackbone(model, levels=("layer1", "layer2", "layer3", "layer4"))
    width = 64 if build in (resnet18, resnet34) else 256
    assert backbone.out_channels == (width, 2 * width, 4 * width, 8 * width)
    assert backbone.strides == strides
    levels = backbone(torch.empty(2, 3, 64, 96, device="meta"))
    expected = [(2, c, 64 // s, 96 // s) for c, s in zip(backbone.out_channels, strides, strict=True)]
    assert [tuple(level.shape) for level in levels] == expected


def test_a_stem_without_pooling_by_stride_is_counted():
    model = on_meta(resnet18)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False, device="meta")
    model.maxpool = nn.MaxPool2d(1, stride=(1, 1))
    assert ResNetBackbone(model).strides == (2, 4, 8)


def test_maps_equal_those_of_torchvisions_detection_backbone():
    torch.manual_seed(0)
    theirs = resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d).body.eval()
    ours = ResNetBackbone(resnet18(weights=None), levels=("layer1", "layer2", "layer3", "layer4"), frozen_norm=True)
    state = {key: value for key, value in theirs.state_dict().items() if "num_batches" not in key}
    ours.load_state_dict(state)
    images = torch.randn(2, 3, 65, 90)
    with torch.no_grad():
        for level, expected in zip(ours(images), theirs(images).values(), strict=True):
            torch.testing.assert_close(level, expected, rtol=1e-5, atol=1e-5)


def test_layers_behind_the_last_level_are_left_out():
    backbone = ResNetBackbone(on_meta(resnet18), levels=("layer2",))
    assert [name for name, _ in backbone.named_children()] == ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2"]


@pytest.mark.parametrize("trainable_layers", range(6))
def test_the_deepest_layers_are_trained_as_in_torchvision(trainable_layers):
    theirs = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=trainable_layers
    ).body
    backbone = ResNetBackbone(
        on_meta(resnet18), levels=("layer1", "layer2", "layer3", "layer4"), trainable_layers=trainable_layers
    )
    expected = {name for name, parameter in theirs.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in backbone.named_parameters() if parameter.requires_grad} == expected


def test_fewer_built_layers_count_from_the_deepest_of_the_model():
    backbone = ResNetBackbone(on_meta(resnet18), levels=("layer2",), trainable_layers=3)
    trained = {name.split(".")[0] for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert trained == {"layer2"}


def test_a_frozen_norm_stays_as_it_was_while_the_rest_learns():
    torch.manual_seed(0)
    backbone = ResNetBackbone(resnet18(weights=None), frozen_norm=True).train()
    assert not [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    norms = {name: m for name, m in backbone.named_modules() if isinstance(m, FrozenBatchNorm2d)}
    before = {name: {key: value.clone() for key, value in norm.state_dict().items()} for name, norm in norms.items()}
    weights = backbone.conv1.weight.clone()
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1, weight_decay=0.1)
    sum(level.mean() for level in backbone(torch.rand(2, 3, 64, 64))).backward()
    optimizer.step()
    assert not torch.equal(backbone.conv1.weight, weights)
    assert len(norms) == 20
    for name, norm in norms.items():
        for key, value in norm.state_dict().items():
            assert torch.equal(value, before[name][key]), f"{name}.{key}"


@pytest.mark.parametrize("levels", [(), ("layer3", "layer2"), ("layer2", "layer2"), ("layer5",), ("fc",)])
def test_levels_that_a_resnet_has_not_are_refused(levels):
    with pytest.raises(ValueError, match=r"levels=.*layer1.*order"):
        ResNetBackbone(on_meta(resnet18), levels=levels)


@pytest.mark.parametrize("trainable_layers", [-1, 6])
def test_trainable_layers_outside_the_net_are_refused(trainable_layers):
    with pytest.raises(ValueError, match=rf"trainable_layers={trainable_layers}.*0..5"):
        ResNetBackbone(on_meta(resnet18), trainable_layers=trainable_layers)


def test_variant_d_strides_in_its_deep_stem_and_averages_on_its_shortcuts():
    backbone = ResNetBackbone(resnet_d(resnet18(weights=None)), levels=("layer1", "layer2", "layer3", "layer4"))
    assert backbone.strides == (4, 8, 16, 32)
    assert [layer.out_channels for layer in backbone.conv1 if isinstance(layer, nn.Conv2d)] == [32, 32, 64]
    assert isinstance(backbone.layer1[0].downsample[0], nn.Conv2d)
    for layer in (backbone.layer2, backbone.layer3, backbone.layer4):
        pool, convolution, _ = layer[0].downsample
        assert isinstance(pool, nn.AvgPool2d)
        assert convolution.stride == (1, 1)
        assert layer[1].downsample is None
    levels = backbone(torch.rand(1, 3, 65, 90))
    assert [level.shape[2:] for level in levels] == [(17, 23), (9, 12), (5, 6), (3, 3)]


def test_variant_d_of_bottlenecks_has_the_parameters_of_timms():
    timm = pytest.importorskip("timm", reason="timm is not installed: variant D was NOT compared with its resnet50d")
    with torch.device("meta"):
        theirs = timm.create_model("resnet50d", features_only=True, out_indices=(4,))
        ours = ResNetBackbone(resnet_d(resnet50(weights=None)))
    count = [sum(parameter.numel() for parameter in model.parameters()) for model in (ours, theirs)]
    assert count[0] == count[1]


def test_a_model_becomes_variant_d_once():
    with pytest.raises(ValueError, match="resnet_d: model has a deep stem already"):
        resnet_d(resnet_d(resnet18(weights=None)))
