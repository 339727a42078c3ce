"""Targets through JSON: every field with the type, the shape and the bits that it had."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import assert_refused, random_boxes
from torchvision import tv_tensors

from detkit.data.shard_targets import decode_target, encode_target, read_entries_of
from detkit.structures import FIELDS, VOID

SIZE = (6, 8)


def round_trip(target):
    text, segmentation = encode_target(target, size=SIZE, about={"file_name": "a.b.png"}, where="demo")
    entries, about = read_entries_of(text, where="demo")
    assert about["file_name"] == "a.b.png"
    return decode_target(entries, types=about["types"], segmentation=segmentation, size=SIZE, where="demo")


def example(key, count, dtype):
    """Values of an entry of the table."""
    sides = {"T": count, "H": 6, "W": 8, "P": 3, "C": 4, "D": 5, "...": 2}
    shape = [side if isinstance(side, int) else sides[side] for side in FIELDS[key].shape]
    if key == "boxes":
        return random_boxes(count, dtype=dtype)
    if FIELDS[key].holds == "reals":
        return torch.rand(shape, dtype=torch.float64).to(dtype)
    return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(count))


@given(count=st.integers(0, 3), dtype=st.sampled_from([torch.float32, torch.float64, torch.float16]))
def test_every_field_of_the_table_comes_back_bit_for_bit(count, dtype):
    target = {key: example(key, count, dtype) for key in FIELDS}
    target["segmentation"][0, 0] = VOID
    target["masks"] = target["masks"].bool()
    found = round_trip(target)
    assert found.keys() == target.keys()
    for key, value in target.items():
        assert found[key].dtype == value.dtype, key
        assert torch.equal(found[key].as_subclass(torch.Tensor), value), key


def test_boxes_and_masks_are_what_transforms_move():
    boxes = tv_tensors.BoundingBoxes([[4.0, 3, 2, 2]], format="CXCYWH", canvas_size=SIZE)
    found = round_trip({"boxes": boxes, "labels": [1], "masks": np.ones((1, 6, 8), np.uint8), "image_id": 7})
    assert (type(found["boxes"]), type(found["masks"])) == (tv_tensors.BoundingBoxes, tv_tensors.Mask)
    assert (found["boxes"].canvas_size, found["boxes"].tolist()) == (SIZE, [[3, 2, 5, 4]])
    assert found["image_id"] == 7


def test_entries_of_the_users_own_come_back_and_arrays_as_tensors():
    own = {"track": np.array([[3]], np.int16), "note": {"by": ["größe", None]}, "image_id": np.int64(7)}
    found = round_trip({"boxes": [], "labels": [], **own})
    assert found["image_id"] == 7
    assert found["note"] == {"by": ["größe", None]}
    assert (found["track"].dtype, found["track"].tolist()) == (torch.int16, [[3]])


def test_json_of_others_is_read_by_the_table():
    entries = {"boxes": [[0, 0, 4, 4]], "labels": [1.0], "iscrowd": [False], "image_id": 3, "caption": "a"}
    entries["masks"] = [{"size": [6, 8], "counts": [0, 48]}]
    found = decode_target(entries, types=None, segmentation=None, size=SIZE, where="demo")
    assert [found[key].dtype for key in ("boxes", "labels", "iscrowd")] == [torch.float32, torch.int64, torch.int64]
    assert bool(found["masks"].all())
    assert (found["image_id"], found["caption"]) == (3, "a")
    empty = decode_target({"boxes": [], "labels": []}, types=None, segmentation=None, size=SIZE, where="demo")
    assert (empty["boxes"].shape, empty["labels"].dtype) == ((0, 4), torch.int64)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"masks": torch.full((1, 6, 8), 0.5)}, "masks 0 and 1"),
        ({"segmentation": torch.full((6, 8), 256)}, "segmentation 256 0 to 255"),
        ({"note": object()}, "JSON object"),
        ({1: 2}, "JSON the key 1"),
        ({"note": [{"by": {1: 2}}]}, "JSON the key 1"),
        ({"note": float("nan")}, "JSON finite"),
        ({"boxes": [[0, 0, float("inf"), 4]]}, "boxes[0, 2]=inf finite"),
        ({"boxes": [[0, 4, 4, 0]]}, "boxes[0] y2 < y1"),
        ({"detkit": 1}, "'detkit' taken"),
        ({"bbox": [1]}, "'bbox' 'boxes'"),
        ({"labels": [1, 2]}, "labels (2,)"),
        ({"masks": torch.zeros(1, 5, 8)}, "masks (5, 8) (6, 8)"),
    ],
)
def test_what_json_cannot_say_is_refused_by_sample_and_entry(entries, words):
    target = {"boxes": [[0, 0, 4, 4]], "labels": [1], **entries}
    assert_refused(f"demo: {words}", encode_target, target, size=SIZE, about={}, where="demo")


@pytest.mark.parametrize(
    ("entries", "types", "words"),
    [
        ({"labels": [1]}, None, "'boxes'"),
        ({"boxes": "a", "labels": [1]}, None, "boxes str numbers"),
        ({"boxes": [[0, 0, 1, 1]], "labels": [1], "masks": [{"size": [6, 8], "counts": "zz"}]}, None, "masks[0]"),
        ({"boxes": [[0, 0, 1, 1]], "labels": [1], "masks": {"size": [6, 8]}}, None, "masks segmentations"),
        ({"boxes": [[0, 0, 1, 1]], "labels": [1]}, {"labels": ["load", 1]}, "labels 'load' float32"),
        ({"boxes": [[0, 0, 1, 1]], "labels": [1]}, {"labels": ["int64", 2]}, "labels shape"),
        ({"boxes": [[0, 0, 1, 1]], "labels": [1]}, {"track": ["int64", 2]}, "track"),
        ({"boxes": [[0, 0, 1, 1]], "labels": [1]}, ["boxes"], "types 'boxes'"),
        ({"boxes": [[2, 0, 1, 1]], "labels": [1]}, None, "boxes[0] x2 < x1"),
        ({"boxes": [[2, 0, float("inf"), 1]], "labels": [1]}, None, "boxes[0, 2]=inf finite"),
    ],
)
def test_a_broken_target_is_refused_by_sample_and_entry(entries, types, words):
    assert_refused(f"demo: {words}", decode_target, entries, types=types, segmentation=None, size=SIZE, where="demo")


@pytest.mark.parametrize("text", [b"{", b"[1]", b'{"detkit": 1}', b"\xff", b"[" * 100_000])
def test_what_is_no_json_object_is_refused_by_sample(text):
    assert_refused("demo: target", read_entries_of, text, where="demo")


def test_a_broken_segmentation_is_refused_by_sample():
    for data in (b"", b"no picture", encode_target({}, size=SIZE, about={}, where="demo")[0]):
        with pytest.raises(ValueError, match="demo: the segmentation cannot be read"):
            decode_target({"boxes": [], "labels": []}, types=None, segmentation=data, size=SIZE, where="demo")


def test_numbers_are_readable_for_others():
    text, _ = encode_target({"boxes": torch.tensor([[0.5, 0, 4, 4]]), "labels": [1]}, size=SIZE, about={}, where="demo")
    assert json.loads(text)["boxes"] == [[0.5, 0, 4, 4]]
