"""The abstract backbone refuses what would mislead necks and heads."""

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from detkit.backbones import Backbone, ResNetBackbone, SequentialBackbone, SmallBackbone


class Declares(Backbone):
    def __init__(self, out_channels, strides):
        super().__init__(out_channels=out_channels, strides=strides)
        self.layer = nn.Identity()

    def forward(self, images):
        return [images]


def test_a_backbone_without_forward_cannot_be_built():
    with pytest.raises(TypeError, match="abstract"):
        Backbone(out_channels=[3], strides=[1])


def test_declarations_are_kept_as_tuples():
    backbone = Declares([3, 4], [1, 2])
    assert (backbone.out_channels, backbone.strides) == ((3, 4), (1, 2))


def test_declarations_that_disagree_are_refused_in_the_name_of_the_subclass():
    with pytest.raises(ValueError, match=r"Declares: channels \(3, 4\) and strides \(1,\)"):
        Declares([3, 4], [1])


def test_a_backbone_that_does_not_come_apart_says_so():
    with pytest.raises(ValueError, match=r"Declares: its levels cannot be computed one from the other; allowed are"):
        Declares([3], [1]).steps()


STEPPED = {
    "small": lambda: SmallBackbone((4, 6, 8)),
    "small, two levels": lambda: SmallBackbone((4, 6, 8), levels=(0, 2), stem_stride=2),
    "small, the last": lambda: SmallBackbone((4, 6, 8), levels=(2,)),
    "sequential": lambda: SequentialBackbone([nn.Conv2d(3, 4, 2, 2), nn.MaxPool2d(2)]),
    "resnet": lambda: ResNetBackbone(ResNet(BasicBlock, [1, 2, 1, 1])),
    "resnet, two levels": lambda: ResNetBackbone(ResNet(BasicBlock, [1, 1, 1, 1]), levels=("layer1", "layer3")),
}


@pytest.mark.parametrize("name", STEPPED)
def test_steps_one_after_another_are_the_backbone(name):
    backbone, features = STEPPED[name]().eval(), torch.rand(1, 3, 48, 40)
    expected = backbone(features)
    steps = backbone.steps()
    assert len(steps) == len(expected)
    for modules, level in zip(steps, expected, strict=True):
        features = nn.Sequential(*modules)(features)
        assert torch.equal(features, level)
