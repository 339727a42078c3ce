"""The table of fields: it knows every entry there is, and a key that is nearly one of them."""

import numpy as np
import pytest
import torch
from strategies import unhooked

from detkit.structures import FIELDS, Detection, Detections, Target, Targets, read_entries, read_truth

INSIDE = {field.inside for field in FIELDS.values()}


def test_every_entry_of_a_target_or_a_detection_is_in_the_table():
    assert set(Target.__annotations__) | set(Detection.__annotations__) <= FIELDS.keys()


def test_everything_padded_is_in_the_table_but_for_what_never_leaves_the_batch():
    assert set(Targets._fields) - INSIDE == {"valid"}
    assert set(Detections._fields) - INSIDE == {"valid", "matched", "rows"}
    assert INSIDE - {None} <= {*Targets._fields, *Detections._fields}


def test_a_field_of_an_object_has_a_row_for_each_and_one_of_pixels_their_height_and_width():
    for key, field in FIELDS.items():
        assert (field.shape[0] == "T") == (field.of == "object"), key
        assert (field.shape[-2:] == ("H", "W")) == (field.moves in ("masks", "map")), key


def test_rows_are_joined_below_each_other_pixels_by_what_is_in_view_and_what_the_image_has_is_the_firsts_or_refused():
    for key, field in FIELDS.items():
        assert (field.joins == "rows") == (field.of == "object"), key
        assert (field.joins == "view") == (field.of == "pixel"), key
        assert (field.joins in ("first", "no")) == (field.of == "image"), key


@pytest.mark.parametrize(
    ("near", "known"),
    [
        ("mask", "masks"),
        ("label", "labels"),
        ("Labels", "labels"),
        ("class", "labels"),
        ("classes", "labels"),
        ("class_labels", "labels"),
        ("box", "boxes"),
        ("bbox", "boxes"),
        ("bboxes", "boxes"),
        ("keypoint", "keypoints"),
        ("key_points", "keypoints"),
        ("keypoint_scores", "keypoints_scores"),
        ("score", "scores"),
        ("weight", "weights"),
        ("is_crowd", "iscrowd"),
        ("areas", "area"),
        ("identity", "identities"),
        ("label_set", "label_sets"),
        ("image_label", "image_labels"),
        ("embedding", "embeddings"),
    ],
)
def test_a_key_close_to_a_known_one_is_refused_with_the_repair(near, known):
    with pytest.raises(ValueError, match=rf"^here: unknown key '{near}'; did you mean '{known}'\?"):
        read_entries({"boxes": torch.zeros(0, 4), near: None}, where="here")


def test_other_keys_pass_untouched_and_those_that_are_none_are_left_out():
    own = {
        "image_id": "a7",
        "file_name": "a.png",
        "captions": ["one", "two"],
        "info": {"mask": 1},
        "size": torch.tensor([3, 4]),
        "orig_size": (3, 4),
        "track": torch.arange(3),
        "negative_labels": [1],
        "name": "x",
        5: object(),
    }
    assert read_entries({**own, "masks": None, "other": None}, where="here") == own


def test_what_is_no_dict_is_refused():
    with pytest.raises(TypeError, match=r"^targets\[3\]:.*list.*dict"):
        unhooked(read_entries)([torch.zeros(0, 4)], where="targets[3]")


@pytest.mark.parametrize(
    "target", [{}, {"image_id": 3}, {"image_id": 3, "file_name": "a.png", "masks": None}, {"image_labels": [1, 0]}]
)
def test_a_target_that_says_nothing_of_objects_has_none(target):
    truth = read_truth(target, where="here")
    assert truth["boxes"].shape == (0, 4)
    assert truth["labels"].shape == (0,)
    assert target.keys() - {"masks"} <= truth.keys()


@pytest.mark.parametrize("value", [np.zeros((2, 4)), torch.zeros(2, 4), [[0, 0, 1, 1]]], ids=type)
def test_an_array_under_another_name_might_be_the_boxes(value):
    assert "boxes" not in read_truth({"image_id": 3, "ground_truth": value}, where="here")
