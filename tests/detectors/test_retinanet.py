"""The RetinaNet recipes: what they consist of, the contract of detectors, and that a small one learns."""

import pytest
import torch
from contracts import LEARNED_BACKGROUND, Case, Check, assert_trainable, empty_target, two_images
from torch import nn

from detkit.backbones import SmallBackbone
from detkit.detectors import Detector, Preprocess
from detkit.detectors.recipes.fcos import small_fcos
from detkit.detectors.recipes.retinanet import retinanet, retinanet_v2, small_retinanet
from detkit.heads import FCOSHead
from detkit.structures import Target


def eager(recipe) -> Detector:
    """A small detector whose scores start at one half, so that it finds something."""
    detector = recipe(3, size=(96, 128), channels=16)
    nn.init.zeros_(detector.dense.head.class_head.logits.bias)
    if isinstance(detector.dense.head.box_head, FCOSHead):
        nn.init.constant_(detector.dense.head.box_head.distances.bias, 3.0)  # strides: else no box reaches the border
    return detector


CASES = {recipe.__name__: Case(lambda recipe=recipe: eager(recipe), 3) for recipe in (small_retinanet, small_fcos)}


@pytest.mark.slow
@pytest.mark.parametrize("check", LEARNED_BACKGROUND, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_small_detector_with_a_focal_loss_keeps_the_contract(case: Case, check: Check):
    check(case)


@pytest.mark.parametrize("flat", [[], [[20, 20, 20, 60], [30, 30, 30, 30]]], ids=["no objects", "flat objects"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_without_positives_only_background_costs_and_every_parameter_has_a_gradient(case: Case, flat):
    detector = case.detector().train()
    detector.preprocess.degenerate = "drop"
    losses = assert_trainable(detector, two_images()[0], [empty_target(flat), empty_target()])
    assert losses.pop("dense.classification") > 0
    assert all(loss == 0 for loss in losses.values())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_crowd_hides_the_background_under_it(case: Case):
    detector, (images, _) = case.detector(), two_images()
    everywhere = Target(
        boxes=torch.tensor([[-500.0, -500, 900, 900]]), labels=torch.tensor([0]), iscrowd=torch.tensor([1])
    )
    assert all(loss == 0 for loss in detector(images, [everywhere, everywhere]).values())


def test_levels_and_anchors_are_those_of_the_paper():
    detector = retinanet(2, backbone=SmallBackbone((8, 16, 16, 16), levels=(1, 2, 3)))
    assert detector.trunk[1].strides == (8, 16, 32, 64, 128)
    assert detector.dense.anchors.per_cell == (9,) * 5
    shapes = [detector.dense.anchors.get_buffer(f"shapes_{level}") for level in (0, 4)]
    assert shapes[0][3:6].tolist() == [[32, 32], [40, 40], [50, 50]]
    assert shapes[1][3].tolist() == [512, 512]
    assert detector.preprocess.size == 800
    assert torch.sigmoid(detector.dense.head.class_head.logits.bias).unique().item() == pytest.approx(0.01)


def test_given_parts_are_taken():
    backbone, preprocess = SmallBackbone((8, 16, 16, 16), levels=(1, 2, 3)), Preprocess((64, 64))
    for recipe in (retinanet, retinanet_v2):
        detector = recipe(2, backbone=backbone, preprocess=preprocess)
        assert detector.trunk[0] is backbone
        assert detector.preprocess is preprocess
    assert any(isinstance(part, nn.GroupNorm) for part in detector.dense.head.class_head.modules())


def test_heads_have_towers_of_their_own():
    detector = small_retinanet(2, channels=8)
    parts = [
        {id(weights) for weights in head.parameters()}
        for head in (detector.dense.head.class_head, detector.dense.head.box_head)
    ]
    assert not parts[0] & parts[1]
