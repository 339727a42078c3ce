"""YOLO v3's neck: its layers in the order of the cfg, what it concatenates, and what it refuses."""

import pytest
import torch
from torch import nn

from detkit.necks import YOLONeck


def in_cfg_order(neck: YOLONeck) -> list[list[tuple[int, int, int]]]:
    """(input channels, channels, kernel) of the convolutions of each level, coarsest first."""
    parts = [
        (neck.blocks[level], neck.outputs[level], neck.laterals[level]) for level in (2, 1, 0)[-len(neck.blocks) :]
    ]
    return [
        [
            (layer.in_channels, layer.out_channels, layer.kernel_size[0])
            for part in own
            for layer in part.modules()
            if isinstance(layer, nn.Conv2d)
        ]
        for own in parts
    ]


def test_v3_has_the_convolutions_of_its_cfg():
    def level(before, width, *, last=False):
        narrow, wide = (width, width // 2, 1), (width // 2, width, 3)
        lateral = [] if last else [(width // 2, width // 4, 1)]
        return [(before, width // 2, 1), wide, narrow, wide, narrow, wide, *lateral]

    found = in_cfg_order(YOLONeck((256, 512, 1024), (8, 16, 32)))
    assert found == [level(1024, 1024), level(512 + 256, 512), level(256 + 128, 256, last=True)]


def test_v3_tiny_has_the_convolutions_of_its_cfg():
    neck = YOLONeck((256, 1024), (16, 32), out_channels=(256, 512), depths=(0, 1))
    assert in_cfg_order(neck) == [[(1024, 256, 1), (256, 512, 3), (256, 128, 1)], [(256 + 128, 256, 3)]]
    assert neck.out_channels == (256, 512)


def test_what_comes_from_above_is_enlarged_by_nearest_neighbor_and_stands_first():
    neck = YOLONeck((4, 8), (8, 16), depths=(0, 0), norm=nn.Identity).eval()
    for part in (neck.outputs, neck.laterals):
        for layer in part.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.dirac_(layer.weight)
    fine, coarse = torch.rand(1, 4, 3, 5), torch.rand(1, 8, 2, 3)
    first, last = neck([fine, coarse])
    assert torch.equal(last, coarse)
    rows, columns = torch.tensor([0, 0, 1]), torch.tensor([0, 0, 1, 1, 2])
    assert torch.equal(first, coarse[:, :4][:, :, rows][..., columns])


def test_arguments_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"YOLONeck: .*2 in_channels, 2 out_channels and 1 depths"):
        YOLONeck((4, 8), (8, 16), depths=(1,))
    with pytest.raises(ValueError, match=r"YOLONeck: depths=\(1, 2\) must be odd, or 0"):
        YOLONeck((4, 8), (8, 16), depths=(1, 2))
