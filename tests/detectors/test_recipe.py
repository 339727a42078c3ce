"""A detector remembers which recipe built it, and from what."""

import copy

import torch
from torch import nn

from detkit import detectors
from detkit.detectors import Detector, fpn_ssd, ssd300
from detkit.detectors.recipe import recipe_named


def test_the_outermost_recipe_and_the_given_arguments_are_kept():
    made = fpn_ssd(3, size=(64, 96), channels=8).recipe
    assert made == ("fpn_ssd", {"num_classes": 3, "size": (64, 96), "channels": 8}, ())


def test_a_recipe_that_calls_another_is_the_one_that_is_kept():
    with torch.device("meta"):
        assert ssd300(2).recipe.name == "ssd300"


def test_arguments_that_are_no_plain_values_are_named_only():
    made = fpn_ssd(num_classes=2, size=(64, 96), norm=nn.BatchNorm2d).recipe
    assert (made.arguments, made.unwritable) == ({"num_classes": 2, "size": (64, 96)}, ("norm",))


def test_copies_keep_it_and_hand_made_detectors_have_none():
    detector = fpn_ssd(2, size=(64, 96), channels=8)
    assert copy.deepcopy(detector).recipe == detector.recipe
    assert Detector(detector.trunk, preprocess=detector.preprocess, dense=detector.dense).recipe is None


def test_every_public_function_that_builds_a_detector_is_a_recipe_and_no_other():
    for name in {*detectors.__all__} - {"inference_form"}:
        thing = getattr(detectors, name)
        builds = getattr(thing, "__annotations__", {}).get("return") is Detector
        assert (recipe_named(name) is thing) == builds, name
