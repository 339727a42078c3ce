"""What is checked of input that lies on a device: shapes and devices always, values with DETKIT_CHECKS=full."""

import pretend
import pytest
import torch
from small_detectors import small_detector, two_scenes
from torch import Tensor

from detkit.anchors import HungarianMatcher
from detkit.boxes import box_iou, nms
from detkit.detectors import Detector
from detkit.structures import Predictions, Target, pad_targets


@pytest.fixture
def detector() -> Detector:
    return pretend.on_device(small_detector("retinanet"))


def spoiled(**entries: Tensor) -> tuple[list[Tensor], list[Target]]:
    images, targets = two_scenes()
    targets[1] = Target(**{**targets[1], **entries})
    return pretend.on_device((images, targets))


BAD = {
    "a box without area": ({"boxes": torch.tensor([[5.0, 5, 5, 9], [1, 1, 9, 9]])}, r"targets\[1\]: boxes\[0\].*1 are"),
    "a negative label": ({"labels": torch.tensor([0, -7])}, r"labels\[1, 1\]=-7"),
    "a NaN weight": ({"weights": torch.tensor([1.0, torch.nan])}, r"targets\[1\].*weights\[1\]=nan"),
}


@pytest.mark.parametrize(("entries", "message"), BAD.values(), ids=BAD)
def test_values_of_targets_are_looked_at_with_full_checks_only(detector, monkeypatch, entries, message):
    images, targets = spoiled(**entries)
    with pretend.counted() as waits:
        detector(images, targets)
    assert not waits
    monkeypatch.setenv("DETKIT_CHECKS", "full")
    with pytest.raises(ValueError, match=message):
        detector(images, targets)


@pytest.mark.parametrize("bad", ["a box without area", "a NaN weight"])
def test_values_that_lie_on_the_host_are_looked_at_before_they_are_sent(detector, bad):
    entries, message = BAD[bad]
    images, targets = pretend.on_host(spoiled(**entries))
    with pretend.counted() as waits, pytest.raises(ValueError, match=message):
        detector(images, targets)
    assert not waits
    with pytest.raises(ValueError, match=r"images\[0\] has pixels from"):
        detector([image * 255 for image in images])


def test_pixels_out_of_range_are_seen_with_full_checks_only(detector, monkeypatch):
    images, _ = pretend.on_device(two_scenes())
    detector([image * 255 for image in images])
    monkeypatch.setenv("DETKIT_CHECKS", "full")
    with pytest.raises(ValueError, match=r"images\[0\] has pixels from .* to .*; allowed are floats in \[0, 1\]"):
        detector([image * 255 for image in images])


def test_shapes_and_devices_are_always_checked(detector):
    images, targets = two_scenes()
    there = pretend.on_device(targets)
    there[1]["labels"] = there[1]["labels"][:1]
    with pytest.raises(ValueError, match=r"targets\[1\]: boxes.*\(2, 4\).*labels \(1,\)"):
        detector(pretend.on_device(images), there)
    boxes = pretend.on_device(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"box_iou: boxes2 is on device cpu, boxes1 on pretend:0"):
        box_iou(boxes, torch.zeros(2, 4))


def test_what_waits_anyway_checks_values_anyway():
    boxes = torch.tensor([[0.0, 0, 9, 9], [5, 5, 1, 9]])
    with pytest.raises(ValueError, match=r"nms: boxes\[1\]: x2 < x1 \(1 < 5\)"):
        nms(*pretend.on_device((boxes, torch.ones(2))), 0.5)
    targets = pad_targets([Target(boxes=torch.tensor([[0.0, 0, 0.5, 1]]), labels=torch.tensor([3]))])
    predictions = Predictions(torch.rand(1, 4, 4).cumsum(-1) / 4, logits=torch.zeros(1, 4, 3))
    with pytest.raises(ValueError, match=r"image 0, target 0: label 3 must lie in 0\.\.1"):
        HungarianMatcher()(None, *pretend.on_device((targets, predictions)))
