"""Annotations and results as columns: what is at fault is an object less, or an error."""

import numpy as np
import pytest

from detkit._coco.rows import Fields, read_objects
from detkit._coco.tables import Document, Table
from detkit._faults import Faults

GOOD = {"image_id": 5, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}
DOCUMENT = Document.read({"images": [{"id": 5}, {"id": 6}], "categories": [{"id": 3}]}, Faults("a.json"))
SIZES = np.array([[40, 60], [0, 0]])


def read(*changes, truth=True, **fields):
    table = Table("annotation" if truth else "results", [{**GOOD, "id": i, **row} for i, row in enumerate(changes)])
    faults = Faults("a.json")
    rows, kept = read_objects(table, DOCUMENT, SIZES.copy(), Fields(truth=truth, **fields), faults)
    return rows, kept.tolist(), faults


def test_columns_are_those_of_the_entries():
    rows, kept, _ = read({}, {"image_id": "6", "area": "7", "iscrowd": 1, "ignore": "1", "num_keypoints": 0})
    assert kept == [True, True]
    assert (rows.images.tolist(), rows.labels.tolist()) == ([0, 1], [0, 0])
    assert rows.boxes.tolist() == [[1, 2, 3, 4]] * 2
    assert rows.area.tolist() == [12, 7]
    assert (rows.crowd.tolist(), rows.ignore.tolist()) == ([False, True], [False, True])
    assert (rows.scores.tolist(), rows.num_keypoints[1]) == ([1, 1], 0)
    assert rows.take(np.array([1])).area.tolist() == [7]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": []}, r"bbox=\[\]; allowed is x, y, width, height"),
        ({"bbox": [1, 2, 3]}, r"bbox=\[1, 2, 3\]; allowed is 4 finite numbers"),
        ({"bbox": [1, 2, 3, -4]}, r"bbox=\[1, 2, 3, -4\]; .* >= 0"),
        ({"bbox": [1, 2, 0, 4]}, r"the box \[1.0, 2.0, 1.0, 6.0\] \(xyxy\) has no width or no height"),
        ({"bbox": [60, 2, 3, 4]}, "the box .* lies outside its picture of 40 x 60"),
        ({"area": -1}, "area=-1; allowed is a finite number >= 0"),
        ({"iscrowd": 3}, "iscrowd=3; allowed is 0 or 1"),
    ],
)
def test_an_annotation_at_fault_is_no_object_and_its_fault_is_told_once(change, message):
    _, kept, faults = read({}, change)
    assert kept == [True, False]
    with pytest.raises(ValueError, match=rf"^a.json: annotation id=1: {message}"):
        faults.settle()


def test_results_have_scores_may_lie_anywhere_and_have_no_flags():
    rows, kept, faults = read({"bbox": [99, 2, 0, 4], "iscrowd": 7, "area": -3}, truth=False)
    faults.settle()
    assert (kept, rows.scores.tolist(), rows.area.tolist()) == ([True], [0.5], [0])
    with pytest.raises(ValueError, match=r"results\[1\]: score='high'; allowed is a finite number"):
        read({}, {"score": "high"}, truth=False)[2].settle()


def test_a_result_without_a_box_has_that_of_its_mask_or_keypoints():
    boxless = {"bbox": None}
    table = Table("results", [{key: value for key, value in GOOD.items() if key not in boxless}])
    runs = {"size": [40, 60], "counts": [0, 80, 2320]}
    masked = Table("results", [{**table.entries[0], "segmentation": runs}])
    rows, _ = read_objects(masked, DOCUMENT, SIZES, Fields(truth=False), Faults("a.json"))
    assert (rows.boxes.tolist(), rows.area.tolist(), rows.segmentations) == ([[0, 0, 2, 40]], [80], None)
    pointed = Table("results", [{**table.entries[0], "keypoints": [1, 2, 0.3, 5, 9, 0.4]}])
    rows, _ = read_objects(pointed, DOCUMENT, SIZES, Fields(points=2, truth=False), Faults("a.json"))
    assert rows.boxes.tolist() == [[1, 2, 4, 7]]


def test_keypoints_that_are_not_visible_are_not_looked_at_but_scores_of_results_are():
    rows, kept, _ = read({"keypoints": [1, 2, 2, float("nan"), None, 0]}, {"keypoints": [1, 2, 3, 4, 5, 0]}, points=2)
    assert kept == [True, False]
    assert rows.keypoints is not None
    assert rows.keypoints[0].tolist() == [[1, 2, 2], [0, 0, 0]]
    with pytest.raises(ValueError, match=r"results\[0\]: keypoints=.*; allowed is 1 times x, y, score"):
        read({"keypoints": [float("nan"), 1, 0]}, truth=False, points=1)[2].settle()
