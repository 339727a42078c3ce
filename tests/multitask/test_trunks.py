"""Trunks of branches: stitched by identities they are independent networks, and they share where they should."""

import copy
from functools import partial

import pytest
import torch
from strategies import assert_refused
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from detkit.backbones import ResNetBackbone, SequentialBackbone, SmallBackbone
from detkit.detectors import Detector, Preprocess, segmentation_stage
from detkit.multitask import CrossStitch, SharedTrunk, StitchedTrunk, cross_stitches
from detkit.structures import pad_targets

BACKBONES = {
    "small": lambda: SmallBackbone((4, 6, 8), norm=partial(nn.GroupNorm, 2)),
    "small, some levels": lambda: SmallBackbone((4, 6, 8, 8), levels=(1, 3), blocks=2),
    "sequential": lambda: SequentialBackbone([nn.Conv2d(3, 4, 2, 2), nn.Sequential(nn.Conv2d(4, 6, 2, 2), nn.ReLU())]),
    "one level": lambda: SequentialBackbone([nn.Conv2d(3, 4, 2, 2)]),
    "resnet": lambda: ResNetBackbone(ResNet(BasicBlock, [1, 1, 1, 1]), levels=("layer1", "layer2")),
}
NAMES = "boxes", "masks", "class"
IMAGES = torch.rand(2, 3, 48, 40, generator=torch.Generator().manual_seed(0))


def three(kind):
    torch.manual_seed(0)
    return {name: BACKBONES[kind]() for name in NAMES}


@pytest.mark.parametrize("kind", BACKBONES)
@pytest.mark.parametrize("same", [1.0, None])
@pytest.mark.slow
def test_identities_are_independent_networks_bit_for_bit(kind, same):
    """In training mode, with the gradients of every parameter and what batch norms remember."""
    alone = three(kind)
    channels = alone["boxes"].out_channels
    stitches = [None] * len(channels) if same is None else cross_stitches(3, channels, same=same)
    trunk = StitchedTrunk(copy.deepcopy(alone), stitches)
    features = trunk(IMAGES)
    assert list(features) == list(NAMES)
    sum(level.sin().sum() for maps in features.values() for level in maps).backward()
    for name, backbone in alone.items():
        expected = backbone(IMAGES)
        sum(level.sin().sum() for level in expected).backward()
        assert all(torch.equal(one, other) for one, other in zip(features[name], expected, strict=True))
        stitched = trunk.backbones[name]
        for key, parameter in backbone.named_parameters():
            assert torch.equal(stitched.get_parameter(key).grad, parameter.grad), key
        for key, buffer in backbone.named_buffers():
            assert torch.equal(stitched.get_buffer(key), buffer), key


def test_a_level_is_computed_from_what_was_stitched():
    trunk = StitchedTrunk(three("small"), cross_stitches(3, (4, 6, 8)))
    maps = [IMAGES] * 3
    features = trunk.eval()(IMAGES)
    for level, stitch in enumerate(trunk.stitches):
        steps = [backbone.steps()[level] for backbone in trunk.backbones.values()]
        maps = stitch([nn.Sequential(*modules)(one) for modules, one in zip(steps, maps, strict=True)])
        for name, one in zip(NAMES, maps, strict=True):
            assert torch.equal(features[name][level], one)


def test_every_share_learns_from_every_branch():
    trunk = StitchedTrunk(three("small"), cross_stitches(3, (4, 6, 8)))
    trunk(IMAGES)["masks"][-1].square().sum().backward()
    first, last = trunk.stitches[0].shares.grad, trunk.stitches[-1].shares.grad
    assert first.any(-1).all()  # not every channel: some say nothing behind their ReLU
    assert last[1].any(-1).all()
    assert not last[[0, 2]].any()


def test_a_shared_trunk_is_one_network():
    backbone = SmallBackbone((4, 6))
    trunk = SharedTrunk(backbone, NAMES)
    features, expected = trunk.eval()(IMAGES), backbone(IMAGES)
    assert (trunk.out_channels, trunk.strides) == (backbone.out_channels, backbone.strides)
    for name in NAMES:
        assert all(torch.equal(one, other) for one, other in zip(features[name], expected, strict=True))
    assert sum(part.numel() for part in trunk.parameters()) == sum(part.numel() for part in backbone.parameters())


def test_a_detector_learns_to_share():
    """A stitch that begins with nothing of its own branch takes more of it where that helps."""
    torch.manual_seed(0)
    backbones = {name: SmallBackbone((8,), stem_stride=2) for name in ("pixels", "other")}
    trunk = StitchedTrunk(backbones, [CrossStitch(2, 8, same=0.5)])
    stage = segmentation_stage(2, trunk.out_channels, branch="pixels")
    detector = Detector(trunk, preprocess=Preprocess(None), segmentation=stage)
    images = torch.rand(4, 3, 16, 16)
    batch, _ = detector.preprocess(list(images))
    truth = [
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0), "segmentation": (one[0] > 0.5).long()} for one in images
    ]
    optimizer = torch.optim.Adam(detector.parameters(), 0.01)
    found = []
    for _ in range(15):
        loss = detector(batch, pad_targets(truth))["segmentation.segmentation"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    assert found[-1] < 0.8 * found[0]
    assert (trunk.stitches[0].shares != 0.5).any()


def test_what_does_not_fit_is_refused():
    small = SmallBackbone((4, 6))
    assert_refused("StitchedTrunk: backbones have out_channels and strides", StitchedTrunk, {"one": small}, [None] * 2)
    other = SmallBackbone((4, 8))
    assert_refused("StitchedTrunk: backbones have", StitchedTrunk, {"one": small, "two": other}, [None] * 2)
    pair = {"one": small, "two": copy.deepcopy(small)}
    assert_refused("StitchedTrunk: 1 stitches; allowed is one, or None, for each level", StitchedTrunk, pair, [None])
    plain = nn.Conv2d(3, 4, 1)
    assert_refused(
        "StitchedTrunk: a Identity has no out_channels and strides", StitchedTrunk, {"a": nn.Identity(), "b": plain}, []
    )
    for names in ([], ["a", "a"], "a"):
        assert_refused("SharedTrunk: branches=", SharedTrunk, small, names)
    for name in ("a.b", "", "keys"):
        pair = {name: small, "two": copy.deepcopy(small)}
        assert_refused(f"StitchedTrunk: branches are called [{name!r}, 'two']", StitchedTrunk, pair, [None] * 2)
