"""The pyramid: equal to torchvision's with its weights, at any size, with the extra levels of both families."""

from collections import OrderedDict
from functools import partial

import pytest
import torch
from torch import nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from detkit.backbones import SmallBackbone
from detkit.necks import FPN

CHANNELS, STRIDES = (6, 8, 10), (8, 16, 32)


def features(height: int = 64, width: int = 96, batch: int = 2) -> list[torch.Tensor]:
    torch.manual_seed(1)
    sizes = [(-(-height // stride), -(-width // stride)) for stride in STRIDES]
    return [torch.randn(batch, channels, *size) for channels, size in zip(CHANNELS, sizes, strict=True)]


def our_key(key: str) -> str:
    names = {
        "inner_blocks": "laterals",
        "layer_blocks": "outputs",
        "extra_blocks.p6": "extra.0",
        "extra_blocks.p7": "extra.1",
    }
    for theirs, ours in names.items():
        key = key.replace(theirs, ours)
    return key


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (33, 32), (150, 70)])
@pytest.mark.parametrize(
    ("theirs", "settings"),
    [
        (lambda: None, {}),
        (LastLevelMaxPool, {"extra": 1}),
        (lambda: LastLevelP6P7(10, 4), {"extra": 2, "extra_from": "input"}),
        (lambda: LastLevelP6P7(4, 4), {"extra": 2, "extra_from": "output"}),
    ],
    ids=["plain", "pool", "from C5", "from P5"],
)
def test_it_equals_torchvisions_with_its_weights(theirs, settings, size):
    torch.manual_seed(0)
    reference = FeaturePyramidNetwork(list(CHANNELS), 4, extra_blocks=theirs())
    neck = FPN(CHANNELS, STRIDES, channels=4, **settings)
    neck.load_state_dict({our_key(key): value for key, value in reference.state_dict().items()})
    maps = features(*size)
    with torch.no_grad():
        expected = reference(OrderedDict((str(i), level) for i, level in enumerate(maps))).values()
        levels = neck(maps)
    assert len(levels) == len(expected) == len(neck.strides)
    for level, wanted in zip(levels, expected, strict=True):
        torch.testing.assert_close(level, wanted, rtol=1e-6, atol=1e-6)


def test_it_equals_torchvisions_with_a_norm():
    torch.manual_seed(0)
    norm = partial(nn.GroupNorm, 2)
    reference = FeaturePyramidNetwork(list(CHANNELS), 4, norm_layer=norm)
    neck = FPN(CHANNELS, STRIDES, channels=4, norm=norm)
    neck.load_state_dict({our_key(key): value for key, value in reference.state_dict().items()})
    expected = reference(OrderedDict((str(i), level) for i, level in enumerate(features()))).values()
    for level, wanted in zip(neck(features()), expected, strict=True):
        torch.testing.assert_close(level, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("extra_from", ["pool", "input", "output"])
@pytest.mark.parametrize("extra", [0, 1, 3])
@pytest.mark.parametrize("size", [(256, 256), (100, 257)])
def test_levels_have_the_declared_channels_and_strides(extra_from, extra, size):
    neck = FPN(CHANNELS, STRIDES, channels=4, extra=extra, extra_from=extra_from)
    assert neck.strides == (8, 16, 32, 64, 128, 256)[: 3 + extra]
    assert neck.out_channels == (4,) * (3 + extra)
    expected = [(2, 4, -(-size[0] // stride), -(-size[1] // stride)) for stride in neck.strides]
    assert [tuple(level.shape) for level in neck(features(*size))] == expected


@pytest.mark.parametrize("extra_from", ["pool", "input", "output"])
def test_every_parameter_gets_a_gradient(extra_from):
    neck = FPN(CHANNELS, STRIDES, channels=4, extra=2, extra_from=extra_from)
    sum(level.square().mean() for level in neck(features())).backward()
    assert [name for name, parameter in neck.named_parameters() if not parameter.grad.abs().sum() > 0] == []


def test_a_coarse_level_reaches_every_finer_one_and_no_fine_level_a_coarser():
    neck, plain = FPN(CHANNELS, STRIDES, channels=4), features()
    for changed in range(3):
        maps = [level + (i == changed) for i, level in enumerate(plain)]
        moved = [not torch.equal(a, b) for a, b in zip(neck(maps), neck(plain), strict=True)]
        assert moved == [i <= changed for i in range(3)]


def test_levels_of_one_stride_are_merged_without_resizing():
    """A dilated backbone (DC5) has two levels of stride 16."""
    neck = FPN((6, 6), (16, 16), channels=4, extra=1)
    assert neck.strides == (16, 16, 32)
    assert [tuple(level.shape[2:]) for level in neck([torch.rand(1, 6, 5, 7)] * 2)] == [(5, 7), (5, 7), (3, 4)]


def test_the_features_handed_in_are_not_changed():
    maps = features()
    before = [level.clone() for level in maps]
    FPN(CHANNELS, STRIDES, channels=4, extra=2, extra_from="input")(maps)
    assert all(torch.equal(level, kept) for level, kept in zip(maps, before, strict=True))


def test_backbone_and_neck_make_a_trunk():
    backbone = SmallBackbone((8, 12, 16))
    neck = FPN(backbone.out_channels, backbone.strides, channels=4, extra=1)
    levels = nn.Sequential(backbone, neck)(torch.rand(2, 3, 65, 96))
    expected = [(2, 4, -(-65 // stride), -(-96 // stride)) for stride in neck.strides]
    assert [tuple(level.shape) for level in levels] == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"in_strides": (8, 16)}, r"FPN: channels \(6, 8, 10\) and strides \(8, 16\)"),
        ({"in_strides": (8, 32, 16)}, "finest level first"),
        ({"extra": -1}, "extra=-1 must be at least 0"),
        ({"channels": 0}, "channels=0 must be at least 1"),
    ],
)
def test_settings_that_cannot_be_built_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FPN(**{"in_channels": CHANNELS, "in_strides": STRIDES, **settings})


def test_an_unknown_source_of_extra_levels_is_refused():
    # While tests run, the type hook refuses it first, in its own words.
    with pytest.raises((ValueError, TypeError), match="extra_from"):
        FPN(CHANNELS, STRIDES, extra=1, extra_from="p5")


def test_features_of_other_channels_are_refused():
    with pytest.raises(ValueError, match=r"FPN: features have shapes .* channels \(6, 8, 10\)"):
        FPN(CHANNELS, STRIDES)(features()[::-1])


def test_a_graph_that_is_retained_is_walked_twice_and_borrowed_parameters_learn():
    """The finest level is computed again in the backward pass, when borrowed parameters are gone."""
    neck, given = FPN(CHANNELS, STRIDES).double(), [level.double() for level in features()]
    borrowed = {name: 2 * value.detach() for name, value in neck.named_parameters()}
    for value in borrowed.values():
        value.requires_grad_()
    levels = torch.func.functional_call(neck, borrowed, (given,))
    loss = torch.stack([level.square().sum() for level in levels]).sum()
    first, second = (torch.autograd.grad(loss, [*borrowed.values()], retain_graph=True) for _ in range(2))
    neck.load_state_dict(borrowed)
    loss = torch.stack([level.square().sum() for level in neck(given)]).sum()
    own, again = (torch.autograd.grad(loss, [*neck.parameters()], retain_graph=True) for _ in range(2))
    for values in zip(first, second, own, again, strict=True):
        for value in values[1:]:
            torch.testing.assert_close(value, values[0])
