"""One-shot stages with one shared head: what the head fits, where it starts, and the recipes that stand on it."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from contracts import LEARNED_BACKGROUND, Case, Check, assert_trainable, empty_target, two_images
from thorough import mostly
from torch import nn

from detkit.anchors import BipartiteMatcher, DefaultBoxes, GridAnchors
from detkit.boxes import DeltaCoder, DistanceCoder, DistributionCoder, GridCoder
from detkit.detectors import Detector, one_shot_stage, square_anchors
from detkit.detectors.recipes.fcos import small_fcos
from detkit.detectors.recipes.one_shot import small_tood, small_yolox, tood, yolox
from detkit.detectors.recipes.retinanet import small_retinanet
from detkit.layers import conv_tower
from detkit.losses import FCOSLoss, MultiBoxLoss, ObjectnessLoss, QualityLoss, RetinaNetLoss
from detkit.structures import Images, Target

FEATURES = [torch.zeros(1, 16, 4, 4), torch.zeros(1, 16, 2, 2)]
IMAGES = Images(torch.zeros(1, 3, 32, 32), torch.tensor([[32, 32]]))
SQUARES = square_anchors((8, 16))


def stage(coder, criterion, *, anchors=SQUARES, tower=None):
    return one_shot_stage(3, 16, anchors, matcher=BipartiteMatcher(), coder=coder, criterion=criterion, tower=tower)


@pytest.mark.parametrize(
    ("coder", "criterion", "logits", "numbers", "quality"),
    [
        (DeltaCoder(), MultiBoxLoss(), 4, 4, False),
        (DistanceCoder(unit=1.0), RetinaNetLoss(), 3, 4, False),
        (DistributionCoder(DistanceCoder(unit=1.0), bins=5), QualityLoss(distribution_weight=0.5), 3, 24, False),
        (GridCoder(), ObjectnessLoss(), 3, 4, True),
        (DeltaCoder(), FCOSLoss(), 3, 4, True),
    ],
)
def test_the_head_has_the_columns_that_coder_and_criterion_read(coder, criterion, logits, numbers, quality):
    found = stage(coder, criterion).head(FEATURES)
    assert found.logits.shape == (1, 20, logits)
    assert found.deltas.shape == (1, 20, numbers)
    assert (found.quality is not None) is quality


@pytest.mark.parametrize("coder", [DeltaCoder((10.0, 10.0, 5.0, 5.0)), DistanceCoder(unit=1 / 8), GridCoder()])
@pytest.mark.parametrize("per_cell", [1, 3])
def test_boxes_start_at_their_anchors(coder, per_cell):
    sizes = [[side * k for k in range(1, per_cell + 1)] for side in (8, 16)]
    anchors = GridAnchors(sizes, aspect_ratios=(1.0,), strides=(8, 16))
    dense = stage(coder, RetinaNetLoss(), anchors=anchors)
    places = dense.anchors(FEATURES, IMAGES)
    decoded = dense.coder.decode(dense.head(FEATURES).deltas, places)
    torch.testing.assert_close(decoded[0], places.boxes, atol=1e-4, rtol=0)


def test_scores_start_at_one_in_a_hundred_where_classes_are_independent():
    focal, softmax, object_ = (
        stage(DeltaCoder(), loss) for loss in (RetinaNetLoss(), MultiBoxLoss(), ObjectnessLoss())
    )
    torch.testing.assert_close(focal.criterion.scores(focal.head(FEATURES)), torch.full((1, 20, 3), 0.01))
    torch.testing.assert_close(softmax.criterion.scores(softmax.head(FEATURES)), torch.full((1, 20, 3), 0.25))
    torch.testing.assert_close(object_.criterion.scores(object_.head(FEATURES)), torch.full((1, 20, 3), 1e-4))


def test_each_part_has_a_tower_of_its_own():
    built = []

    def tower(channels):
        built.append(conv_tower(channels, depth=2, norm=None, activation=nn.SiLU))
        return built[-1]

    head = stage(DeltaCoder(), ObjectnessLoss(), tower=tower).head
    assert [head.class_head.tower, head.box_head.tower, head.quality_head.tower] == built


def test_a_tower_instead_of_what_builds_one_is_refused():
    with pytest.raises(ValueError, match=r"tower is a Sequential; give a function that builds one.*tower\(channels\)"):
        stage(DeltaCoder(), ObjectnessLoss(), tower=conv_tower(16))


def test_levels_with_different_numbers_of_anchors_are_refused():
    anchors = DefaultBoxes([(8, 16), (16, 32)], aspect_ratios=[(2,), (2, 3)])
    with pytest.raises(ValueError, match=r"one_shot_stage: anchors have per_cell=\(4, 6\).*equal numbers"):
        stage(DeltaCoder(), MultiBoxLoss(), anchors=anchors)


def test_a_coder_that_does_not_encode_is_refused():
    with pytest.raises(ValueError, match=r"one_shot_stage: coder is a Identity, .* called as coder\.encode"):
        stage(nn.Identity(), MultiBoxLoss())


@pytest.mark.parametrize("recipe", [tood, yolox])
def test_full_recipes_have_five_levels_and_towers_of_their_own_depth(recipe):
    with torch.device("meta"):
        detector = recipe(7)
    assert detector.dense.anchors.strides == (8, 16, 32, 64, 128)
    assert len(detector.dense.head.class_head.tower) == {tood: 4, yolox: 2}[recipe]
    assert detector.dense.head.class_head.num_classes == 7


def eager(recipe) -> Detector:
    """A small detector whose scores start at one half, so that it finds something."""
    detector = recipe(3, size=(96, 128), channels=16)
    for part in (detector.dense.head.class_head, detector.dense.head.quality_head):
        if part is not None:
            nn.init.zeros_(part.logits.bias)
    return detector


CASES = {recipe.__name__: Case(lambda recipe=recipe: eager(recipe), 3) for recipe in (small_tood, small_yolox)}


@pytest.mark.slow
@pytest.mark.parametrize("check", LEARNED_BACKGROUND, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_small_one_keeps_the_contract(case: Case, check: Check):
    check(case)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.slow
def test_without_objects_only_background_costs_and_every_parameter_has_a_gradient(case: Case):
    losses = assert_trainable(case.detector().train(), two_images()[0], [empty_target(), empty_target()])
    background = {name for name, loss in losses.items() if loss > 0}
    assert background <= {"dense.classification", "dense.objectness"}
    assert len(background) == 1


@pytest.mark.slow(2)
@pytest.mark.parametrize(
    "recipe",
    mostly(
        (small_retinanet, small_fcos, small_tood, small_yolox),
        (small_fcos, small_yolox),
        "FCOS and YOLOX did NOT learn by heart, RetinaNet and TOOD did",
    ),
)
def test_it_learns_one_image_by_heart(recipe):
    torch.manual_seed(0)
    detector = recipe(2, size=(64, 64), channels=16)
    image = torch.zeros(3, 64, 64)
    image[0, 8:32, 8:32] = 1.0
    image[1, 30:60, 24:60] = 1.0
    boxes = torch.tensor([[8.0, 8, 32, 32], [24, 30, 60, 60]])
    target = Target(boxes=boxes, labels=torch.tensor([0, 1]))
    optimizer = torch.optim.Adam(detector.parameters(), lr=5e-3)
    for _ in range(100):
        optimizer.zero_grad()
        sum(detector([image, image], [target, target]).values()).backward()
        optimizer.step()
    (found,) = detector.eval()([image])
    assert found["scores"][:2].min() > 0.4
    order = found["labels"][:2].argsort()
    assert found["labels"][:2][order].tolist() == [0, 1]
    torch.testing.assert_close(found["boxes"][:2][order], boxes, rtol=0, atol=4)


@pytest.fixture(scope="module")
def compared():
    """The example that compares detectors, as a module."""
    path = Path(__file__).parents[2] / "examples" / "dozen_detectors.py"
    spec = importlib.util.spec_from_file_location("dozen_detectors", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_comparison_holds_more_than_a_dozen_different_detectors_that_train(compared):
    assert len(compared.DETECTORS) >= 12
    rows = {name: tuple(map(str, parts)) for name, parts in compared.DETECTORS.items()}
    assert len(set(rows.values())) == len(rows), "two lines say the same"
    images, targets = two_images()
    for name in compared.DETECTORS:
        detector = compared.compose(name)
        assert_trainable(detector, images, targets)
