"""Rows of objects: which entries have them, keeping, joining, and what is refused because it would not fit."""

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from detkit.structures.rows import complete_rows, has_rows, join_rows, keep_rows


def target(count, **entries):
    return {"boxes": torch.arange(4.0 * count).reshape(count, 4), "labels": torch.arange(count), **entries}


def test_the_table_decides_of_known_entries_and_the_length_of_unknown_tensors_and_arrays():
    assert has_rows("weights", torch.ones(5), 2)
    assert not has_rows("image_labels", torch.ones(2), 2)
    assert has_rows("track", torch.ones(2, 7), 2)
    assert has_rows("names", np.array(["a", "b"]), 2)
    assert not any(has_rows("own", values, 2) for values in (torch.ones(3), torch.tensor(2), ["a", "b"], "ab", 2))


def test_kept_rows_are_those_of_all_entries_of_objects_and_keep_their_kind():
    boxes = tv_tensors.BoundingBoxes(torch.ones(2, 4), format="XYXY", canvas_size=(8, 8))
    given = {"boxes": boxes, "labels": torch.tensor([4, 5]), "names": np.array(["a", "b"]), "size": torch.ones(2)}
    kept = keep_rows(given, torch.tensor([False, True]))
    assert kept["labels"].tolist() == [5]
    assert kept["names"].tolist() == ["b"]
    assert type(kept["boxes"]) is tv_tensors.BoundingBoxes
    assert kept["boxes"].canvas_size == (8, 8)
    assert kept["size"].tolist() == [1, 1]
    assert given["labels"].tolist() == [4, 5]


def test_kept_keys_are_those_named_whatever_their_length_now_is():
    given = target(2, info=torch.tensor([7, 8]))
    assert keep_rows(given, torch.tensor([True, False]), ["boxes", "labels"])["info"].tolist() == [7, 8]


def test_joined_rows_stand_in_order_beside_what_the_first_has():
    one, two = target(1, names=np.array(["a"]), image_id=3), target(2, names=np.array(["b", "c"]), image_id=4)
    joined = join_rows([one, two], ["boxes", "labels", "names"])
    assert joined["labels"].tolist() == [0, 0, 1]
    assert joined["names"].tolist() == ["a", "b", "c"]
    assert joined["image_id"] == 3


def test_what_has_no_rows_may_have_any_shape_when_joined():
    joined = join_rows([{"masks": torch.zeros(0, 5, 5)}, {"masks": torch.ones(2, 3, 4)}], ["masks"])
    assert joined["masks"].shape == (2, 3, 4)
    assert join_rows([{"masks": torch.zeros(0, 5, 5)}] * 2, ["masks"])["masks"].shape == (0, 5, 5)


def test_missing_entries_are_filled_as_the_table_says():
    given = [target(1, weights=torch.tensor([0.5]), identities=torch.tensor([7]), iscrowd=torch.tensor([1])), target(2)]
    complete, keys = complete_rows(given, where="f")
    assert complete[1]["weights"].tolist() == [1, 1]
    assert complete[1]["identities"].tolist() == [-1, -1]
    assert complete[1]["iscrowd"].tolist() == [0, 0]
    assert set(keys) == {"boxes", "labels", "weights", "identities", "iscrowd"}
    assert "weights" not in given[1]


def test_an_image_without_objects_needs_nothing():
    given = [target(0), target(1, keypoints=torch.ones(1, 5, 3), track=torch.ones(1), names=np.array(["a"]))]
    complete, keys = complete_rows(given, where="f")
    assert complete[0]["keypoints"].shape == (0, 5, 3)
    assert len(complete[0]["track"]) == len(complete[0]["names"]) == 0
    assert {"keypoints", "track", "names"} <= set(keys)


def test_unknown_entries_that_fit_no_image_are_the_images():
    complete, keys = complete_rows([target(1, info=torch.ones(5)), target(2)], where="f")
    assert keys == ["boxes", "labels"]
    assert "info" not in complete[1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            [target(1, area=torch.ones(1)), target(2)],
            r"^f: targets\[1\]: 2 boxes but no area; each object",
        ),
        ([target(1, track=torch.ones(1)), target(2)], r"^f: targets\[1\]: 2 boxes but no track"),
        (
            [target(2, own=torch.ones(2)), target(3, own=torch.ones(2))],
            r"^f: targets\[1\]: 'own' has no row for each of 3 boxes, as in targets\[0\] it has; .* as a list",
        ),
        (
            [target(1, keypoints=torch.ones(1, 5, 3)), target(1, keypoints=torch.ones(1, 4, 3))],
            r"^f: keypoints has rows of several shapes: Tensor of \(4, 3\), Tensor of \(5, 3\)",
        ),
        (
            [target(1, own=torch.ones(1)), target(1, own=np.ones(1))],
            r"^f: own has rows of several shapes",
        ),
    ],
)
def test_what_would_end_up_at_another_object_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        complete_rows(given, where="f")


def test_masks_may_differ_in_size_between_images():
    given = [target(1, masks=torch.ones(1, 5, 5)), target(1, masks=torch.ones(1, 4, 3))]
    assert complete_rows(given, where="f")[1] == ["boxes", "labels", "masks"]
