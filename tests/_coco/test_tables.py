"""The lists of a document: their form, their ids, and what refers to them."""

import numpy as np
import pytest

from detkit._coco.tables import Document, Table, positions, read_sizes
from detkit._faults import Faults


def read(document):
    faults = Faults("a.json")
    found = Document.read(document, faults)
    faults.settle()
    return found


def test_images_and_categories_come_in_ascending_id_and_annotations_as_they_stand():
    found = read({"images": [{"id": 9}, {"id": 2}], "categories": [{"id": 5.0}, {"id": 1}], "annotations": [{"id": 3}]})
    assert found.image_ids.tolist() == [2, 9]
    assert [image["id"] for image in found.images.entries] == [2, 9]
    assert found.category_ids.tolist() == [1, 5]
    assert (len(found.annotations.entries), found.has_truth) == (1, True)


def test_a_file_without_annotations_has_none():
    found = read({"images": [{"id": 9}], "categories": []})
    assert (len(found.annotations.entries), found.has_truth) == (0, False)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "holds a list; allowed is a dict"),
        ({"images": [], "annotations": []}, "categories is missing; allowed is a list"),
        ({"images": 3, "categories": []}, "images is 3; allowed is a list"),
        ({"images": [{"id": 1}, 7, 8], "categories": []}, r"images\[1\] is 7; allowed is a dict \(2 such\)"),
        ({"images": [], "categories": [], "annotations": None}, "annotations is None; allowed is a list"),
        ({"images": [{"id": 1}, {"id": 1}], "categories": []}, "image id=1 stands there 2 times"),
        ({"images": [{}], "categories": []}, "image at position 0: id is missing; allowed is an integer"),
        ({"images": [{"id": 2**63}], "categories": []}, "image id=9223372036854775808: id=.* 64 bits"),
    ],
)
def test_another_form_and_ids_that_are_none_are_refused(document, message):
    with pytest.raises(ValueError, match=f"^a.json: {message}"):
        read(document)


def test_rows_of_categories_that_say_the_same_stand_for_one():
    rows = [{"id": 2, "name": "cat", "supercategory": "a"}, {"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    found = read({"images": [], "categories": rows * 100})
    assert found.category_ids.tolist() == [1, 2]
    with pytest.raises(ValueError, match="category id=2 stands there 2 times"):
        read({"images": [], "categories": [*rows, {"id": 2, "name": "cats"}]})


def test_ids_in_text_are_one_fault_and_not_another_of_each_reference():
    faults = Faults("a.json")
    document = {"images": [{"id": "7"}], "categories": [], "annotations": [{"id": 1, "image_id": "7"}]}
    found = Document.read(document, faults)
    assert positions(found.annotations, "image_id", found.image_ids, faults).tolist() == [0]
    with pytest.raises(ValueError, match=r"^a\.json: image id='7': id='7'; allowed is an integer"):
        faults.settle()


def test_references_are_positions_and_unknown_ones_are_told():
    faults = Faults("a.json")
    table = Table("annotation", [{"id": i, "image_id": value} for i, value in enumerate([9, "2", 2.0, 5, None, 99])])
    assert positions(table, "image_id", np.array([2, 9]), faults).tolist() == [1, 0, 0, -1, -1, -1]
    with pytest.raises(ValueError, match=r"annotation id=3: image_id=5; allowed .* of the 2 images \(3 such\)"):
        faults.settle()
    assert positions(table, "image_id", np.zeros(0, np.int64), Faults("a.json")).tolist() == [-1] * 6


@pytest.mark.parametrize(
    ("size", "expected"),
    [((4, 6), [4, 6]), (("309", 64.0), [309, 64]), ((-1, 0), [0, 0]), ((None, True), [0, 0]), ((4.5, "x"), [0, 0])],
)
def test_a_size_is_a_number_of_pixels_or_not_given(size, expected):
    assert read_sizes(Table("image", [dict(zip(("height", "width"), size, strict=True))])).tolist() == [expected]
    assert read_sizes(Table("image", [{}])).tolist() == [[0, 0]]
