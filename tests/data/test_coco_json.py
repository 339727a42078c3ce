"""Every fault of a COCO annotation file is an error at once, with the file and the entry in its words."""

import copy
import json

import numpy as np
import pytest

from detkit.data.coco_json import read_coco

NAN, INF = float("nan"), float("inf")
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
    """GOOD with one entry changed; None removes a key."""
    document = copy.deepcopy(GOOD)
    entry = document[kind][position]
    entry.update(entries)
    for key in [key for key, value in entries.items() if value is None]:
        del entry[key]
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
    records = read_coco(
        write(tmp_path, {"images": [], "annotations": [], "categories": []}), masks=True, keypoints=True
    )
    assert records.boxes.shape == (0, 4)
    assert records.boxes.dtype == np.float32
    assert records.offsets.tolist() == [0]


@pytest.mark.parametrize(
    "document", [[], None, 3, {}, {**GOOD, "images": {}}, {**GOOD, "annotations": None}, {**GOOD, "categories": [3]}]
)
def test_a_document_of_another_form_is_refused(tmp_path, document):
    with pytest.raises(ValueError, match=r"CocoDataset: .*a\.json: (holds|images|annotations|categories)"):
        read_coco(write(tmp_path, document))


BAD_ANNOTATIONS = {
    "image unknown": {"image_id": 7},
    "image id text": {"image_id": "30"},
    "image id missing": {"image_id": None},
    "image id boolean": {"image_id": True},
    "image id giant": {"image_id": 2**64},
    "category unknown": {"category_id": 1},
    "category missing": {"category_id": None},
    "box missing": {"bbox": None},
    "box of three": {"bbox": [1, 2, 3]},
    "box of five": {"bbox": [1, 2, 3, 4, 5]},
    "box of text": {"bbox": ["1", "2", "3", "4"]},
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
    "area text": {"area": "9"},
    "crowd two": {"iscrowd": 2},
    "crowd text": {"iscrowd": "1"},
    "ignore null": {"ignore": [1]},
}


@pytest.mark.parametrize("entries", BAD_ANNOTATIONS.values(), ids=BAD_ANNOTATIONS)
def test_a_bad_annotation_is_named_with_file_id_and_key(tmp_path, entries):
    key = next(iter(entries))
    with pytest.raises(ValueError, match=rf"CocoDataset: .*a\.json: annotation id=13: {key}\b.*; allowed is "):
        read_coco(write(tmp_path, changed("annotations", 2, **entries)))


def test_the_one_bad_box_among_many_is_found(tmp_path):
    document = copy.deepcopy(GOOD)
    document["annotations"] = [{**GOOD["annotations"][0], "id": i} for i in range(5000)]
    document["annotations"][4321]["bbox"] = [1, 2, NAN, 4]
    with pytest.raises(ValueError, match=r"annotation id=4321: bbox=\[1, 2, nan, 4\]"):
        read_coco(write(tmp_path, document))


@pytest.mark.parametrize("entries", [{"id": None}, {"id": "x"}, {"id": 1.5}, {"id": 11}], ids=str)
def test_an_annotation_id_that_is_missing_ill_typed_or_there_twice_is_refused(tmp_path, entries):
    with pytest.raises(
        ValueError, match=r"a\.json: annotation (at position 2|id='x'|id=1\.5|id=11 stands there 2 times)"
    ):
        read_coco(write(tmp_path, changed("annotations", 2, **entries)))


@pytest.mark.parametrize(
    ("kind", "entries"),
    [("images", {"id": 30}), ("images", {"id": "5"}), ("images", {"height": None}), ("images", {"width": 0})]
    + [("images", {"height": -4}), ("images", {"height": 4.0}), ("images", {"height": 200_000, "width": 200_000})]
    + [("images", {"file_name": None}), ("images", {"file_name": 3}), ("images", {"file_name": "../a.png"})]
    + [("categories", {"id": 90}), ("categories", {"name": None}), ("categories", {"name": 3})],
    ids=str,
)
def test_a_bad_image_or_category_is_named(tmp_path, kind, entries):
    name = {"images": "image", "categories": "category"}[kind]
    ids = "(5|30|'5')" if kind == "images" else "(90|3)"
    with pytest.raises(ValueError, match=rf"CocoDataset: .*a\.json: {name} id={ids}"):
        read_coco(write(tmp_path, changed(kind, 1, **entries)))


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


@pytest.mark.parametrize("points", [[1, 2, 2], [1, 2, 2, 0, 0, 3], [1, 2, 2, 0, NAN, 0], None, "x"], ids=str)
def test_bad_keypoints_are_refused_by_annotation(tmp_path, points):
    with pytest.raises(ValueError, match=r"annotation id=12: keypoints="):
        read_coco(write(tmp_path, with_keypoints(points)), keypoints=True)


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
        read_coco(write(tmp_path, document), masks=True)
    assert read_coco(write(tmp_path, document)).segmentations is None


def test_more_mask_pixels_than_the_bound_are_refused_before_they_are_drawn(tmp_path):
    document = changed("images", 0, height=9000, width=9000)
    polygon = [[0, 0, 9, 0, 9, 9]]
    one = {**GOOD["annotations"][0], "segmentation": polygon}
    document["annotations"] = [{**one, "id": i} for i in range(60)]
    with pytest.raises(ValueError, match=r"image id=30: 60 masks of 9000 x 9000 exceed"):
        read_coco(write(tmp_path, document), masks=True)
