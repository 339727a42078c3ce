"""The abstract neck refuses what would mislead heads."""

import pytest
import torch

from detkit.necks import Neck


class Doubled(Neck):
    def __init__(self, in_channels, in_strides):
        super().__init__(in_channels, out_channels=in_channels, strides=in_strides)

    def forward(self, features):
        self.check_features(features)
        return [2 * feature for feature in features]


def test_a_neck_without_forward_cannot_be_built():
    with pytest.raises(TypeError, match="abstract"):
        Neck([3], out_channels=[3], strides=[1])


def test_levels_that_disagree_are_refused_in_the_name_of_the_subclass():
    with pytest.raises(ValueError, match=r"Doubled: channels \(3, 4\) and strides \(1,\)"):
        Doubled([3, 4], [1])


def test_features_of_other_channels_are_refused_in_the_name_of_the_subclass():
    neck = Doubled([3, 4], [1, 2])
    with pytest.raises(ValueError, match=r"Doubled: features have shapes .* channels \(3, 4\)"):
        neck([torch.zeros(1, 4, 2, 2), torch.zeros(1, 3, 1, 1)])
    assert len(neck([torch.zeros(1, 3, 2, 2), torch.zeros(1, 4, 1, 1)])) == 2
