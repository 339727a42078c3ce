"""The YOLO recipes: their parameters and anchors, the contract of detectors, and that a small one learns digits."""

import pytest
import torch
from contracts import LEARNED_BACKGROUND, Case, Check, assert_trainable, empty_target, two_images
from torch import nn

from detkit.anchors import GridAnchors, ResponsibleMatcher, ShapeMatcher
from detkit.backbones import SmallBackbone, darknet19_backbone
from detkit.boxes import GridCoder
from detkit.data import DigitScenes
from detkit.detectors import (
    DenseStage,
    Detector,
    LevelwisePostprocess,
    Postprocess,
    Preprocess,
    small_yolo_v3,
    yolo_stage,
    yolo_v1_tiny,
    yolo_v2,
    yolo_v2_tiny,
    yolo_v3,
    yolo_v3_tiny,
)
from detkit.heads import CellHead
from detkit.losses import YOLOLoss, YOLOv1Loss
from detkit.necks import PassthroughNeck
from detkit.structures import Images


def floats_in_a_file(detector: Detector) -> int:
    """How many numbers a file of weights holds: parameters, and the running mean and variance of norms."""
    norms = sum(2 * layer.num_features for layer in detector.modules() if isinstance(layer, nn.BatchNorm2d))
    return norms + sum(parameter.numel() for parameter in detector.parameters())


@pytest.mark.usefixtures("no_memory")
@pytest.mark.parametrize(
    ("recipe", "classes", "header", "size"),
    [
        (yolo_v3, 80, 20, 248_007_048),
        (yolo_v3_tiny, 80, 20, 35_434_956),
        (yolo_v2, 80, 16, 203_934_260),
        (yolo_v2_tiny, 20, 16, 63_471_556),
    ],
)
def test_it_has_as_many_numbers_as_the_published_file(recipe, classes, header, size):
    assert header + 4 * floats_in_a_file(recipe(classes)) == size


@pytest.mark.slow
def test_v3_looks_at_10647_places_and_v3_tiny_at_2535():
    for detector, expected in ((yolo_v3(1), 10_647), (yolo_v3_tiny(1), 2_535)):
        strides = [int(stride) for stride in detector.dense.anchors.strides]
        features = [torch.zeros(1, 1, 416 // stride, 416 // stride) for stride in strides]
        images = Images(torch.zeros(1, 3, 416, 416), torch.tensor([[416, 416]]))
        assert len(detector.dense.anchors(features, images).boxes) == expected


def test_any_multiple_of_32_may_be_the_size():
    detector = yolo_v3_tiny(2).eval()
    for side in (64, 96):
        detector.preprocess.size = (side, side)
        batch, _ = detector.preprocess([torch.rand(3, 50, 70)])
        assert batch.tensors.shape[-2:] == (side, side)
        (found,) = detector([torch.rand(3, 50, 70)])
        assert (found["boxes"] <= torch.tensor([70, 50, 70, 50])).all()


@pytest.mark.slow
def test_v2_learns_by_its_own_rule_from_anchors_given_in_cells():
    stage = yolo_v2(3).dense
    assert stage.matcher.ignore_iou == 0.6
    criterion = stage.criterion
    assert (criterion.classes, criterion.rescore, criterion.prior_images) == ("softmax", True, 12_800)
    weights = criterion.object_weight, criterion.background_weight, criterion.class_weight, criterion.box_weight
    assert weights == (5, 1, 1, 1)
    anchors = stage.anchors([torch.zeros(1, 1, 1, 1)], Images(torch.zeros(1, 3, 32, 32), torch.tensor([[32, 32]])))
    sizes = anchors.boxes[:, 2:] - anchors.boxes[:, :2]
    torch.testing.assert_close(sizes[[0, 4]] / 32, torch.tensor([[1.3221, 1.73145], [11.2364, 10.0071]]))


def test_v1_tiny_has_49_cells_of_two_boxes_each_of_the_whole_image():
    stage = yolo_v1_tiny(20).dense
    images = Images(torch.zeros(1, 3, 448, 448), torch.tensor([[448, 448]]))
    boxes, strides, counts = stage.anchors([torch.zeros(1, 1, 7, 7)], images)
    assert counts == (98,)
    assert strides.unique().tolist() == [64]
    assert (boxes[:, 2:] - boxes[:, :2]).unique().tolist() == [448]
    assert stage.coder.form == "root"
    assert stage.head.layers[-1].out_features == 1470


def small_v1() -> Detector:
    """A small net with v1's stage on a grid of 3 x 4 cells."""
    backbone = SmallBackbone((8, 8, 8, 16), levels=(3,))
    stage = DenseStage(
        head=CellHead(16, (3, 4), per_cell=2, num_classes=3),
        anchors=GridAnchors(shapes=[[(128, 96)] * 2], strides=(32,)),
        matcher=ResponsibleMatcher(),
        coder=GridCoder(form="root"),
        criterion=YOLOv1Loss(),
        postprocess=Postprocess(score_threshold=0.0),
    )
    nn.init.constant_(stage.head.layers[-1].bias, 0.5)  # so that it finds something
    return Detector(backbone, preprocess=Preprocess((96, 128)), dense=stage)


def small() -> Detector:
    """A small detector whose objectness starts at one half, so that it finds something."""
    detector = small_yolo_v3(3, size=(96, 128), channels=16)
    nn.init.zeros_(detector.dense.head.levels[0].bias)
    return detector


def small_v2() -> Detector:
    """Darknet-19, the passthrough and v2's stage, all of few channels."""
    backbone = darknet19_backbone(width=4)
    neck = PassthroughNeck(backbone.out_channels, backbone.strides, channels=32, passed=4)
    criterion = YOLOLoss(classes="softmax", rescore=True, object_weight=5.0, prior_images=12_800)
    anchors = GridAnchors(shapes=[[(40, 40), (80, 50)]], strides=neck.strides)
    stage = yolo_stage(3, neck.out_channels, anchors, matcher=ShapeMatcher(ignore_iou=0.6), criterion=criterion)
    preprocess = Preprocess((96, 128), mean=(0.0,) * 3, std=(1.0,) * 3, letterbox=True)
    return Detector(nn.Sequential(backbone, neck), preprocess=preprocess, dense=stage)


@pytest.mark.slow
@pytest.mark.parametrize("check", LEARNED_BACKGROUND, ids=lambda check: check.__name__)
@pytest.mark.parametrize("build", [small, small_v2, small_v1])
def test_a_small_one_keeps_the_contract(build, check: Check):
    check(Case(build, 3))


@pytest.mark.parametrize("flat", [[], [[20, 20, 20, 60], [30, 30, 30, 30]]], ids=["no objects", "flat objects"])
@pytest.mark.parametrize("build", [small, small_v2, small_v1])
def test_without_positives_only_background_costs_and_every_parameter_has_a_gradient(build, flat):
    detector = Case(build, 3).detector().train()
    detector.preprocess.degenerate = "drop"
    losses = assert_trainable(detector, two_images()[0], [empty_target(flat), empty_target()])
    assert losses.pop("dense.objectness") > 0
    assert losses.pop("dense.prior", 1) > 0
    assert all(loss == 0 for loss in losses.values())


def test_parts_of_ones_own_are_taken():
    anchors, matcher, criterion = GridAnchors(shapes=[[(16, 16)]], strides=(8,)), ShapeMatcher(), YOLOLoss()
    postprocess = LevelwisePostprocess()
    stage = yolo_stage(2, [8], anchors, matcher=matcher, criterion=criterion, postprocess=postprocess)
    assert (stage.anchors, stage.matcher, stage.criterion, stage.postprocess) == (
        anchors,
        matcher,
        criterion,
        postprocess,
    )


@pytest.mark.slow(7)
def test_a_small_one_learns_a_digit_scene_by_heart():
    torch.manual_seed(0)
    image, target = DigitScenes(1, size=(96, 96), seed=0)[0]
    detector = small_yolo_v3(10, size=(96, 96), channels=16)
    optimizer = torch.optim.Adam(detector.parameters(), lr=5e-3)
    for _ in range(120):
        optimizer.zero_grad()
        sum(detector([image, image], [target, target]).values()).backward()
        optimizer.step()
    (found,) = detector.eval()([image])
    count = len(target["labels"])
    assert found["scores"][:count].min() > 0.4
    places = (found["boxes"][:count, None] - target["boxes"][None]).abs().amax(-1)
    nearest = places.argmin(1)
    assert nearest.unique().numel() == count
    assert places.min(1).values.max() < 4
    assert torch.equal(found["labels"][:count], target["labels"][nearest])
