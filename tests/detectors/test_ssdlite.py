"""The SSDlite recipes and what they consist of; tests/weights compares them with torchvision's."""

from functools import partial

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v3_small

from detkit.anchors import DefaultBoxes
from detkit.backbones import SmallBackbone
from detkit.detectors import Preprocess, ssd, ssdlite, ssdlite320_mobilenet_v3_large
from detkit.layers import SeparableConv
from detkit.structures import Images

GROUP_NORM = partial(nn.GroupNorm, 4)


def small(recipe, **settings):
    """A recipe on a trunk of two levels."""
    trunk = SmallBackbone((16, 32), levels=(0, 1))
    anchors = DefaultBoxes([(16, 24), (32, 48)], aspect_ratios=[(2,), (2, 3)], strides=trunk.strides)
    return recipe(3, trunk, trunk.out_channels, anchors, preprocess=Preprocess((64, 64)), **settings)


def test_predictors_are_separable_on_any_trunk_and_all_else_is_ssds():
    lite, plain = small(ssdlite, norm=GROUP_NORM), small(ssd)
    for head, outputs in ((lite.dense.head.class_head, 4), (lite.dense.head.box_head, 4)):
        assert all(isinstance(level, SeparableConv) for level in head.levels)
        assert [level[0][0].in_channels for level in head.levels] == [16, 32]
        assert all(isinstance(level[0][1], nn.GroupNorm) for level in head.levels)
        assert [level[1].out_channels for level in head.levels] == [4 * outputs, 6 * outputs]
    for part in ("anchors", "matcher", "coder", "criterion", "postprocess"):
        assert repr(getattr(lite.dense, part)) == repr(getattr(plain.dense, part))


def test_separable_predictors_are_lighter():
    def weights(detector):
        return sum(parameter.numel() for parameter in detector.dense.head.parameters())

    # Level by level: 9 and 1 a channel, 2 of the norm; channels times outputs, with a bias.
    assert weights(small(ssdlite)) == 2 * sum(9 * c + 2 * c + (c + 1) * 4 * a for c, a in ((16, 4), (32, 6)))
    assert weights(small(ssd)) == 2 * sum((9 * c + 1) * 4 * a for c, a in ((16, 4), (32, 6)))


def test_a_small_ssdlite_learns_and_finds():
    torch.manual_seed(0)
    detector, image = small(ssdlite), torch.rand(3, 64, 64)
    target = {"boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([2])}
    losses = detector([image, image], [target, target])
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in detector.parameters())
    (found,) = detector.eval()([image])
    assert len(found["boxes"]) > 0


@pytest.mark.slow
def test_ssdlite320_has_the_levels_and_default_boxes_of_torchvision():
    detector = ssdlite320_mobilenet_v3_large(2)
    batch = Images(torch.zeros(2, 3, 320, 320), torch.tensor([[320, 320]] * 2))
    with torch.no_grad():
        levels = detector.trunk(batch.tensors)
    assert [tuple(level.shape[1:]) for level in levels] == [
        (672, 20, 20),
        (480, 10, 10),
        (512, 5, 5),
        (256, 3, 3),
        (256, 2, 2),
        (128, 1, 1),
    ]
    boxes = detector.dense.anchors(levels, batch).boxes
    assert len(boxes) == 6 * (400 + 100 + 25 + 9 + 4 + 1)
    sides = boxes[:, 2:] - boxes[:, :2]
    assert sides[0].tolist() == [64, 64]
    assert sides.max() == 320  # the image's
    assert boxes[-6:].tolist()[0] == pytest.approx([8, 8, 312, 312])


def test_ssdlite320_adopts_the_layers_that_are_handed_over():
    features = mobilenet_v3_small(weights=None).features
    before = features[0][0].weight.clone()
    detector = ssdlite320_mobilenet_v3_large(2, features=features)
    adopted = {id(parameter) for parameter in detector.parameters()}
    assert {id(parameter) for parameter in features.parameters()} <= adopted
    assert torch.equal(features[0][0].weight, before)


@pytest.mark.slow
def test_new_layers_start_as_torchvisions_do():
    torch.manual_seed(0)
    detector = ssdlite320_mobilenet_v3_large(2)
    convolutions = [module for module in detector.modules() if isinstance(module, nn.Conv2d)]
    weights = torch.cat([layer.weight.flatten() for layer in convolutions])
    assert weights.std().item() == pytest.approx(0.03, rel=0.01)
    assert all(layer.bias is None or not layer.bias.any() for layer in convolutions)
    norms = [module for module in detector.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.03)}
