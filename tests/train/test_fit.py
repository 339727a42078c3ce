"""The warning of objects that no anchor fits."""

import warnings

import pytest
from torch.utils.data import Subset

from detkit.data import DigitScenes
from detkit.detectors import fpn_ssd, small_detr
from detkit.train.fit import warn_of_misfits


def test_many_objects_without_an_anchor_are_warned_of():
    with pytest.warns(UserWarning, match=r"\d\d% of the objects .* are without an anchor .* python -m detkit\.inspect"):
        warn_of_misfits(Subset(DigitScenes(9), range(6)), fpn_ssd(10, size=(32, 32), channels=8))


def test_nothing_is_said_where_they_fit_or_cannot_be_told():
    scenes = DigitScenes(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_misfits(scenes, fpn_ssd(10, size=(192, 192), channels=8))
        warn_of_misfits(scenes, small_detr(10, size=(32, 32)))
        warn_of_misfits([scenes[0]], fpn_ssd(10, size=(32, 32), channels=8))
