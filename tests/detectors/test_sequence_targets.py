"""Sequences of Pix2Seq: the three orders, noise objects, token weights, and what a step reads and says."""

import math
import re

import pytest
import torch
from strategies import random_boxes, unhooked
from torch import Tensor

from detkit.boxes.tokens import TokenCoder
from detkit.detectors.sequence_targets import SequenceTargetBuilder, noise_boxes, object_order
from detkit.structures import Targets, pad_targets

FIGURE = torch.tensor([[327, 370, 653, 444], [544, 135, 987, 338], [508, 518, 805, 892]])
"""Tokens ymin, xmin, ymax, xmax of three objects in a published figure, of 1000 bins."""
SIZES = torch.tensor([[100, 120], [90, 110], [100, 100]])


def figure_boxes(width: float) -> Tensor:
    """The figure's boxes in pixels of an image that is 1 high."""
    fractions = (FIGURE - 1) / 999
    return (fractions * torch.tensor([1.0, width, 1.0, width]))[:, [1, 0, 3, 2]][None]


def all_valid(boxes: Tensor) -> Tensor:
    return torch.ones(boxes.shape[:2], dtype=torch.bool)


def truth(**more) -> Targets:
    """Three objects and a crowd, one object, none."""
    boxes = random_boxes(5, extent=80)
    images = [
        {"boxes": boxes[:4], "labels": torch.tensor([2, 0, 1, 2]), "iscrowd": torch.tensor([0, 1, 0, 0])},
        {"boxes": boxes[4:], "labels": torch.tensor([1])},
        {"boxes": boxes[:0], "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    return pad_targets(
        [{**image, **{key: values[i] for key, values in more.items()}} for i, image in enumerate(images)]
    )


def builder(**settings) -> SequenceTargetBuilder:
    return SequenceTargetBuilder(TokenCoder(3, bins=50, vocabulary="paper"), **{"max_objects": 6, **settings})


# Orders


def test_dist2ori_of_the_figure_holds_for_an_image_of_4_to_3():
    boxes = figure_boxes(4 / 3)
    order = object_order(boxes, all_valid(boxes), order="dist2ori")[0]
    assert FIGURE[order, 0].tolist() == [544, 327, 508]


@pytest.mark.parametrize(("width", "first"), [(1.25, 327), (1.275, 544)])
def test_dist2ori_measures_in_pixels_not_in_fractions(width, first):
    """The figure's order turns where width / height is 1.262."""
    boxes = figure_boxes(width)
    assert FIGURE[object_order(boxes, all_valid(boxes), order="dist2ori")[0, 0], 0] == first


def test_area_goes_from_the_largest_down_for_normalized_boxes_too():
    boxes = figure_boxes(1.0)
    assert FIGURE[object_order(boxes, all_valid(boxes), order="area")[0], 0].tolist() == [508, 544, 327]


@pytest.mark.parametrize("order", ["area", "dist2ori"])
def test_ties_keep_their_order_and_padding_comes_last(order):
    boxes = torch.tensor([[[1.0, 1, 2, 2]] * 40])
    valid = torch.arange(40)[None] % 3 > 0
    found = object_order(boxes, valid, order=order)[0].tolist()
    assert found == [i for i in range(40) if i % 3] + [i for i in range(40) if i % 3 == 0]


@pytest.mark.parametrize("order", ["area", "dist2ori", "random"])
def test_nan_and_infinite_boxes_stay_before_padding(order):
    boxes = torch.tensor([[[0.0, 0, 9, 9], [torch.nan, 0, 1, 1], [0, 0, 1e30, 1e30], [1, 1, 2, 2]]])
    valid = torch.tensor([[False, True, True, True]])
    assert object_order(boxes, valid, order=order)[0, -1] == 0


def test_a_random_order_is_any_with_the_same_chance(generator):
    boxes = random_boxes(4).expand(6000, -1, -1)
    valid = torch.tensor([[True, True, True, False]]).expand(6000, -1)
    found = object_order(boxes, valid, generator=generator)
    assert (found[:, 3] == 3).all()
    shares = torch.bincount(found[:, 0] * 9 + found[:, 1] * 3 + found[:, 2], minlength=27) / 6000
    assert shares[shares > 0].tolist() == pytest.approx([1 / 6] * 6, abs=0.02)


def test_a_generator_state_is_an_order():
    boxes, valid = random_boxes(60).reshape(2, 30, 4), torch.ones(2, 30, dtype=torch.bool)
    one, same, other = (object_order(boxes, valid, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


# Noise


def many_noise(generator: torch.Generator, *, objects: int = 3, rows: int = 40, images: int = 500):
    box = torch.tensor([40.0, 30, 60, 70])
    boxes = torch.where(torch.arange(rows)[:, None] < objects, box, 0).expand(images, -1, -1)
    real = (torch.arange(rows) < objects).expand(images, -1)
    return boxes, real, noise_boxes(boxes, real, torch.tensor([[200, 150]]).expand(images, -1), generator=generator)


def test_duplicates_are_none_to_all_objects_evenly_and_never_in_an_objects_place(generator):
    _, real, found = many_noise(generator, images=4000)
    counts = found.duplicate.sum(1)
    assert (torch.bincount(counts) / 4000).tolist() == pytest.approx([0.25] * 4, abs=0.03)
    assert not (found.duplicate & real).any()
    places = found.duplicate.float().mean(0)[3:]
    assert places.max() < 2 * places.min()


def test_duplicates_are_jittered_by_a_twentieth_of_their_sides_at_most_a_tenth(generator):
    boxes, _, found = many_noise(generator, images=4000)
    shifts = (found.boxes[found.duplicate] - boxes[0, 0]) / torch.tensor([20.0, 40, 20, 40])
    assert shifts.abs().max() <= 0.1 + 1e-6
    assert shifts.abs().max() > 0.09
    assert shifts.mean(0).abs().max() < 0.003
    # A standard normal held to +-2 has the deviation .8796.
    assert shifts.std(0).tolist() == pytest.approx([0.05 * 0.8796] * 4, rel=0.04)


def test_half_of_the_bad_boxes_are_objects_moved_anywhere(generator):
    _, real, found = many_noise(generator)
    bad = found.boxes[~real & ~found.duplicate]
    inside = (bad > 0).all(-1) & (bad[:, 2] < 150) & (bad[:, 3] < 200)
    as_large = torch.isclose(bad[:, 2:] - bad[:, :2], torch.tensor([20.0, 40]), atol=1e-3).all(-1)
    centers = (bad[as_large, :2] + bad[as_large, 2:]) / 2
    # What was clipped has lost its size: a moved box lies inside with chance 130/150 * 160/200.
    assert as_large.float().mean().item() == pytest.approx(0.5 * (130 / 150) * (160 / 200), abs=0.02)
    assert centers.mean(0).tolist() == pytest.approx([75, 100], rel=0.03)
    assert inside.float().mean() < 0.9


def test_noise_lies_in_its_image_and_is_upright(generator):
    for objects in (0, 1, 7):
        _, _, found = many_noise(generator, objects=objects)
        assert (found.boxes >= 0).all()
        assert (found.boxes <= torch.tensor([150, 200, 150, 200])).all()
        assert (found.boxes[..., 2:] >= found.boxes[..., :2]).all()
        assert objects > 0 or not found.duplicate.any()


def test_an_image_without_objects_has_random_boxes_of_many_sizes(generator):
    _, _, found = many_noise(generator, objects=0)
    sides = found.boxes[..., 2:] - found.boxes[..., :2]
    assert sides.std() > 10
    assert (sides > 0).float().mean() > 0.99


# Sequences


def test_without_noise_objects_are_followed_by_end_tokens_of_small_weight():
    targets, build = truth(), builder(noise=False, order="area")
    found = build(targets, SIZES)
    order = object_order(targets.boxes, targets.valid & ~targets.ignore, order="area")
    for i, count in enumerate((3, 1, 0)):
        rows = order[i, :count]
        expected = build.coder.encode(targets.boxes[i, rows], targets.labels[i, rows], SIZES[i])
        assert found.tokens[i].tolist() == expected.flatten().tolist() + [0] * (30 - 5 * count)
        assert found.weights[i].tolist() == pytest.approx([1.0] * 5 * count + [0.1] * (30 - 5 * count))
    assert found.weights.sum().item() == pytest.approx(4 * 5 + 0.1 * (18 - 4) * 5)
    assert torch.equal(found.inputs[:, 1:], found.tokens[:, :-1])
    assert (found.inputs[:, 0] == build.coder.start).all()


def test_with_noise_real_tokens_weigh_1_noise_coordinates_0_and_noise_classes_1(generator):
    found = builder()(truth(), SIZES, generator=generator)
    real = torch.tensor([3, 1, 0])[:, None] > torch.arange(6)
    expected = torch.where(real[..., None], 1.0, torch.tensor([0.0, 0, 0, 0, 1])).flatten(1)
    assert torch.equal(found.weights, expected)
    assert found.weights.sum() == 4 * 5 + 14


def test_noise_weight_is_what_a_noise_class_weighs(generator):
    found = builder(noise_weight=0.25)(truth(), SIZES, generator=generator)
    assert found.weights.sum() == 4 * 5 + 14 * 0.25
    assert builder(noise=False, end_weight=0.0)(truth(), SIZES).weights.sum() == 4 * 5


def test_class_weight_is_what_the_class_of_an_object_weighs(generator):
    found = builder(class_weight=3.0)(truth(), SIZES, generator=generator)
    assert found.weights[0, :5].tolist() == [1, 1, 1, 1, 3]
    assert found.weights.sum() == 4 * (4 + 3) + 14


def test_noise_says_the_noise_token_and_objects_their_class(generator):
    build = builder(order="dist2ori")
    noisy, plain = build(truth(), SIZES, generator=generator), builder(order="dist2ori", noise=False)(truth(), SIZES)
    rows, exact = noisy.tokens.reshape(3, 6, 5), plain.tokens.reshape(3, 6, 5)
    for i, count in enumerate((3, 1, 0)):
        assert torch.equal(rows[i, :count], exact[i, :count])
        assert (rows[i, count:, 4] == build.coder.noise).all()
    first = build.coder.first_coordinate
    assert ((rows[..., :4] >= first) & (rows[..., :4] < first + build.coder.bins)).all()


def test_what_is_read_has_the_same_coordinates_but_disguised_classes(generator):
    """Half of the classes read are noise, the others any: also those of real objects, so that none can be copied."""
    build = builder(max_objects=2000)
    found = build(truth(), SIZES, generator=generator)
    read, said = found.inputs[:, 1:], found.tokens[:, :-1]
    is_class = torch.arange(read.shape[1]) % 5 == 4
    assert torch.equal(read[:, ~is_class], said[:, ~is_class])
    shares = torch.bincount(read[:, is_class].flatten(), minlength=build.coder.size) / read[:, is_class].numel()
    assert shares[build.coder.noise].item() == pytest.approx(0.5, abs=0.03)
    assert shares[build.coder.first_class :][:3].tolist() == pytest.approx([1 / 6] * 3, abs=0.03)


def test_real_objects_are_disguised_as_well(generator):
    boxes = random_boxes(400, extent=80)
    targets = pad_targets([{"boxes": boxes, "labels": torch.full((400,), 2)}])
    read = builder(max_objects=400)(targets, SIZES[:1], generator=generator).inputs[0, 5::5]
    coder = builder().coder
    shares = torch.bincount(read, minlength=coder.size) / len(read)
    assert shares[coder.noise].item() == pytest.approx(0.5, abs=0.1)
    assert shares[coder.first_class + 2].item() == pytest.approx(1 / 6, abs=0.08)


def test_weights_of_objects_scale_their_tokens_alone():
    weights = [torch.tensor([2.0, 9, 3, 4]), torch.tensor([0.5]), torch.zeros(0)]
    targets = truth(weights=weights)
    found = builder(noise=False, order="area")(targets, SIZES)
    order = object_order(targets.boxes, targets.valid & ~targets.ignore, order="area")
    plain = builder(noise=False, order="area")(truth(), SIZES).weights
    own = [w for i in order[0, :3].tolist() for w in [weights[0][i].item()] * 5]
    assert found.weights[0].tolist() == own + plain[0, 15:].tolist()
    assert found.weights[1].tolist() == [0.5] * 5 + plain[1, 5:].tolist()


def test_more_objects_than_room_are_cut_to_the_first_in_order():
    found = builder(max_objects=2, noise=False, order="area")(truth(), SIZES)
    longer = builder(noise=False, order="area")(truth(), SIZES)
    assert torch.equal(found.tokens, longer.tokens[:, :10])


def test_padding_and_broken_boxes_change_nothing():
    targets, build = truth(), builder(noise=False, order="area")
    junk = torch.tensor([[torch.nan, 0, 5, 5], [5, 5, 5, 9], [9, 9, 5, 5], [0, 0, torch.inf, 9]]).expand(3, -1, -1)
    longer = targets._replace(
        boxes=torch.cat((targets.boxes, junk), 1),
        labels=torch.cat((targets.labels, torch.full((3, 4), 1)), 1),
        valid=torch.cat((targets.valid, torch.ones(3, 4, dtype=torch.bool)), 1),
        ignore=torch.cat((targets.ignore, torch.zeros(3, 4, dtype=torch.bool)), 1),
    )
    for one, other in zip(build(longer, SIZES), build(targets, SIZES), strict=True):
        assert one is other is None or torch.equal(one, other)


@pytest.mark.parametrize("noise", [True, False])
def test_an_image_in_a_batch_is_what_it_is_alone(noise):
    """The numbers drawn differ, so with noise only what is real is compared."""
    together = builder(noise=noise, order="area")(truth(), SIZES)
    alone = builder(noise=noise, order="area")(Targets._make(e if e is None else e[:1] for e in truth()), SIZES[:1])
    kept = 15 if noise else 30
    assert torch.equal(alone.tokens[0, :kept], together.tokens[0, :kept])
    assert torch.equal(alone.weights[0], together.weights[0])


def test_a_generator_state_is_a_batch_of_sequences():
    one, same, other = (builder()(truth(), SIZES, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(one.inputs, same.inputs)
    assert torch.equal(one.tokens, same.tokens)
    assert not torch.equal(one.inputs, other.inputs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"order": "alphabet"}, "SequenceTargetBuilder: order='alphabet'; allowed is 'random', 'area' or 'dist2ori'"),
        ({"max_objects": 0}, "max_objects=0 must be at least 1"),
        ({"noise_weight": -1.0}, "noise_weight=-1.0"),
        ({"end_weight": math.inf}, "end_weight=inf must be at least 0 and finite"),
        ({"class_weight": -0.5}, "class_weight=-0.5 must be at least 0 and finite"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    empty = torch.nn.Module.__new__(SequenceTargetBuilder)
    with pytest.raises(ValueError, match=re.escape(message)):
        unhooked(SequenceTargetBuilder.__init__)(empty, TokenCoder(1), **settings)


@pytest.mark.parametrize("label", [3, -1])
def test_an_object_of_no_class_is_named_where_the_targets_have_it(label):
    """Not learned as noise, and not named by its place in a random order."""
    targets = truth()
    targets.labels[0, 3] = label
    with pytest.raises(ValueError, match=rf"SequenceTargetBuilder: image 0, target 3: label {label}.*0..2$"):
        builder()(targets, SIZES)
    targets.labels[1, 0] = 9
    with pytest.raises(ValueError, match=r"image 0, target 3: .*; 2 objects are wrong"):
        builder()(targets, SIZES)


def test_labels_of_crowds_and_padding_may_be_anything():
    targets = truth()
    targets.labels[0, 1], targets.labels[2] = -7, 99
    build = builder(noise=False, order="area")
    assert torch.equal(build(targets, SIZES).tokens, build(truth(), SIZES).tokens)


def test_targets_without_rows_are_refused():
    none = torch.zeros(1, 0, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"SequenceTargetBuilder: targets.*0 rows.*1"):
        builder()(Targets(torch.zeros(1, 0, 4), none.long(), none, none), SIZES[:1])


def test_another_order_is_refused():
    with pytest.raises(ValueError, match="object_order: order='size'"):
        unhooked(object_order)(torch.zeros(1, 1, 4), torch.ones(1, 1, dtype=torch.bool), order="size")


def test_print_shows_the_settings():
    assert "max_objects=6, order='random', noise=True, noise_weight=1.0, end_weight=0.1, class_weight=1.0" in repr(
        builder()
    )
