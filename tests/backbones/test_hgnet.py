"""HGNetV2: transformers' maps, published channels, and where its affine blocks stand."""

import pytest
import torch
from torch import nn

from detkit.backbones import HGNetBackbone, HGStage, hgnet_b0, hgnet_b2, hgnet_b4, hgnet_b5
from detkit.backbones.hgnet import Affine

timm = pytest.importorskip("timm", reason="timm is not installed: HGNetV2 was NOT compared with its own")

STAGES = [HGStage(4, 16, stride=None), HGStage(4, 24, blocks=2, layers=2), HGStage(4, 32, light=True, kernel_size=5)]


def small(**settings) -> HGNetBackbone:
    torch.manual_seed(0)
    return HGNetBackbone((8, 8), STAGES, **{"levels": (0, 2), **settings})


@pytest.mark.parametrize(
    ("build", "name", "channels"),
    [
        (hgnet_b0, "hgnetv2_b0", (256, 512, 1024)),
        (hgnet_b2, "hgnetv2_b2", (384, 768, 1536)),
        (hgnet_b4, "hgnetv2_b4", (512, 1024, 2048)),
        (hgnet_b5, "hgnetv2_b5", (512, 1024, 2048)),
    ],
)
def test_published_ones_have_the_parameters_of_timms(build, name, channels):
    with torch.device("meta"):
        backbone = build()
        theirs = timm.create_model(name, features_only=True)
    assert backbone.out_channels == channels
    assert backbone.strides == (8, 16, 32)
    count = [sum(parameter.numel() for parameter in model.parameters()) for model in (backbone, theirs)]
    assert count[0] == count[1]
    assert any(isinstance(part, Affine) for part in backbone.modules()) == (build in (hgnet_b0, hgnet_b2))


@pytest.mark.parametrize("size", [(64, 96), (67, 61)])
def test_sizes_are_rounded_up(size):
    levels = small()(torch.rand(2, 3, *size))
    for level, stride in zip(levels, (4, 16), strict=True):
        assert level.shape[2:] == tuple(-(-side // stride) for side in size)


def test_stages_behind_the_last_level_are_left_out():
    assert len(small(levels=(0,)).stages) == 1
    assert small(levels=(0,)).strides == (4,)


def test_a_block_beside_another_adds_to_what_it_reads():
    first, second = (part for part in small().stages[1] if hasattr(part, "residual"))
    features = torch.rand(1, 16, 4, 4)
    for block in (first, second):
        for parameter in block.parameters():
            nn.init.zeros_(parameter)
    assert not first(features).any()
    features = torch.rand(1, 24, 4, 4)
    assert torch.equal(second(features), features)


def test_affine_blocks_follow_activations_only():
    count = sum(isinstance(part, Affine) for part in small(affine=True).modules())
    activations = sum(isinstance(part, nn.ReLU) for part in small(affine=True).modules())
    assert count == activations > 10
    assert not any(isinstance(part, Affine) for part in small().modules())
    state = small(affine=True).state_dict()
    plain = small().state_dict()
    assert state.keys() - plain.keys() == {key for key in state if ".3." in key and key.endswith((".scale", "3.bias"))}


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"HGNetBackbone: levels=\(2, 0\) must be some of 3 stages, ascending"):
        small(levels=(2, 0))
    with pytest.raises(ValueError, match=r"HGNetBackbone: levels=\(3,\)"):
        small(levels=(3,))
    with pytest.raises(ValueError, match=r"HGNetBackbone: stem=\(7, 8\) must begin with an even number"):
        HGNetBackbone((7, 8), STAGES, levels=(0,))
    with pytest.raises(ValueError, match=r"HGNetBackbone: stages\[0\].layers=0 must be at least 1"):
        HGNetBackbone((8, 8), [HGStage(4, 8, layers=0)], levels=(0,))
