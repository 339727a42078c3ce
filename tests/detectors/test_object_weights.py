"""Weights of objects, in every family and stage: 0 is an object that is not there, and normalizers count by weight."""

import pytest
import torch
from dense_parts import MATCHERS
from families import FAMILIES, losses_and_gradients, scene, small_family
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import boxes
from torch import Tensor

from detkit.anchors import BipartiteMatcher, HungarianMatcher
from detkit.structures import Anchors, Assignment, Predictions, Target, Targets, pad_targets

QUICK = "ssd", "detr + embedding", "pix2seq"
every_family = pytest.mark.parametrize(
    "family", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)


def some(target: Target, rows: slice, **entries: Tensor) -> Target:
    """Some of the objects, with more entries."""
    return Target(**{key: values[rows] for key, values in target.items()}, **entries)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@every_family
def test_an_object_of_weight_0_is_not_there(family):
    """Beside others, and alone in its image; in all losses and all gradients, to the last bit."""
    detector, (first, own), (second, lone) = small_family(family), scene(8, seed=1), scene(2, seed=2)
    weights = torch.tensor([1.0, 1, 1, 1, 1, 0, 0, 0])
    silent = [Target(**own, weights=weights), Target(**lone, weights=torch.zeros(2))]
    found = losses_and_gradients(detector, [first, second], silent)
    assert_equal(found, losses_and_gradients(detector, [first, second], [some(own, slice(5)), some(lone, slice(0))]))


@every_family
def test_a_batch_of_objects_of_weight_0_is_a_batch_without_objects(family):
    detector, (image, own) = small_family(family), scene(1)
    found = losses_and_gradients(detector, [image], [Target(**own, weights=torch.zeros(1))])
    assert_equal(found, losses_and_gradients(detector, [image], [some(own, slice(0))]))


@every_family
def test_weights_of_1_are_no_weights_and_others_change_every_loss(family):
    """All but those of pairs; and a weight near 0 makes none of them something that is no number."""
    detector = small_family(family)
    images, own = zip(scene(4, seed=3), scene(2, seed=4), strict=True)
    plain, ones, others = (
        losses_and_gradients(
            detector, images, [some(one, slice(4), **entries) for one, entries in zip(own, weights, strict=True)]
        )
        for weights in (
            [{}, {}],
            [{"weights": torch.ones(4)}, {"weights": torch.ones(2)}],
            [{"weights": torch.tensor([4.0, 0.5, 1e-6, 1])}, {"weights": torch.tensor([0.3, 0.2])}],
        )
    )
    assert_equal(ones, plain)
    assert all(torch.isfinite(value).all() for value in others.values())
    same = {name for name in plain if torch.equal(plain[name], others[name]) and not plain[name].shape}
    assert all(name.startswith("embedding.") for name in same), same


@every_family
def test_weights_whose_inverse_overflows_leave_all_gradients_finite(family):
    image, own = scene(3, seed=5)
    found = losses_and_gradients(small_family(family), [image], [Target(**own, weights=torch.full((3,), 1e-42))])
    assert all(torch.isfinite(value).all() for value in found.values())


PER_IMAGE = "yolo v1", "yolo v3"
MEANS = {"box", "l1", "giou", "centerness", "distribution", "mask", "keypoint"}  # of objects alone


@every_family
def test_twice_the_weight_of_all_objects_changes_no_mean_over_objects(family):
    """It doubles what is divided by the number of images; regions are sampled with background, of weight 1."""
    detector, (image, own) = small_family(family), scene(3, seed=5)
    once, twice = (
        losses_and_gradients(detector, [image], [Target(**own, weights=torch.full((3,), weight))])
        for weight in (1.0, 2.0)
    )
    factor = 2 if family in PER_IMAGE else 1
    for name in once:
        if name.split(".")[-1] in MEANS and not name.startswith(("rpn.", "box.")):
            torch.testing.assert_close(twice[name], once[name] * factor, msg=name)


every_matcher = pytest.mark.parametrize("name", [*MATCHERS, "hungarian"])


@every_matcher
@settings(max_examples=25)
@given(data=st.data())
@pytest.mark.slow
def test_no_matcher_sees_an_object_of_weight_0_but_all_see_a_crowd_of_any_weight(name, data):
    """Wherever it stands among hostile boxes."""
    rows = data.draw(boxes(huge=0, inverted=name != "hungarian"))
    count = len(rows)
    silent, crowds = (torch.tensor(data.draw(st.lists(st.booleans(), min_size=count, max_size=count))) for _ in "ab")
    silent, crowds = silent.bool().reshape(1, -1), crowds.bool().reshape(1, -1)
    targets = pad_targets([{"boxes": rows, "labels": torch.zeros(count).long()}])
    columns = torch.zeros(2, *targets.valid.shape, dtype=torch.bool)
    columns[0, :, :count], columns[1, :, :count] = silent, crowds
    targets = targets._replace(ignore=columns[1])
    found = matched(name, targets._replace(weights=(~columns[0]).float()))
    expected = matched(name, targets._replace(valid=targets.valid & ~(columns[0] & ~columns[1])))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


ONE_FOR_MANY = [name for name in MATCHERS if name != "bipartite"]


@pytest.mark.parametrize("name", ONE_FOR_MANY)
@settings(max_examples=25)
@given(data=st.data())
@pytest.mark.slow
def test_a_second_object_with_the_same_box_gets_no_anchor_of_its_own(name, data):
    """So that two of weight 1/2 have the anchors, and the weight, of one of 1/2: an anchor learns one object."""
    rows = data.draw(boxes(huge=0).filter(len))
    twice = torch.cat((rows[:1], rows))
    once, both = (pad_targets([{"boxes": own, "labels": torch.zeros(len(own)).long()}]) for own in (rows, twice))
    found = matched(name, both)
    expected = matched(name, once)
    assert torch.equal(torch.where(found.matched > 0, found.matched - 1, found.matched), expected.matched)
    assert torch.equal(found.quality, expected.quality)


def test_one_anchor_for_each_object_gives_a_second_object_with_the_same_box_the_next_best_anchor():
    box = torch.tensor([[0.1, 0.1, 0.4, 0.4]])
    places = torch.tensor([[0.1, 0.1, 0.4, 0.4], [0.1, 0.1, 0.35, 0.4], [0.6, 0.6, 0.9, 0.9]])
    once, twice = (pad_targets([{"boxes": box.repeat(n, 1), "labels": torch.zeros(n).long()}]) for n in (1, 2))
    strict = BipartiteMatcher(positive_iou=0.95)
    assert strict(places, once).matched.tolist() == [[0, -1, -1]]
    assert strict(places, twice).matched.tolist() == [[0, 1, -1]]
    queries = Predictions(places[None], logits=torch.zeros(1, 3, 2))
    assert HungarianMatcher()(None, once, queries).matched.tolist() == [[0, -1, -1]]
    assert HungarianMatcher()(None, twice, queries).matched[0, :2].sort().values.tolist() == [0, 1]


def matched(name: str, targets: Targets) -> Assignment:
    """What a matcher with its defaults says of two grids of cells over 96 pixels and their predictions."""
    generator = torch.Generator().manual_seed(0)
    levels = []
    for stride in (8, 24):
        steps = torch.arange(0, 96, stride) + stride / 2
        centers = torch.cartesian_prod(steps, steps).flip(1)
        levels.append(torch.cat((centers - stride, centers + stride), 1))
    cells = torch.cat(levels)
    strides = torch.tensor([[8.0, 8]] * len(levels[0]) + [[24.0, 24]] * len(levels[1]))
    anchors = Anchors(cells, strides, tuple(map(len, levels)))
    shifted = cells + torch.randn(len(cells), 4, generator=generator)
    logits = torch.randn(1, len(cells), 3, generator=generator)
    if name == "hungarian":
        targets = targets._replace(boxes=targets.boxes / 96)
        return HungarianMatcher()(None, targets, Predictions(shifted[None, ::20] / 96, logits=logits[:, ::20]))
    return Assignment(*MATCHERS[name]()(anchors, targets, Predictions(shifted[None], logits.sigmoid(), logits))[:2])
