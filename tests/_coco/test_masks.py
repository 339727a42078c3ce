"""Segmentations of entries: what cannot be drawn, or has no area, is told by kind, and the rest is kept."""

import numpy as np
import pytest

from detkit._coco.masks import areas_of, boxes_of, complete_sizes, is_none, read_masks
from detkit._coco.tables import Table
from detkit._faults import Faults
from detkit._rle import draw_mask

SQUARE = [0, 0, 2, 0, 2, 2, 0, 2]


def read(*values, truth=True, size=(4, 6)):
    """The masks, which objects are at fault, and the faults."""
    table = Table("annotation", [{"id": i, "segmentation": value} for i, value in enumerate(values)])
    faults, bad = Faults("a.json"), np.zeros(len(values), bool)

    def mark(rows, describe):
        faults.drop(rows, describe)
        bad[rows] = True

    rows, sizes = np.arange(len(values)), np.array([size] * len(values))
    return read_masks(table, rows, sizes, truth=truth, faults=faults, mark=mark), bad.tolist(), faults


@pytest.mark.parametrize("value", [None, [], [[]], [[0, 0, 1, 1]], {"size": [4, 6], "counts": [24]}, "x"], ids=str)
def test_an_object_without_a_mask_is_marked_and_the_others_keep_theirs(value):
    masks, bad, faults = read([SQUARE], value, [SQUARE])
    assert bad == [False, True, False]
    assert [mask is None for mask in masks] == bad
    with pytest.raises(ValueError, match=r"a\.json: annotation id=1: (segmentation|polygon)"):
        faults.settle()


LINES = {
    "there and back": [0, 0, 4, 0, 2, 0],
    "slanted": [0.1, 0.1, 0.2, 0.2, 0.7, 0.7, 0.3, 0.3],
    "one point": [3, 3] * 4,
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_a_polygon_that_encloses_nothing_is_left_out_and_alone_no_object(line):
    (mask,), bad, faults = read([line, SQUARE])
    assert isinstance(mask, list)
    assert ([part.tolist() for part in mask], bad) == ([SQUARE], [False])
    with pytest.raises(ValueError, match="annotation id=0: polygon without area"):
        faults.settle()
    assert read([line])[1] == [True]
    assert read([line], truth=False)[1] == [False]


def test_a_figure_of_eight_encloses_an_area():
    assert read([[0, 0, 2, 2, 2, 0, 0, 2]])[1] == [False]


def test_each_kind_is_told_once_with_its_count():
    *_, faults = read(None, [], [[0, 0]], [[1, 1]], [SQUARE, [0, 0]], [SQUARE, [1, 1]])
    with pytest.raises(ValueError, match="3 kinds of faults") as error:
        faults.settle()
    for line in ("id=0: segmentation is None", "id=2: polygon [0, 0]", "id=4: polygon [0, 0]"):
        (told,) = (told for told in str(error.value).splitlines() if line in told)
        assert "(2 such)" in told


def test_polygons_need_the_size_of_their_image():
    assert read([SQUARE], size=(0, 0))[1] == [True]


def test_runs_say_the_size_of_images_that_have_none():
    values = [[SQUARE], {"size": [4, 6]}, {"size": [9, 9]}, {"size": [5, "5"]}, {"size": [0, 5]}, {"size": None}]
    table = Table("annotation", [{"segmentation": value} for value in values])
    sizes = np.array([[0, 0], [7, 7], [0, 0], [0, 0], [0, 0]])
    complete_sizes(sizes, table, np.array([0, 0, 1, 2, 3, -1]))
    assert sizes.tolist() == [[4, 6], [7, 7], [5, 5], [0, 0], [0, 0]]


def test_areas_and_boxes_are_those_of_the_drawn_pixels():
    masks, *_ = read([SQUARE], {"size": [4, 6], "counts": [4, 2, 18]})
    given = [mask for mask in masks if mask is not None]
    assert areas_of(given, np.array([[4, 6]] * 2)).tolist() == [4, 2]
    assert boxes_of(given, np.array([[4, 6]] * 2)).tolist() == [[0, 0, 2, 2], [1, 0, 1, 2]]


def test_null_and_empty_lists_hold_nothing():
    assert [is_none(value) for value in (None, [], (), [0], 0, {})] == [True, True, True, False, False, False]


BLANK = {
    "between the centers of pixels": [1.1, 1.1, 1.3, 1.1, 1.3, 1.3, 1.1, 1.3],
    "a sliver": [0, 0.05, 6, 0.05, 6, 0.2, 0, 0.2],
    "outside the image": [7, 0, 11, 0, 11, 4, 7, 4],
}


@pytest.mark.parametrize("polygon", BLANK.values(), ids=BLANK)
def test_a_polygon_that_is_drawn_as_no_pixel_is_no_mask_alone(polygon):
    assert not draw_mask([np.array(polygon, float)], (4, 6)).any()
    _, bad, faults = read([polygon], [polygon, SQUARE])
    assert bad == [True, False]
    with pytest.raises(ValueError, match=r"^a\.json: annotation id=0: segmentation has no pixel"):
        faults.settle()
    assert read([polygon], truth=False)[1] == [False]


def test_whether_a_polygon_has_a_pixel_is_what_drawing_says():
    generator = np.random.default_rng(0)
    for _ in range(200):
        scale = generator.choice([0.3, 1.0, 3.0])
        points = (generator.uniform([0, 0], [6, 4]) + scale * generator.normal(size=(4, 2))).clip([-6, -4], [12, 8])
        drawn = draw_mask([points.ravel()], (4, 6)).any()
        assert read([points.ravel().tolist()])[1] == [not drawn]
