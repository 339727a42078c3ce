"""The trunks that recipes share: which strides and widths they give, and what of a given backbone they keep."""

import torch
from torch import nn

from detkit.backbones import SmallBackbone
from detkit.detectors.recipes.trunks import pyramid, short_side_800, small_pyramid


def test_a_pyramid_has_two_levels_more_than_its_backbone():
    backbone = SmallBackbone((4, 8, 8, 16), levels=(1, 2, 3))
    trunk, neck = pyramid(backbone)
    assert trunk[0] is backbone
    assert neck.strides == (8, 16, 32, 64, 128)
    levels = trunk.eval()(torch.zeros(1, 3, 128, 128))
    assert [tuple(level.shape[1:]) for level in levels] == [(256, side, side) for side in (16, 8, 4, 2, 1)]


def test_the_first_further_level_is_made_of_the_backbones_last_map():
    neck = pyramid(SmallBackbone((4, 8, 8, 16), levels=(1, 2, 3)))[1]
    strided = [part for part in neck.modules() if isinstance(part, nn.Conv2d) and part.stride == (2, 2)]
    assert [part.in_channels for part in strided] == [16, 256]


def test_a_small_pyramid_has_one_width_and_the_norm_asked_for():
    trunk, strides = small_pyramid(8, 2, nn.InstanceNorm2d)
    assert strides == (8, 16, 32)
    assert [tuple(level.shape[1:]) for level in trunk(torch.zeros(1, 3, 64, 96))] == [(8, 8, 12), (8, 4, 6), (8, 2, 3)]
    assert not any(isinstance(part, nn.BatchNorm2d) for part in trunk.modules())
    assert any(isinstance(part, nn.InstanceNorm2d) for part in trunk.modules())


def test_coco_images_are_brought_to_800_by_at_most_1333_padded_to_32():
    batch, _ = short_side_800()([torch.zeros(3, 8, 40)])
    assert batch.sizes.tolist() == [[266, 1333]]
    assert batch.tensors.shape == (1, 3, 288, 1344)
