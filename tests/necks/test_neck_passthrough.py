"""YOLO v2's neck: its layers in the order of the cfg, what stands first, and what it refuses."""

import pytest
import torch
from torch import nn

from detkit.layers import Passthrough
from detkit.necks import PassthroughNeck


def convolutions(neck: nn.Module) -> list[tuple[int, int, int]]:
    layers = [layer for layer in neck.modules() if isinstance(layer, nn.Conv2d)]
    return [(layer.in_channels, layer.out_channels, layer.kernel_size[0]) for layer in layers]


@pytest.mark.usefixtures("no_memory")
def test_its_convolutions_are_those_of_the_cfg_in_their_order():
    expected = [(1024, 1024, 3), (1024, 1024, 3), (512, 64, 1), (4 * 64 + 1024, 1024, 3)]
    assert convolutions(PassthroughNeck((512, 1024), (16, 32))) == expected
    assert convolutions(PassthroughNeck((256, 1024), (16, 32), depth=1, passed=0)) == [(1024, 1024, 3)]


def test_what_is_passed_through_stands_before_the_rest():
    neck = PassthroughNeck((4, 8), (16, 32), channels=24, depth=1, passed=4, norm=nn.Identity)
    for layer in neck.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.dirac_(layer.weight)
    fine, coarse = torch.rand(1, 4, 4, 6), torch.rand(1, 8, 2, 3)
    (found,) = neck([fine, coarse])
    assert torch.equal(found, torch.cat((Passthrough()(fine), coarse), dim=1))


def test_levels_that_do_not_fit_are_refused():
    for strides in ((8, 32), (32, 32)):
        with pytest.raises(ValueError, match=r"PassthroughNeck: in_strides=.*twice as fine.*passed=0"):
            PassthroughNeck((4, 8), strides)
    with pytest.raises(ValueError, match="PassthroughNeck: in_strides"):
        PassthroughNeck((4,), (32,))
    with pytest.raises(ValueError, match="PassthroughNeck: depth=0"):
        PassthroughNeck((4, 8), (16, 32), depth=0)
