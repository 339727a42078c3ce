"""Descriptions of feature levels are checked where they are made, feature maps where they are used."""

import pytest
import torch

from detkit.layers import check_features, check_levels


def test_levels_that_agree_come_back_as_tuples():
    assert check_levels([8, 8, 4], [8, 16, 16], function="Neck") == ((8, 8, 4), (8, 16, 16))


@pytest.mark.parametrize(
    ("channels", "strides", "message"),
    [
        ([], [], "at least one level"),
        ([8, 8], [4], r"Neck: channels \(8, 8\) and strides \(4,\) must have one entry for each level"),
        ([8, 0], [4, 8], "at least 1"),
        ([8, 8], [0, 8], "at least 1"),
        ([8, 8], [16, 8], "finest level first"),
    ],
)
def test_levels_that_do_not_fit_are_refused(channels, strides, message):
    with pytest.raises(ValueError, match=message):
        check_levels(channels, strides, function="Neck")


@pytest.mark.parametrize(
    "shapes", [[(1, 8, 4, 4)], [(1, 8, 4, 4), (1, 8, 2, 2)], [(1, 8, 4, 4), (1, 16, 2)], [(1, 16, 2, 2), (1, 8, 4, 4)]]
)
def test_features_that_do_not_fit_are_refused_with_their_shapes(shapes):
    with pytest.raises(ValueError, match=r"FPN: features.*\[.*channels \(8, 16\)"):
        check_features([torch.zeros(shape) for shape in shapes], (8, 16), function="FPN")


def test_features_that_fit_pass_at_any_size():
    check_features([torch.zeros(2, 8, 5, 3), torch.zeros(2, 16, 1, 7)], (8, 16), function="FPN")
