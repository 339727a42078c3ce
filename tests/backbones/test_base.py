"""The abstract backbone refuses what would mislead necks and heads."""

import pytest
from torch import nn

from detkit.backbones import Backbone


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
