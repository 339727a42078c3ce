"""The recipe rcnn: R-CNN's published settings."""

import pytest
import torch
from torch import nn

from detkit.detectors import Preprocess, rcnn


def test_rcnn_has_the_settings_of_the_paper():
    detector = rcnn(20, nn.Flatten(), feature_size=3 * 227 * 227)
    stage = detector.region
    assert (stage.describe.size, stage.describe.context) == (227, 16)
    assert (stage.postprocess.iou_threshold, stage.postprocess.max_detections) == (0.3, 100)
    assert stage.coder.scale.tolist() == [1, 1, 1, 1]
    assert stage.num_classes == 20
    assert detector.preprocess.size is None


def test_the_trunk_hands_over_the_pixels_as_the_only_level():
    image = torch.rand(1, 3, 4, 5)
    (level,) = rcnn(1, nn.Flatten(), feature_size=192, size=8, context=1).trunk(image)
    assert level is image


def test_every_setting_can_be_changed():
    detector = rcnn(1, nn.Conv2d(3, 4, 3), feature_size=36, size=20, context=2, grid=3, preprocess=Preprocess(64))
    assert detector.preprocess.size == 64
    assert detector.region.describe(torch.zeros(1, 3, 64, 64), torch.tensor([[[1.0, 1, 9, 9]]])).shape == (1, 1, 36)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"context=4.*size=8"):
        rcnn(1, nn.Flatten(), feature_size=192, size=8, context=4)
