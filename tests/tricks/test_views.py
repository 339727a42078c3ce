"""What is found in a view, in the pixels of its image: every entry as the table of fields says."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import assert_refused, boxes

from detkit.structures import FIELDS
from detkit.tricks.views import AXES, View, flipped_back, joined, read_view, resized_back, shifted


def found(count: int = 2, **entries):
    return {
        "boxes": torch.arange(4.0).expand(count, 4),
        "scores": torch.ones(count),
        "labels": torch.zeros(count).long(),
        **entries,
    }


@pytest.mark.parametrize("flip", AXES)
def test_a_flip_moves_boxes_and_points_with_the_pixels(flip):
    image = torch.zeros(6, 10)
    image[1:3, 2:7] = 1  # the box (2, 1, 7, 3)
    rows = image.flip(AXES[flip]).nonzero()
    (top, left), (bottom, right) = rows.amin(0).tolist(), (rows.amax(0) + 1).tolist()
    box, corner = torch.tensor([[left, top, right, bottom]]).float(), torch.tensor([[[left, top, 1.0]]])
    assert flipped_back(box, "boxes", flip, (6, 10)).tolist() == [[2, 1, 7, 3]]
    x, y = (7 if -1 in AXES[flip] else 2), (3 if -2 in AXES[flip] else 1)  # which corner of the box it was
    assert flipped_back(corner, "points", flip, (6, 10)).tolist() == [[[x, y, 1]]]
    assert torch.equal(flipped_back(image.flip(AXES[flip])[None], "masks", flip, (6, 10))[0], image)


@given(boxes(huge=0), st.sampled_from(list(AXES)))
def test_a_flip_of_a_flip_is_the_box_itself(rows, flip):
    back = flipped_back(flipped_back(rows.double(), "boxes", flip, (50, 70)), "boxes", flip, (50, 70))
    torch.testing.assert_close(back, rows.double(), rtol=0, atol=1e-12)


def test_half_and_integer_boxes_are_promoted_before_they_move():
    for dtype in (torch.float16, torch.uint8):
        box = torch.tensor([[10, 20, 30, 40]], dtype=dtype)
        assert flipped_back(box, "boxes", "both", (2049, 4099)).tolist() == [[4069, 2009, 4089, 2029]]
        assert shifted(box, "boxes", 3000, 5001).tolist() == [[5011, 3020, 5031, 3040]]


def test_boxes_and_points_are_resized_by_the_exact_ratio_of_each_side():
    box, point = torch.tensor([[0.0, 0, 7, 3]]), torch.tensor([[[7.0, 3, 2]]])
    assert resized_back(box, "boxes", (3, 7), (10, 20)).tolist() == [[0, 0, 20, 10]]
    assert resized_back(point, "points", (3, 7), (10, 20)).tolist() == [[[20, 10, 2]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.slow
def test_the_edge_of_a_view_is_that_of_its_image(dtype):
    for new, old in itertools.product(range(1, 700, 9), range(1, 700, 7)):
        box = torch.tensor([[0.0, 0, old, new]], dtype=dtype)
        assert resized_back(box, "boxes", (new, old), (old, new)).tolist() == [[0, 0, new, old]]


def test_masks_and_maps_are_resized_to_the_image_and_keep_their_type():
    small = torch.tensor([[True, False], [False, True]])
    large = resized_back(small[None], "masks", (2, 2), (4, 6))
    assert large.dtype == torch.bool
    assert torch.equal(large[0], small.repeat_interleave(2, 0).repeat_interleave(3, 1))
    assert resized_back(torch.zeros(0, 2, 2), "masks", (2, 2), (4, 6)).shape == (0, 4, 6)
    assert resized_back(torch.ones(5, 2, 2), "map", (2, 2), (4, 6)).equal(torch.ones(5, 4, 6))


def test_what_stays_is_the_same_object():
    rows = torch.ones(2, 4)
    assert flipped_back(rows, "boxes", "none", (5, 5)) is rows
    assert resized_back(rows, "boxes", (5, 5), (5, 5)) is rows
    assert shifted(rows, "boxes", 0, 0) is rows


def test_entries_are_told_apart_by_the_table():
    view = read_view(found(embeddings=torch.ones(2, 3), segmentation=torch.ones(4, 5), image_scores=[1.0]), where="x")
    assert {key for key in view.objects if FIELDS[key].of != "object"} == set()
    assert view.others.keys() == {"segmentation", "image_scores"}
    assert len(view) == 2


def test_masks_with_a_channel_are_read_without_it():
    assert read_view(found(masks=torch.ones(2, 1, 4, 5)), where="x").objects["masks"].shape == (2, 4, 5)


def test_what_nobody_knows_how_to_move_is_refused_by_name():
    assert_refused("x: entries polygons allowed", read_view, found(polygons=[1, 2]), where="x")
    assert_refused("x: unknown key 'mask' mean 'masks'", read_view, found(mask=1), where="x")
    assert_refused("x: entries cells digits allowed name", read_view, {"cells": found(), "digits": found()}, where="x")


def test_a_detection_without_scores_or_of_other_lengths_is_refused_by_name():
    assert_refused("x: 'scores' among boxes labels", read_view, {"boxes": [], "labels": []}, where="x")
    assert_refused("x: boxes (2, 4) embeddings (3, 2) own", read_view, found(embeddings=torch.ones(3, 2)), where="x")


def test_masks_and_maps_of_another_size_are_refused_by_name():
    assert_refused("x: masks (4, 5) (8, 9)", read_view, found(masks=torch.ones(2, 4, 5)), where="x", size=(8, 9))
    given = found(segmentation=torch.ones(4, 5))
    assert_refused("x: segmentation (4, 5) (8, 9)", read_view, given, where="x", size=(8, 9))


def test_views_are_joined_in_order_and_those_without_objects_may_lack_entries():
    views = [read_view(view, where="x") for view in (found(0), found(2, masks=torch.ones(2, 4, 5)))]
    assert joined(views, where="x")["masks"].shape == (2, 4, 5)
    assert joined(views[:1], where="x").keys() == {"boxes", "scores", "labels"}


def test_views_that_hold_other_entries_or_classes_are_refused_by_name():
    one, two, three = (read_view(found(2, class_scores=torch.ones(2, c)), where="x") for c in (3, 3, 4))
    plain = View({key: one.objects[key] for key in ("boxes", "scores", "labels")}, {})
    assert_refused("views[1] boxes views[0] class_scores allowed", joined, [one, plain], where="views")
    assert_refused("views[2]: class_scores (2, 4) (3,) views[0]", joined, [one, two, three], where="views")
