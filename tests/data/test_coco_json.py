"""Every fault of a COCO annotation file is an error at once, with the file and the entry in its words."""

import copy
import json

import numpy as np
import pytest

from detkit.data.coco_json import read_coco

NAN, INF, NULL = float("nan"), float("inf"), object()
GOOD = {
    "images": [
        {"id": 30, "file_name": "b.png", "height": 40, "width": 60},
        {"id": 5, "file_name": "a.png", "height": 4, "width": 6},
    ],
    "categories": [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}],
    "annotations": [
        {"id": 11, "image_id": 30, "category_id": 3, "bbox": [1, 2, 3, 4.5], "area": 9, "iscrowd": 0},
        {"id": 12, "image_id": 5, "category_id": 90, "bbox": [0, 0, 6, 4], "iscrowd": 1},
        {"id": 13, "image_id": 30, "category_id": 90, "bbox": [5, 5, 1, 1], "area": 0.5, "ignore": 1},
    ],
}


def write(folder, document):
    path = folder / "a.json"
    path.write_text(json.dumps(document))
    return path


def changed(kind, position, **entries):
    """GOOD with one entry changed; None removes a key, NULL writes null."""
    document = copy.deepcopy(GOOD)
    entry = document[kind][position]
    entry.update(entries)
    for key, value in entries.items():
        if value is None:
            del entry[key]
        elif value is NULL:
            entry[key] = None
    return document


def test_images_and_categories_come_in_ascending_id_and_annotations_in_file_order(tmp_path):
    records = read_coco(write(tmp_path, GOOD))
    assert records.image_ids.tolist() == [5, 30]
    assert records.file_names == ["a.png", "b.png"]
    assert records.sizes.tolist() == [[4, 6], [40, 60]]
    assert (records.categories, records.category_ids) == (["car", "toothbrush"], [3, 90])
    assert records.offsets.tolist() == [0, 1, 3]
    assert records.boxes.tolist() == [[0, 0, 6, 4], [1, 2, 4, 6.5], [5, 5, 6, 6]]
    assert records.labels.tolist() == [1, 0, 1]
    assert records.area.tolist() == [24, 9, 0.5]
    assert records.iscrowd.tolist() == [1, 0, 1]


def test_a_file_without_any_entry_is_an_empty_data_set(tmp_path):
    with pytest.warns(UserWarning, match="holds no object"):
        records = read_coco(write(tmp_path, {"images": [], "annotations": [], "categories": []}), masks=True)
    assert records.boxes.shape == (0, 4)
    assert records.boxes.dtype == np.float32
    assert records.offsets.tolist() == [0]


@pytest.mark.parametrize(
    "document", [[], None, 3, {}, {**GOOD, "images": {}}, {**GOOD, "annotations": None}, {**GOOD, "categories": [3]}]
)
def test_a_document_of_another_form_is_refused(tmp_path, document):
    with pytest.raises(
        ValueError, match=r"CocoDataset: .*a\.json: (2 kinds of faults:\s+)?(holds|images|annotations|categories)"
    ):
        read_coco(write(tmp_path, document))


def test_a_file_that_lists_no_annotations_has_images_without_objects_and_does_not_warn(tmp_path, recwarn):
    document = {key: value for key, value in GOOD.items() if key != "annotations"}
    records = read_coco(write(tmp_path, document), masks=True)
    assert records.offsets.tolist() == [0, 0, 0]
    assert not recwarn


UNKNOWN = {
    "image unknown": {"image_id": 7},
    "image id missing": {"image_id": None},
    "image id boolean": {"image_id": True},
    "image id giant": {"image_id": 2**64},
    "category unknown": {"category_id": 1},
    "category missing": {"category_id": None},
}


@pytest.mark.parametrize("entries", UNKNOWN.values(), ids=UNKNOWN)
def test_an_annotation_of_nothing_is_refused_whatever_the_policy(tmp_path, entries):
    key = next(iter(entries))
    with pytest.raises(ValueError, match=rf"CocoDataset: .*a\.json: annotation id=13: {key}\b.*; allowed is "):
        read_coco(write(tmp_path, changed("annotations", 2, **entries)))


NO_OBJECTS = {
    "box missing": {"bbox": None},
    "box of three": {"bbox": [1, 2, 3]},
    "box of five": {"bbox": [1, 2, 3, 4, 5]},
    "box null": {"bbox": NULL},
    "box empty": {"bbox": []},
    "box of words": {"bbox": ["1", "2", "3", "four"]},
    "box nested": {"bbox": [[1, 2, 3, 4]]},
    "box number": {"bbox": 3},
    "box with null": {"bbox": [1, 2, 3, [None]]},
    "box NaN": {"bbox": [NAN, 2, 3, 4]},
    "box inf": {"bbox": [1, 2, INF, 4]},
    "box giant": {"bbox": [1, 2, 1e300, 4]},
    "box giant integer": {"bbox": [1, 2, 10**400, 4]},
    "box negative width": {"bbox": [1, 2, -3, 4]},
    "box negative height": {"bbox": [1, 2, 3, -1e-3]},
    "area NaN": {"area": NAN},
    "area negative": {"area": -1},
    "area text": {"area": "nine"},
    "crowd two": {"iscrowd": 2},
    "crowd text": {"iscrowd": "perhaps"},
    "ignore list": {"ignore": [1]},
    "box left of the picture": {"bbox": [-5, 5, 5, 5]},
    "box below the picture": {"bbox": [5, 40, 5, 5]},
}


@pytest.mark.parametrize("entries", NO_OBJECTS.values(), ids=NO_OBJECTS)
def test_an_object_that_is_none_is_dropped_with_one_warning_or_refused_as_the_policy_says(tmp_path, entries):
    path = write(tmp_path, changed("annotations", 2, **entries))
    words = r"CocoDataset: .*a\.json: annotation id=13: (bbox|area|iscrowd|ignore|the box)\b.*"
    with pytest.warns(UserWarning, match=words + "1 of 3 boxes were dropped") as seen:
        records = read_coco(path)
    assert len([warning for warning in seen if "dropped" in str(warning.message)]) == 1
    assert records.boxes.tolist() == [[0, 0, 6, 4], [1, 2, 4, 6.5]]
    with pytest.raises(ValueError, match=words + "degenerate='drop'"):
        read_coco(path, degenerate="raise")


def test_all_kinds_of_faults_are_told_at_once_with_their_first_place_and_count(tmp_path):
    document = copy.deepcopy(GOOD)
    document["images"][0]["height"] = 0
    document["annotations"] += [{**GOOD["annotations"][0], "id": i, "image_id": 8} for i in (20, 21)]
    document["annotations"][0]["bbox"] = None
    document["annotations"][1]["area"] = -4
    with pytest.raises(ValueError, match="4 kinds of faults") as error:
        read_coco(write(tmp_path, document))
    for line in (
        "image id=30: height=0, width=60; allowed",
        "annotation id=20: image_id=8; allowed is the integer id of one of the 2 images (2 such)",
        "annotation id=11: bbox=None; allowed",
        "annotation id=12: area=-4; allowed",
    ):
        assert f"\n  {line}" in str(error.value)


def test_all_kinds_of_objects_that_are_none_stand_in_one_warning(tmp_path):
    document = copy.deepcopy(GOOD)
    document["annotations"] = [{**GOOD["annotations"][0], "id": i} for i in range(6)]
    for annotation, box in zip(
        document["annotations"], ([], None, [1, 1, 0, 4], [NAN] * 4, [99, 0, 4, 4]), strict=False
    ):
        annotation["bbox"] = box
    with pytest.warns(UserWarning, match="4 kinds of faults") as seen:
        records = read_coco(write(tmp_path, document))
    text = str(seen[0].message)
    assert (len(seen), len(records.boxes)) == (1, 1)
    assert "annotation id=0: bbox=[]; allowed is x, y, width, height (2 such)" in text
    assert "annotation id=4: the box [99.0, 0.0, 103.0, 4.0] (xyxy) lies outside its picture of 40 x 60" in text
    assert "5 of 6 boxes were dropped" in text


HARMLESS = {
    "numbers as text": ({"bbox": ["5", "5.0", "1e0", " 1 "], "area": "0.5"}, {}),
    "an image's id as text": ({"image_id": "30"}, {}),
    "ids as floats": ({"image_id": 30.0, "category_id": 90.0, "id": 13.0}, {}),
    "area null": ({"area": NULL}, {"area": 1}),
    "area missing": ({"area": None}, {"area": 1}),
    "flags as text": ({"iscrowd": "0", "ignore": "false"}, {"iscrowd": 0}),
    "flag set as text": ({"iscrowd": "1", "ignore": "0"}, {"iscrowd": 1}),
    "flags null": ({"iscrowd": NULL, "ignore": NULL}, {"iscrowd": 0}),
    "flags true and false": ({"iscrowd": False, "ignore": True}, {"iscrowd": 1}),
}


@pytest.mark.parametrize(("entries", "expected"), HARMLESS.values(), ids=HARMLESS)
def test_what_can_only_mean_one_thing_is_taken(tmp_path, entries, expected):
    records = read_coco(write(tmp_path, changed("annotations", 2, **entries)))
    assert records.boxes[2].tolist() == [5, 5, 6, 6]
    assert records.labels[2] == 1
    assert records.area[2] == expected.get("area", 0.5)
    assert records.iscrowd[2] == expected.get("iscrowd", 1)


def test_the_one_bad_box_among_many_is_found(tmp_path):
    document = copy.deepcopy(GOOD)
    document["annotations"] = [{**GOOD["annotations"][0], "id": i} for i in range(5000)]
    document["annotations"][4321]["bbox"] = [1, 2, NAN, 4]
    with pytest.raises(ValueError, match=r"annotation id=4321: bbox=\[1, 2, nan, 4\]"):
        read_coco(write(tmp_path, document), degenerate="raise")


@pytest.mark.parametrize("entries", [{"id": None}, {"id": "x"}, {"id": 1.5}, {"id": 2**63}, {"id": 11}], ids=str)
def test_an_annotation_id_that_is_missing_ill_typed_or_there_twice_is_refused(tmp_path, entries):
    with pytest.raises(
        ValueError,
        match=r"a\.json: annotation (at position 2|id='x'|id=1\.5|id=9223\d*:.*64 bits|id=11 stands there 2 times)",
    ):
        read_coco(write(tmp_path, changed("annotations", 2, **entries)))


@pytest.mark.parametrize(
    ("kind", "entries"),
    [("images", {"id": 30}), ("images", {"id": "5"}), ("images", {"height": None}), ("images", {"width": 0})]
    + [("images", {"height": -4}), ("images", {"height": 4.5}), ("images", {"height": 200_000, "width": 200_000})]
    + [("images", {"file_name": None}), ("images", {"file_name": 3}), ("images", {"file_name": "../a.png"})]
    + [("categories", {"id": 90}), ("categories", {"name": None}), ("categories", {"name": 3})],
    ids=str,
)
def test_a_bad_image_or_category_is_named(tmp_path, kind, entries):
    name = {"images": "image", "categories": "category"}[kind]
    ids = "(5|30|'5')" if kind == "images" else "(90|3)"
    document = {**changed(kind, 1, **entries), "annotations": []}
    with pytest.raises(ValueError, match=rf"CocoDataset: .*a\.json: {name} id={ids}.*; allowed is "):
        read_coco(write(tmp_path, document))


def test_zero_size_boxes_are_dropped_and_counted_in_one_warning(tmp_path):
    document = changed("annotations", 0, bbox=[1, 2, 0, 4])
    document["annotations"][1]["bbox"] = [1, 2, 3, 0]
    with pytest.warns(UserWarning, match=r"annotation id=1[12].*2 of 3 boxes were dropped") as seen:
        records = read_coco(write(tmp_path, document))
    assert len(seen) == 1
    assert records.boxes.tolist() == [[5, 5, 6, 6]]
    assert records.labels.tolist() == [1]
    assert records.offsets.tolist() == [0, 0, 1]


def test_zero_size_boxes_are_refused_where_the_policy_says_so(tmp_path):
    with pytest.raises(
        ValueError, match=r"a\.json: annotation id=11: the box \[1\.0, 2\.0, 1\.0, 6\.0\].*degenerate='drop'"
    ):
        read_coco(write(tmp_path, changed("annotations", 0, bbox=[1, 2, 0, 4])), degenerate="raise")


def test_a_width_that_float32_cannot_tell_from_zero_counts_as_zero(tmp_path):
    with pytest.warns(UserWarning, match="1 of 3 boxes were dropped"):
        read_coco(write(tmp_path, changed("annotations", 0, bbox=[1000, 2, 1e-9, 4])))


def with_keypoints(points):
    document = copy.deepcopy(GOOD)
    document["categories"][0]["keypoints"] = ["tip", "end"]
    for annotation in document["annotations"]:
        annotation["keypoints"] = [1, 2, 2, 0, 0, 0]
    document["annotations"][1]["keypoints"] = points
    return document


def test_keypoints_are_read_as_x_y_visibility(tmp_path):
    records = read_coco(write(tmp_path, with_keypoints([3, 4, 1, 5, 6, 2])), keypoints=True)
    assert records.keypoints is not None
    assert records.keypoints.tolist()[:2] == [[[3, 4, 1], [5, 6, 2]], [[1, 2, 2], [0, 0, 0]]]


@pytest.mark.parametrize("points", [[1, 2, 2], [1, 2, 2, 0, 0, 3], [1, NAN, 2, 0, 0, 0], None, "x"], ids=str)
def test_bad_keypoints_are_refused_by_annotation(tmp_path, points):
    path = write(tmp_path, with_keypoints(points))
    with pytest.raises(ValueError, match=r"annotation id=12: keypoints="):
        read_coco(path, keypoints=True, degenerate="raise")
    with pytest.warns(UserWarning, match=r"annotation id=12: keypoints=.*1 of 3 boxes were dropped"):
        assert len(read_coco(path, keypoints=True).boxes) == 2


def test_where_a_keypoint_is_not_labelled_its_place_means_nothing(tmp_path):
    records = read_coco(write(tmp_path, with_keypoints([3, 4, 1, NAN, None, 0])), keypoints=True)
    assert records.keypoints is not None
    assert records.keypoints[0].tolist() == [[3, 4, 1], [0, 0, 0]]


def test_a_category_that_names_fewer_keypoints_lacks_the_last_ones(tmp_path):
    document = with_keypoints([3, 4, 1, 5, 6, 2])
    document["categories"][1]["keypoints"] = ["hub"]
    document["annotations"][0]["keypoints"] = [7, 8, 1]  # of the category with one
    records = read_coco(write(tmp_path, document), keypoints=True, degenerate="raise")
    assert records.keypoints is not None
    assert records.keypoints.tolist()[1] == [[7, 8, 1], [0, 0, 0]]
    document["annotations"][2]["keypoints"] = [7, 8, 1]  # of the category with two
    with pytest.warns(UserWarning, match=r"annotation id=13: keypoints=\[7, 8, 1\]; .*1 of 3 boxes were dropped"):
        read_coco(write(tmp_path, document), keypoints=True)


def test_a_missing_box_is_that_of_the_keypoints_that_are_labeled(tmp_path):
    document = with_keypoints([3, 1, 1, 0, 0, 0])
    del document["annotations"][0]["bbox"]
    document["annotations"][0]["keypoints"] = [1, 2, 2, 9, 8, 1]
    document["annotations"][2] |= {"keypoints": [0, 0, 0] * 2, "bbox": None}
    with pytest.warns(UserWarning, match=r"annotation id=13: bbox=None; .*1 of 3 boxes were dropped"):
        records = read_coco(write(tmp_path, document), keypoints=True)
    assert records.boxes.tolist() == [[0, 0, 6, 4], [1, 2, 9, 8]]


def test_keypoints_without_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no category names its keypoints"):
        read_coco(write(tmp_path, GOOD), keypoints=True)


def test_segmentations_are_checked_against_their_own_image(tmp_path):
    document = copy.deepcopy(GOOD)
    for annotation, pixels in zip(document["annotations"], (2400, 24, 2400), strict=True):
        size = [40, 60] if pixels == 2400 else [4, 6]
        annotation["segmentation"] = {"size": size, "counts": [pixels - 1, 1]}
    records = read_coco(write(tmp_path, document), masks=True)
    assert records.segmentations is not None
    assert [int(np.sum(runs)) for runs in records.segmentations] == [24, 2400, 2400]
    document["annotations"][2]["segmentation"]["counts"] = [2399, 2]
    with pytest.raises(
        ValueError, match=r"a\.json: annotation id=13: runs add up to 2401; allowed are runs >= 0 that add up to 2400"
    ):
        read_coco(write(tmp_path, document), masks=True, degenerate="raise")
    assert read_coco(write(tmp_path, document)).segmentations is None


def test_more_mask_pixels_than_the_bound_are_refused_before_they_are_drawn(tmp_path):
    document = changed("images", 0, height=9000, width=9000)
    polygon = [[0, 0, 9, 0, 9, 9]]
    one = {**GOOD["annotations"][0], "segmentation": polygon}
    document["annotations"] = [{**one, "id": i} for i in range(60)]
    with pytest.raises(ValueError, match=r"image id=30: 60 masks of 9000 x 9000 exceed"):
        read_coco(write(tmp_path, document), masks=True)


SQUARE = [0, 0, 4, 0, 4, 4, 0, 4]


def with_masks(*segmentations):
    document = copy.deepcopy(GOOD)
    document["annotations"] = [
        {**GOOD["annotations"][0], "id": i, "area": None, "segmentation": segmentation}
        for i, segmentation in enumerate(segmentations)
    ]
    return document


def test_objects_without_a_mask_are_dropped_where_masks_are_read_and_the_others_keep_theirs(tmp_path):
    lines = [[0, 0, 4, 0, 4, 0, 0, 0]], [[0, 0, 4, 4]]
    path = write(tmp_path, with_masks([], None, [SQUARE], *lines))
    with pytest.warns(UserWarning, match="3 kinds of faults") as seen:
        records = read_coco(path, masks=True)
    assert records.segmentations is not None
    assert [polygons[0].tolist() for polygons in records.segmentations] == [SQUARE]
    assert records.area.tolist() == [16]
    for words in (
        "annotation id=0: segmentation is []; allowed are polygons, or a dict of size and counts",
        "annotation id=3: polygon without area [0.0, 0.0, 4.0, 0.0, ",
        "annotation id=4: polygon [0, 0, 4, 4]; allowed is [x, y, x, y, x, y, ...] of three points or more",
        "4 of 5 boxes were dropped",
    ):
        assert words in str(seen[0].message)
    assert len(read_coco(path).boxes) == 5


def test_a_segmentation_that_is_missing_is_said_to_be_missing(tmp_path):
    with pytest.raises(ValueError, match=r"annotation id=11: segmentation is missing; allowed .*\(3 such\)"):
        read_coco(write(tmp_path, GOOD), masks=True, degenerate="raise")


def test_parts_of_a_mask_that_are_none_are_left_out_and_the_object_stays(tmp_path):
    path = write(tmp_path, with_masks([SQUARE, [1, 1, 2, 2]], [SQUARE, [9, 9, 12, 9, 15, 9]], [SQUARE]))
    with pytest.warns(UserWarning, match=r"2 kinds of faults") as seen:
        records = read_coco(path, masks=True)
    assert str(seen[0].message).count("; left out of a mask that has others") == 2
    assert "dropped" not in str(seen[0].message)
    assert records.segmentations is not None
    assert [[part.tolist() for part in polygons] for polygons in records.segmentations] == [[SQUARE]] * 3
    with pytest.raises(ValueError, match="annotation id=0: polygon "):
        read_coco(path, masks=True, degenerate="raise")


def test_a_mask_without_a_pixel_is_none(tmp_path):
    with pytest.warns(UserWarning, match=r"annotation id=0: segmentation has no pixel.*1 of 2 boxes were dropped"):
        read_coco(write(tmp_path, with_masks({"size": [40, 60], "counts": [2400]}, [SQUARE])), masks=True)


def test_a_missing_area_is_that_of_the_mask_where_masks_are_read_else_of_the_box(tmp_path):
    path = write(tmp_path, with_masks([SQUARE]))
    assert read_coco(path, masks=True).area.tolist() == [16]
    assert read_coco(path).area.tolist() == [13.5]


def test_a_missing_box_is_that_of_the_mask(tmp_path):
    document = with_masks([SQUARE])
    del document["annotations"][0]["bbox"]
    records = read_coco(write(tmp_path, document))
    assert records.boxes.tolist() == [[0, 0, 4, 4]]
    assert records.segmentations is None


def test_the_export_of_via_is_read_as_it_is(tmp_path):
    cats = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    found = {"image_id": "0", "category_id": 2, "bbox": [0, 0, 4, 4], "area": 16, "iscrowd": 0}
    document = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 40, "width": 60} for i in range(2)],
        "categories": cats * 2,
        "annotations": [{"id": 0, "segmentation": SQUARE, **found}],
    }
    records = read_coco(write(tmp_path, document), masks=True)
    assert (records.categories, records.category_ids) == (["cat", "dog"], [1, 2])
    assert records.labels.tolist() == [1]
    assert records.segmentations is not None
    assert records.segmentations[0][0].tolist() == SQUARE


def test_rows_of_one_category_that_differ_are_refused(tmp_path):
    document = {**GOOD, "categories": [*GOOD["categories"], {"id": 3, "name": "van"}]}
    with pytest.raises(ValueError, match="category id=3 stands there 2 times"):
        read_coco(write(tmp_path, document))


def test_a_class_of_crowds_only_is_warned_of_once(tmp_path):
    document = changed("annotations", 0, iscrowd=1)
    with pytest.warns(UserWarning, match=r"a\.json: all objects of 1 class are crowds .*'car' \(1\)") as seen:
        read_coco(write(tmp_path, document))
    assert len(seen) == 1


def test_merged_categories_are_one_label_of_several_ids(tmp_path):
    document = copy.deepcopy(GOOD)
    document["categories"].append({"id": 120, "name": "car"})
    document["annotations"][2]["category_id"] = 120
    with pytest.warns(UserWarning, match="category id=120 is named 'car' like category id=3"):
        assert read_coco(write(tmp_path, document)).category_ids == [3, 90, 120]
    records = read_coco(write(tmp_path, document), tidy_categories=True)
    assert (records.categories, records.category_ids) == (["car", "toothbrush"], [3, 90])
    assert records.id_to_label == {3: 0, 90: 1, 120: 0}
    assert records.labels.tolist() == [1, 0, 0]
