"""Key tables, trunks, anchors and transforms of torchvision's detectors, taken apart."""

from functools import partial

import pytest
import torch
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN, mobilenet_backbone, resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelP6P7

from detkit.backbones import ResNetBackbone, SequentialBackbone
from detkit.detectors import fpn_ssd
from detkit.structures import Images
from detkit.weights.torchvision_trunk import (
    Rename,
    anchors_from,
    background_last,
    preprocess_from,
    state_to_ours,
    state_to_theirs,
    trunk_from,
    trunk_renames,
    without_background,
)

resnet = partial(resnet_fpn_backbone, backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d)


def normed() -> BackboneWithFPN:
    """A pyramid with batch norm, as Mask R-CNN's second version has, on a chain of three named layers."""
    layers = {f"part{i}": nn.Conv2d(3 if i == 0 else 8, 8, 3, stride=2, padding=1) for i in range(3)}
    chain = nn.Sequential()
    for name, layer in layers.items():
        chain.add_module(name, layer)
    return BackboneWithFPN(chain, {"part1": "0", "part2": "1"}, [8, 8], 16, norm_layer=nn.BatchNorm2d)


BACKBONES = {
    "resnet with all levels": (resnet, ResNetBackbone, (4, 8, 16, 32, 64)),
    "resnet for RetinaNet": (
        lambda: resnet(returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(512, 256)),
        ResNetBackbone,
        (8, 16, 32, 64, 128),
    ),
    "resnet for FCOS": (
        lambda: resnet(returned_layers=[2, 4], extra_blocks=LastLevelP6P7(256, 256)),
        ResNetBackbone,
        (8, 32, 64, 128),
    ),
    "mobilenet": (
        lambda: mobilenet_backbone(backbone_name="mobilenet_v3_small", weights=None, fpn=True),
        SequentialBackbone,
        (32, 32, 64),
    ),
    "chain with norms": (normed, SequentialBackbone, (4, 8, 16)),
}


@pytest.mark.slow
@pytest.mark.parametrize(("build", "kind", "strides"), BACKBONES.values(), ids=BACKBONES)
def test_a_trunk_sees_what_torchvisions_backbone_sees_and_keys_go_both_ways(build, kind, strides):
    torch.manual_seed(0)
    backbone = build().eval()
    trunk = trunk_from(backbone)
    assert isinstance(trunk.module[0], kind)
    assert trunk.strides == strides
    renames, state = trunk_renames(trunk.module), {f"backbone.{k}": v for k, v in backbone.state_dict().items()}
    ours = nn.ModuleDict({"trunk": trunk.module.eval()})
    with torch.no_grad():
        for weights in ours.parameters():
            weights.normal_()
    ours.load_state_dict(state_to_ours(state, renames), strict=True)
    images = torch.randn(2, 3, 70, 96)
    with torch.no_grad():
        for found, expected in zip(trunk.module(images), backbone(images).values(), strict=True):
            assert torch.equal(found, expected)
    back = state_to_theirs(ours.state_dict(), renames)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_the_trunk_is_a_copy():
    backbone = normed()
    trunk = trunk_from(backbone)
    mine, theirs = ({id(weights) for weights in part.parameters()} for part in (trunk.module, backbone))
    assert not mine & theirs


class OneMore(ExtraFPNBlock):
    """A top of the pyramid that torchvision does not have."""


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (lambda: nn.Conv2d(3, 8, 1), "the backbone is a Conv2d; allowed is torchvision's BackboneWithFPN"),
        (lambda: resnet(extra_blocks=OneMore()), "the pyramid ends in OneMore; allowed are LastLevelMaxPool and"),
    ],
)
def test_other_backbones_are_refused_by_name(backbone, message):
    with pytest.raises(ValueError, match=message):
        trunk_from(backbone())


def test_a_trunk_that_torchvision_does_not_have_is_refused_by_name():
    with pytest.raises(ValueError, match=r"the trunk is Sequential\(SmallBackbone, FPN\); allowed is nn.Sequential"):
        trunk_renames(fpn_ssd(2, channels=8).trunk)


def test_the_first_rule_that_fits_counts_and_a_key_without_one_is_named():
    rules = [Rename("a.b.", "y."), Rename("a.", "x.")]
    state = {"a.b.c": torch.ones(1), "a.c": torch.zeros(1)}
    assert list(state_to_ours(state, rules)) == ["y.c", "x.c"]
    assert list(state_to_theirs(state_to_ours(state, rules), rules)) == list(state)
    with pytest.raises(ValueError, match=r"there is no rule for the key 'b.c'; known are a.b., a."):
        state_to_ours({"b.c": torch.ones(1)}, rules)


def test_background_moves_from_first_to_last_within_every_anchor():
    rows = torch.arange(6.0)[:, None].expand(6, 2)  # 2 anchors of background and 2 classes
    change = background_last(2)
    assert change.to_ours(rows)[:, 0].tolist() == [1, 2, 0, 4, 5, 3]
    assert torch.equal(change.to_theirs(change.to_ours(rows)), rows)


def test_an_unread_background_is_dropped_and_comes_back_as_zeros():
    change = without_background(4)
    rows = torch.arange(1.0, 13).reshape(12, 1)
    assert change.to_ours(rows).flatten().tolist() == list(range(5, 13))
    assert change.to_theirs(change.to_ours(rows)).flatten().tolist() == [0] * 4 + list(range(5, 13))


def test_anchors_are_torchvisions_to_the_last_bit():
    generator = AnchorGenerator(((16, 24), (32, 40.5)), ((0.5, 1.0), (2.0, 0.3, 1.0)))
    images, features = torch.zeros(1, 3, 60, 90), [torch.zeros(1, 1, 8, 12), torch.zeros(1, 1, 4, 6)]
    (expected,) = generator(ImageList(images, [(60, 90)]), features)
    assert torch.equal(anchors_from(generator)(features, Images(images, torch.tensor([[60, 90]]))).boxes, expected)
    with pytest.raises(ValueError, match="the anchor generator is a DefaultBoxGenerator; allowed is AnchorGenerator"):
        anchors_from(DefaultBoxGenerator([[2]]))


@pytest.mark.parametrize(
    "transform",
    [
        GeneralizedRCNNTransform((50, 60), 80, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]),
        GeneralizedRCNNTransform(60, 80, [0.5] * 3, [0.2] * 3, size_divisible=1, fixed_size=(70, 50)),
    ],
    ids=["by the shorter side", "to one size"],
)
def test_images_are_prepared_as_torchvision_infers(transform):
    images = [torch.rand(3, 45, 70), torch.rand(3, 90, 33)]
    found, _ = preprocess_from(transform)(images)
    expected, _ = transform.eval()(images)
    torch.testing.assert_close(found.tensors, expected.tensors, rtol=1e-5, atol=1e-5)
    assert [tuple(size) for size in found.sizes.tolist()] == [tuple(size) for size in expected.image_sizes]
