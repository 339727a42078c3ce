"""Masks from files: equal to pycocotools where they are sound, an error in no time where it would crash."""

import time
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco_mask

from detkit._rle import (
    MAX_PIXELS,
    MaskError,
    check_segmentation,
    compress_segmentation,
    draw_mask,
    encode_masks,
    full_mask,
    mask_areas,
    mask_boxes,
    parse_counts,
    read_segmentation,
)

SHAPES = array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=40)
POLYGONS = [[1.0, 1.0, 20.0, 3.0, 10.0, 18.5], [22.0, 2.0, 29.0, 2.0, 29.0, 9.0, 22.0, 9.0], [-3.0, 5, 4, 5, 4, 40]]


def text_of(mask):
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()


def written(*numbers):
    """Text of (value, characters): the format allows more characters than a value needs."""
    digits = [
        ((value >> 5 * i) & 31) + 32 * (i < characters - 1) + 48
        for value, characters in numbers
        for i in range(characters)
    ]
    return "".join(map(chr, digits))


def check(value, size=(4, 6)):
    return check_segmentation(value, size=size, owner="annotation id=9")


def refused_at_once(value, message, size=(4, 6)):
    start = time.process_time()
    with pytest.raises(ValueError, match=rf"^annotation id=9: {message}"):
        check(value, size)
    assert time.process_time() - start < 1


GOOD = text_of(np.eye(4, 6))
HUGE = text_of(np.eye(40, 60))

BAD_COUNTS = {
    "too short": [3, 4],
    "too long": [3, 40],
    "one too many": [3, 22],
    "empty list": [],
    "empty text": "",
    "none": None,
    "a number": 24,
    "a dict": {"0": 24},
    "negative run": [30, -6],
    "float run": [12.5, 11.5],
    "boolean run": [True, False],
    "boolean among numbers": [23, True],
    "nested run": [[24]],
    "ragged run": [[24], 1],
    "text run": ["24"],
    "giant run": [2**70],
    "runs that overflow to the right sum": [2**62, 2**62, 2**62, 2**62, 24],
    "words that NumPy would pad to terabytes": ["x" * 10**6] + ["y"] * 10**6,
    "text cut short": HUGE[:-1] + "P",
    "text of another size": HUGE,
    "text too short": GOOD[:-1],
    "text of one zero": "0",
    "text of one run": "1",
    "text of many runs": "0" * 1000 + "1",
    "text never ending": "o" * 100,
    "text of one endless number": "o",
    "text long number": "o" * 12 + "0",
    "text with bad characters": "\x00\x7fé",
    "text with one bad character": GOOD + "é",
    "text beyond latin": GOOD + "€",
    "text with a lone surrogate": GOOD + "\ud800",
    "bytes with bad characters": b"\xff\x01",
}
BAD_SIZES = [[6, 4], [4], [4, 6, 1], [0, 0], [0, 6], [200_000, 200_000], [4.5, 6], "46", "4x6", 24, None, [None, None]]


@pytest.mark.parametrize("counts", BAD_COUNTS.values(), ids=BAD_COUNTS)
def test_runs_that_do_not_fill_the_image_are_refused_in_under_a_tenth_of_a_second(counts):
    refused_at_once({"size": [4, 6], "counts": counts}, "runs")


def test_runs_without_counts_or_without_a_size_are_refused():
    refused_at_once({"size": [4, 6]}, "runs: counts None; allowed are a list of integers, or text")
    refused_at_once({"counts": [24]}, "runs of size None")


@pytest.mark.parametrize("found", BAD_SIZES, ids=str)
@pytest.mark.parametrize("counts", [[24], [4 * 10**10], [], GOOD], ids=["list", "huge", "empty", "text"])
def test_runs_of_another_size_than_the_image_are_refused(found, counts):
    refused_at_once({"size": found, "counts": counts}, r"runs of size .*; allowed is the image's .* \(4, 6\)")


@pytest.mark.parametrize("cut", [1, 3, 7])
def test_truncated_runs_are_refused(cut):
    runs = encode_masks(np.random.default_rng(0).integers(0, 2, (1, 30, 30)))[0]
    for counts in (runs["counts"][:-cut], runs["counts"][:-cut].decode()):
        refused_at_once({"size": [30, 30], "counts": counts}, "runs", (30, 30))


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([3, 40], "runs hold 40; allowed are runs of 0 to 24 pixels"),
        ([30, -6], "runs hold 30; allowed"),
        ([-1, 25], "runs hold -1; allowed"),
        ([3, 4], "runs add up to 7; allowed are runs >= 0 that add up to 24"),
        ([2.5], r"runs: counts \[2.5\]; allowed are a list of integers, or text"),
        ("0é", "runs: counts '0é' hold a character outside '0' to 'o'"),
        ("0o", "runs: counts '0o' end inside a number"),
        ("ooooooo0", "runs: counts 'ooooooo0' hold a number of more than 35 bits"),
    ],
)
def test_errors_of_runs_name_what_came_and_what_is_allowed(counts, message):
    refused_at_once({"size": [4, 6], "counts": counts}, message)


@pytest.mark.parametrize("size", [(0, 0), (200_000, 200_000), (0, 5), (-4, -5), (1, MAX_PIXELS + 1)])
def test_images_without_pixels_or_with_too_many_are_refused_at_once(size):
    for value in ({"size": list(size), "counts": [size[0] * size[1]]}, POLYGONS):
        refused_at_once(value, f"the image is .*; allowed are 1 to {MAX_PIXELS} pixels", size)


@pytest.mark.parametrize("value", [None, [], "x", b"runs", 3], ids=str)
def test_what_is_neither_polygons_nor_runs_is_refused(value):
    refused_at_once(value, "segmentation is .*; allowed are polygons, or a dict of size and counts")


@pytest.mark.parametrize(
    "polygon",
    [
        [],
        [0, 0, 1, 1],
        [0, 0, 1, 1, 2],
        [0, 0, 1, 1, 2, 2, 3],
        [0, 0, 1, 1, 2, 10**400],
        [0, 0, 1, 1, 2, "3"],
        [0, 0, 1, 1, 2, None],
        ["a"] * 6,
        [True] * 6,
        [[0, 0], [1, 1], [2, 2]],
        "001122",
        5,
        np.zeros((3, 2)),
    ],
    ids=str,
)
def test_polygons_that_are_no_list_of_three_points_are_refused(polygon):
    refused_at_once([polygon], r"polygon .*; allowed is \[x, y, x, y, x, y, ...\] of three points or more")


def test_a_polygon_that_stands_in_no_list_is_read_and_refused_like_one_that_does():
    assert [part.tolist() for part in check([0, 0, 1, 1, 2, 0.5])] == [[0, 0, 1, 1, 2, 0.5]]
    refused_at_once([0, 0, 1, 1], r"polygon \[0, 0, 1, 1\]; allowed is")


def test_polygons_at_fault_are_returned_beside_the_good_ones_and_an_error_where_none_is_left():
    good = [0, 0, 3, 0, 3, 3]
    polygons, spoiled = read_segmentation([[0, 0], good, [0, 0, 1, 1, 2, 99]], size=(4, 6), owner="annotation id=9")
    assert isinstance(polygons, list)
    assert [part.tolist() for part in polygons] == [good]
    assert [fault.kind for fault in spoiled] == ["polygon", "polygon point"]
    with pytest.raises(MaskError, match=r"^annotation id=9: polygon \[0, 0\]"):
        read_segmentation([[0, 0]], size=(4, 6), owner="annotation id=9")


@pytest.mark.parametrize(
    "point",
    [
        (2, float("nan")),
        (float("inf"), 2),
        (2, 1e300),
        (1e9, 1e9),
        (-1e9, 0),
        (0, 8.01),
        (12.01, 0),
        (0, -4.01),
        (-6.01, 0),
    ],
)
def test_polygon_points_that_are_not_finite_or_far_outside_are_refused(point):
    refused_at_once(
        [[0, 0, 1, 1, *point]], "polygon point .*; allowed are finite points at most one image size outside"
    )


def test_polygon_points_one_image_size_outside_are_read_from_lists_tuples_and_arrays():
    polygon = [-6, -4, 12, -4, 12, 8, -6, 8]
    for polygons in ([polygon], (tuple(polygon),), [np.array(polygon)]):
        assert draw_mask(check(polygons), (4, 6)).all()


@given(arrays(np.uint8, SHAPES, elements=st.integers(0, 1)))
def test_masks_survive_compression_and_the_check_of_their_runs(masks):
    size = masks.shape[1:]
    encoded = encode_masks(masks)
    assert np.array_equal(mask_areas(encoded), masks.sum(axis=(1, 2)))
    for mask, runs in zip(masks, encoded, strict=True):
        checked = check(runs, size)
        assert np.array_equal(checked, check({"size": list(size), "counts": runs["counts"].decode()}, size))
        assert np.array_equal(draw_mask(checked, size), mask)
        assert compress_segmentation(checked, size) == runs


@given(
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    density=st.sampled_from([0, 0.1, 0.5, 1]),
    seed=st.integers(0, 99),
)
def test_drawing_encoded_masks_gives_them_back(height, width, density, seed):
    mask = np.random.default_rng(seed).random((height, width)) < density
    segmentation = check({"size": [height, width], "counts": text_of(mask)}, (height, width))
    assert (draw_mask(segmentation, (height, width)) == mask).all()


@given(st.text(alphabet=[chr(c) for c in range(40, 120)], max_size=40))
def test_any_text_is_parsed_or_refused_and_never_draws_an_unwritten_pixel(text):
    try:
        segmentation = check({"size": [3, 5], "counts": text}, (3, 5))
    except ValueError:
        return
    mask = draw_mask(segmentation, (3, 5))
    assert mask.shape == (3, 5)
    assert mask.max() <= 1
    assert np.array_equal(coco_mask.decode(compress_segmentation(segmentation, (3, 5))), mask)


def test_text_that_pycocotools_misreads_is_compressed_anew():
    text = written((10, 1), (20, 2), (30, 2), (-9, 7), (-1, 1))
    segmentation = check({"size": [10, 10], "counts": text}, (10, 10))
    assert segmentation.tolist() == [10, 20, 30, 11, 29]
    assert mask_areas([compress_segmentation(segmentation, (10, 10))]).tolist() == [31]


@pytest.mark.parametrize("runs", [[0, MAX_PIXELS - 3, 1, 1, 1], [MAX_PIXELS - 3, 1, 1, 1], [1, 1, 1, MAX_PIXELS - 3]])
def test_runs_of_the_largest_image_keep_their_area_in_pycocotools(runs):
    size = (1, MAX_PIXELS)
    compressed = compress_segmentation(check({"size": list(size), "counts": runs}, size), size)
    assert parse_counts(compressed["counts"]).tolist() == runs
    assert mask_areas([compressed]).tolist() == [sum(runs[1::2])]


def test_plain_runs_count_down_the_columns_starting_with_background():
    mask = draw_mask(check({"size": [4, 5], "counts": [1, 5, 14]}, (4, 5)), (4, 5))
    assert mask[:, 0].tolist() == [0, 1, 1, 1]
    assert mask[:, 1].tolist() == [1, 1, 0, 0]
    assert mask[:, 2:].sum() == 0


def test_long_runs_survive_the_text_form():
    mask = np.zeros((2000, 3000), np.uint8)
    mask[:, 1000:1001] = 1
    mask[5, 2500] = 1
    assert parse_counts(text_of(mask)).tolist() == [2_000_000, 2000, 1499 * 2000 + 5, 1, 500 * 2000 - 6]


def test_a_full_mask_covers_its_image_and_its_box():
    assert mask_areas([full_mask((4, 5))]).tolist() == [20]
    assert mask_boxes([full_mask((4, 5))]).tolist() == [[0, 0, 5, 4]]


def test_the_areas_of_more_masks_than_eight_bits_count_are_those_of_each():
    assert mask_areas(encode_masks(np.ones((600, 2, 3), bool))).tolist() == [6] * 600


def test_masks_of_polygons_do_not_warn_where_warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert draw_mask(check([[0, 0, 6, 0, 6, 4, 0, 4]]), (4, 6)).all()


def test_of_no_masks_there_are_no_areas_and_boxes():
    assert mask_boxes([]).shape == (0, 4)
    assert mask_areas([]).shape == (0,)
    assert encode_masks(np.zeros((0, 0, 0))) == []


def test_polygons_are_drawn_as_by_pycocotools():
    encoded = coco_mask.merge(coco_mask.frPyObjects(POLYGONS, 24, 32))
    segmentation = check(POLYGONS, (24, 32))
    drawn = draw_mask(segmentation, (24, 32))
    assert compress_segmentation(segmentation, (24, 32)) == encoded
    assert (drawn == coco_mask.decode(encoded)).all()
    assert 0 < drawn.sum() < drawn.size


def test_several_polygons_are_one_mask_of_their_union():
    merged = check([[0, 0, 3, 0, 3, 3, 0, 3], [3, 3, 5, 3, 5, 4, 3, 4]], (4, 5))
    assert np.array_equal(draw_mask(merged, (4, 5))[:3, :3], np.ones((3, 3)))
    assert mask_areas([compress_segmentation(merged, (4, 5))]).tolist() == [11]
