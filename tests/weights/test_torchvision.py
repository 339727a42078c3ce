"""The two doors to torchvision: what goes through, and what is refused by name."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection import ssd300_vgg16

from detkit.detectors import Detector, ssd300
from detkit.detectors.recipes.regions import rcnn
from detkit.weights import from_torchvision, to_torchvision


@pytest.mark.slow(2)
def test_a_model_comes_in_as_a_detector_and_leaves_as_its_own_state():
    peer = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=3)
    detector = from_torchvision(peer)
    assert isinstance(detector, Detector)
    state = to_torchvision(detector)
    assert all(torch.equal(state[key], value) for key, value in peer.state_dict().items())


@pytest.mark.parametrize("model", [nn.Linear(2, 2), resnet18(weights=None)], ids=["a layer", "a classifier"])
def test_models_that_detect_nothing_are_refused_by_name(model):
    with pytest.raises(ValueError, match=rf"model is a {type(model).__name__}; allowed are torchvision's FasterRCNN"):
        from_torchvision(model)


@pytest.mark.slow
def test_detectors_of_several_one_stage_parts_are_refused_by_name():
    first, second = ssd300(2), ssd300(2)
    both = Detector(first.trunk, preprocess=first.preprocess, one=first.dense, two=second.dense)
    with pytest.raises(ValueError, match="stages are DenseStage, DenseStage; allowed are one DenseStage"):
        to_torchvision(both)


def test_a_detector_of_another_kind_is_refused_by_name():
    other = rcnn(2, nn.Flatten(), feature_size=12, size=2, context=0)
    with pytest.raises(
        ValueError, match="the stage is a RegionStage with heads NoneType and NoneType; allowed are a DenseSt"
    ):
        to_torchvision(other)
