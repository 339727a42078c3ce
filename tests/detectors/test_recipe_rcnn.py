"""Recipes of two stages: what they are built of, that they learn, and where their proposals come from."""

import pytest
import torch
from contracts import assert_trainable, empty_target, two_images
from torch import nn

from detkit.backbones import SmallBackbone
from detkit.detectors import (
    Detector,
    Preprocess,
    ProposalPostprocess,
    fast_rcnn,
    faster_rcnn,
    keypoint_rcnn,
    mask_rcnn,
    small_faster_rcnn,
    small_mask_rcnn,
)
from detkit.detectors.recipes.rcnn import box_stage, keypoint_stage, mask_stage, rpn_anchors, rpn_stage
from detkit.structures import Images, Target

SIZE = (96, 128)


def backbone() -> SmallBackbone:
    """Strides 4, 8, 16 and 32, a few channels."""
    return SmallBackbone((4, 4, 8, 8), levels=(0, 1, 2, 3))


def test_anchors_of_the_recipe_are_torchvisions():
    """The golden of (128, 256, 512) in ratios h/w of .5, 1 and 2, around the corner of the first cell."""
    images = Images(torch.zeros(1, 3, 64, 64), torch.tensor([[64, 64]]))
    found = rpn_anchors((16, 32, 64))([torch.zeros(1, 8, size, size) for size in (4, 2, 1)], images).boxes
    assert found.shape == (63, 4)
    golden = ((0, 91, 45, 64), (48, 181, 91, 128), (60, 362, 181, 256))
    for first, long, short, square in golden:
        expected = [[-long, -short, long, short], [-square, -square, square, square], [-short, -long, short, long]]
        assert found[first : first + 3].tolist() == expected
    assert found[3:6].tolist() == (found[:3] + torch.tensor([16, 0, 16, 0])).tolist()


# torchvision's models, less the outputs for background that nothing reads: 4 of 1024 + 1, and 1 mask of 256 + 1
COUNTS = {"faster": 41_808_406 - 4 * 1025, "mask": 44_454_513 - 4 * 1025 - 257}


@pytest.mark.parametrize(("name", "recipe"), [("faster", faster_rcnn), ("mask", mask_rcnn)])
def test_the_number_of_parameters_is_torchvisions(name, recipe):
    with torch.device("meta"):
        detector = recipe(num_classes=90)
    assert sum(parameter.numel() for parameter in detector.parameters()) == COUNTS[name]


def test_settings_are_the_published_ones():
    text = repr(faster_rcnn(5, backbone=backbone()))
    for part in (
        "Preprocess(size=800, max_size=1333, multiple_of=32)",
        "ThresholdMatcher(positive_iou=0.7, negative_iou=0.3, low_quality=True)",
        "BalancedSampler(256, positive_fraction=0.5)",
        "RPNLoss(smooth_l1_cost(beta=0.1111",
        "ProposalPostprocess(candidates_per_level=1000, max_proposals=1000, iou_threshold=0.7, min_size=0.001)",
        "ProposalPostprocess(candidates_per_level=2000, max_proposals=2000, iou_threshold=0.7, min_size=0.001)",
        "PyramidRoIAlign(7, strides=(4, 8, 16, 32), sampling_ratio=2)",
        "ThresholdMatcher(positive_iou=0.5, negative_iou=0.5, low_quality=False)",
        "BalancedSampler(512, positive_fraction=0.25)",
        "DeltaCoder(scale=(10.0, 10.0, 5.0, 5.0), clamp=4.135)",
        "RCNNLoss(smooth_l1_cost(beta=0.1111",
        "score_threshold=0.05, iou_threshold=0.5, max_detections=100, candidates_per_class=None, min_size=0.01",
    ):
        assert part in text, part


def test_the_coarsest_level_is_for_proposals_only():
    detector = faster_rcnn(5, backbone=backbone())
    assert len(detector.rpn.anchors.per_cell) == 5
    assert detector.box.pool.strides == (4, 8, 16, 32)


def test_stages_may_be_given_other_parts():
    few = ProposalPostprocess(max_proposals=7)
    stage = rpn_stage(8, rpn_anchors((8, 16)), depth=2, postprocess=few)
    assert stage.postprocess is stage.training_postprocess is few
    assert sum(isinstance(layer, nn.Conv2d) for layer in stage.head.modules()) == 4
    assert mask_stage(3, 8, (8, 16), widths=(4,), canonical_size=50.0).pool.canonical_size == 50
    assert box_stage(3, 8, (8, 16), canonical_size=60.0).pool.canonical_size == 60
    assert keypoint_stage(5, 8, (8,)).pool.strides == (8,)


def few_boxes(detector: Detector) -> Detector:
    """The heads are as wide as published: two positives and three detections of an image are enough for them."""
    detector.get_submodule("box.sampler").count = 8
    detector.get_submodule("box.postprocess").max_detections = 3
    return detector


def points(targets: list[Target]) -> list[Target]:
    """Five visible points on the diagonal of each object."""
    steps = torch.linspace(0.1, 0.9, 5)[:, None]
    with_points = []
    for target in targets:
        places = target["boxes"][:, None, :2] * (1 - steps) + target["boxes"][:, None, 2:] * steps
        with_points.append(Target(**target, keypoints=torch.cat((places, torch.ones(*places.shape[:2], 1)), dim=2)))
    return with_points


@pytest.mark.slow
def test_keypoint_rcnn_learns_and_finds_points():
    torch.manual_seed(0)
    detector = few_boxes(keypoint_rcnn(2, num_keypoints=5, backbone=backbone(), preprocess=Preprocess(SIZE)).eval())
    images, targets = two_images()
    losses = assert_trainable(detector, images, points(targets))
    assert {name.split(".")[0] for name in losses} == {"rpn", "box", "keypoint"}
    assert losses["keypoint.keypoint"] > 0
    for found in detector(images):
        assert found["keypoints"].shape == (len(found["boxes"]), 5, 3)
        assert found["keypoints_scores"].shape == (len(found["boxes"]), 5)
        assert len(found["boxes"])


@pytest.mark.slow
def test_mask_rcnn_draws_masks_as_large_as_the_images():
    torch.manual_seed(0)
    detector = few_boxes(mask_rcnn(2, backbone=backbone(), preprocess=Preprocess(SIZE)).eval())
    images, _ = two_images()
    for image, found in zip(images, detector(images), strict=True):
        assert found["masks"].dtype == torch.bool
        assert found["masks"].shape == (len(found["boxes"]), *image.shape[1:])
        assert found["masks"].any()


@pytest.mark.slow
def test_fast_rcnn_learns_and_finds_on_proposals_from_outside():
    torch.manual_seed(0)
    detector = fast_rcnn(2, backbone=backbone(), preprocess=Preprocess(SIZE)).eval()
    images, targets = two_images()
    proposals = [{"boxes": target["boxes"] + 2, "scores": torch.ones(len(target["boxes"]))} for target in targets]
    none = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0)}
    for given in (proposals, [proposals[0], none], [none, none]):
        losses = detector(images, targets, given)
        sum(losses.values()).backward()
        assert all(torch.isfinite(loss) and loss > 0 for loss in losses.values())
        found = detector(images, proposals=given)
        for own, result in zip(given, found, strict=True):
            assert len(result["boxes"]) <= 2 * len(own["boxes"])
        assert (len(found[0]["boxes"]) > 0) == (len(given[0]["boxes"]) > 0)
    assert all(parameter.grad is not None for parameter in detector.parameters() if parameter.requires_grad)
    with pytest.raises(ValueError, match="BoxStage: got no proposals; put a stage that makes them before it, or give"):
        detector(images)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "norm"), [(small_faster_rcnn, nn.BatchNorm2d), (small_mask_rcnn, lambda width: nn.GroupNorm(4, width))]
)
def test_small_ones_learn_what_they_are_shown(recipe, norm):
    """Twenty steps on two images: what it costs to call something an object, and which, falls well below the start."""
    torch.manual_seed(0)
    detector = recipe(2, size=SIZE, channels=16, norm=norm).train()
    optimizer = torch.optim.AdamW(detector.parameters(), lr=3e-3)
    images, targets = two_images()
    history = []
    for _ in range(20):
        losses = detector(images, targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append(sum(losses.values()).item())
    assert sum(history[-3:]) < 0.6 * sum(history[:3])


def test_small_ones_take_other_widths_depths_and_sizes():
    detector = small_faster_rcnn(4, size=(64, 96), channels=8, blocks=2)
    deeper = sum(isinstance(layer, nn.Conv2d) for layer in detector.trunk.modules())
    assert deeper > sum(isinstance(layer, nn.Conv2d) for layer in small_faster_rcnn(4, channels=8).trunk.modules())
    images, targets = two_images()
    assert_trainable(detector, images, [targets[0], empty_target()])


def test_an_image_smaller_than_a_cell_of_the_coarsest_level_is_looked_at():
    torch.manual_seed(0)
    detector = small_mask_rcnn(2, size=(20, 24), channels=8).eval()
    (found,) = detector([torch.rand(3, 10, 12)])
    assert found["masks"].shape[1:] == (10, 12)


def test_proposals_to_learn_on_may_be_set_alone():
    own = ProposalPostprocess(max_proposals=7)
    stage = rpn_stage(8, rpn_anchors((8, 16)), training_postprocess=own)
    assert stage.training_postprocess is own
    assert stage.postprocess.max_proposals == 1000
