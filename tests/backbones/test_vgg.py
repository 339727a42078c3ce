"""VGG: equal to torchvision's, plain and as SSD changed it."""

import pytest
import torch
from torch import nn
from torchvision.models import vgg16
from torchvision.models.detection import ssd300_vgg16
from torchvision.models.vgg import make_layers

from detkit.backbones import SSDVGGBackbone, ssd_trunk_from_torchvision, vgg_backbone, vgg_features
from detkit.necks import SSDExtra


def ssd_trunk() -> nn.Sequential:
    backbone = SSDVGGBackbone(vgg_features())
    return nn.Sequential(backbone, SSDExtra(backbone.out_channels, backbone.strides))


def test_features_are_laid_out_as_torchvisions():
    with torch.device("meta"):
        ours, theirs = vgg_features(), vgg16(weights=None).features
    assert [repr(layer) for layer in ours] == [repr(layer) for layer in theirs]


@pytest.mark.slow(2)
def test_the_ssd_trunk_equals_torchvisions_with_its_weights():
    torch.manual_seed(0)
    theirs = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=2).backbone.eval()
    with torch.no_grad():
        theirs.scale_weight.uniform_(5, 20)
    ours = ssd_trunk().eval()
    ours.load_state_dict(ssd_trunk_from_torchvision(theirs.state_dict()))
    images = torch.randn(1, 3, 300, 300)
    with torch.no_grad():
        levels, expected = ours(images), list(theirs(images).values())
    assert [level.shape[-1] for level in levels] == [38, 19, 10, 5, 3, 1]
    assert len(levels) == len(expected)
    for level, wanted in zip(levels, expected, strict=True):
        assert wanted.abs().max() > 0
        torch.testing.assert_close(level, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("key", ["head.weight", "extra.weight", "scale"])
def test_a_key_that_torchvision_has_not_is_refused(key):
    with pytest.raises(ValueError, match=f"key '{key}'; allowed are scale_weight"):
        ssd_trunk_from_torchvision({key: torch.zeros(1)})


@pytest.mark.slow
def test_the_norm_starts_at_the_scale_given():
    assert SSDVGGBackbone(vgg_features()).norm.weight.unique().tolist() == [20.0]
    assert SSDVGGBackbone(vgg_features(), scale=10.0).norm.weight.unique().tolist() == [10.0]


def test_the_features_handed_over_are_adopted_and_not_changed():
    features = vgg_features()
    before = repr(features)
    backbone = SSDVGGBackbone(features)
    assert backbone.features[0] is features[0]
    assert repr(features) == before


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_plain_vgg_taps_the_last_activation_of_each_stage(batch_norm):
    torch.manual_seed(0)
    widths = [4, "M", 6, 6, "M", 8, "M", 10, "M", 12, "M"]
    features = make_layers(widths, batch_norm=batch_norm).eval()
    backbone = vgg_backbone(features, levels=(1, 2, 4)).eval()
    assert (backbone.out_channels, backbone.strides) == ((6, 8, 12), (2, 4, 16))
    images = torch.rand(1, 3, 37, 48)
    taps, levels = images, []
    for layer in features:
        if isinstance(layer, nn.MaxPool2d):
            levels.append(taps.clone())
        taps = layer(taps)
    for level, expected in zip(backbone(images), [levels[1], levels[2], levels[4]], strict=True):
        assert torch.equal(level, expected)


@pytest.mark.parametrize("levels", [(), (1, 0), (2, 2), (5,), (-1, 2)])
def test_levels_that_vgg_has_not_are_refused(levels):
    with pytest.raises(ValueError, match=r"^vgg_backbone: levels"):
        vgg_backbone(vgg_features((1, 1, 1, 1, 1)), levels=levels)


@pytest.mark.parametrize("build", [SSDVGGBackbone, vgg_backbone])
def test_features_that_are_no_vgg_are_refused(build):
    with pytest.raises(ValueError, match="2 max poolings"):
        build(vgg_features((1, 1)))
    with pytest.raises(ValueError, match="five stages"):
        build(vgg_features()[:-1])


def test_a_narrow_vgg_is_no_ssd_backbone():
    with pytest.raises(ValueError, match=r"features end in Conv2d\(10, 12"):
        SSDVGGBackbone(make_layers([4, "M", 6, "M", 8, "M", 10, "M", 12, "M"]))
