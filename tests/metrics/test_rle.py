"""Masks from files: the same as pycocotools where they are sound, a ValueError and never a crash where not."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco_mask

from detkit.metrics.rle import encode_masks, full_mask, mask_areas, mask_boxes, read_segmentation

SHAPES = array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=40)


def read(counts, size=(4, 5)):
    return read_segmentation({"size": list(size), "counts": counts}, size, where="annotation 7")


@given(arrays(np.uint8, SHAPES, elements=st.integers(0, 1)))
@settings(max_examples=50, deadline=None)
def test_masks_survive_compression_and_the_check_of_their_runs(masks):
    size = masks.shape[1:]
    encoded = encode_masks(masks)
    assert np.array_equal(mask_areas(encoded), masks.sum(axis=(1, 2)))
    for mask, runs in zip(masks, encoded, strict=True):
        checked = read_segmentation(runs, size, where="demo")
        as_text = read_segmentation({"size": list(size), "counts": runs["counts"].decode()}, size, where="demo")
        assert checked == as_text
        assert np.array_equal(coco_mask.decode(checked), mask)


def test_plain_runs_count_down_the_columns_starting_with_background():
    mask = coco_mask.decode(read([1, 5, 14]))
    assert mask[:, 0].tolist() == [0, 1, 1, 1]
    assert mask[:, 1].tolist() == [1, 1, 0, 0]
    assert mask[:, 2:].sum() == 0


def test_a_full_mask_covers_its_image_and_its_box():
    assert mask_areas([full_mask((4, 5))]).tolist() == [20]
    assert mask_boxes([full_mask((4, 5))]).tolist() == [[0, 0, 5, 4]]
    assert mask_boxes([]).shape == (0, 4)
    assert mask_areas([]).shape == (0,)
    assert encode_masks(np.zeros((0, 0, 0))) == []


def test_polygons_are_filled_as_pycocotools_fills_them():
    square = [0, 0, 3, 0, 3, 3, 0, 3]
    merged = read_segmentation([square, [3, 3, 5, 3, 5, 4, 3, 4]], (4, 5), where="demo")
    assert np.array_equal(coco_mask.decode(merged)[:3, :3], np.ones((3, 3)))
    assert mask_areas([merged]).tolist() == [11]


@pytest.mark.parametrize(
    "counts",
    [
        [1, 5],  # too short: unwritten memory in pycocotools
        [1, 5, 15],  # too long
        [21, -1],
        [],
        [1.5, 18.5],
        [[20]],
        "",
        "o",  # a continued number that never ends
        "ooooooooo0",
        b"\xff\x01",
        "05é",
        "1",
        None,
        7,
        "0" * 1000 + "1",
        [2**70],
    ],
)
def test_runs_that_do_not_fill_the_image_are_refused_by_name(counts):
    with pytest.raises(ValueError, match="annotation 7"):
        read(counts)


@pytest.mark.parametrize("cut", [1, 3, 7])
def test_truncated_runs_are_refused(cut):
    runs = encode_masks(np.random.default_rng(0).integers(0, 2, (1, 30, 30)))[0]
    with pytest.raises(ValueError, match="annotation 7"):
        read(runs["counts"][:-cut], (30, 30))


@pytest.mark.parametrize("size", [(0, 0), (200_000, 200_000), (0, 5)])
def test_images_without_pixels_or_with_too_many_are_refused_at_once(size):
    start = time.perf_counter()
    with pytest.raises(ValueError, match="annotation 7: the image is"):
        read([size[0] * size[1]], size)
    assert time.perf_counter() - start < 0.1


@pytest.mark.parametrize("found", [[5, 4], [4], None, "45"])
def test_runs_of_another_size_than_the_image_are_refused(found):
    with pytest.raises(ValueError, match=r"runs of size .*; allowed is the image's"):
        read_segmentation({"size": found, "counts": [20]}, (4, 5), where="annotation 7")


@pytest.mark.parametrize(
    "polygon",
    [
        [0, 0, 3, 0],
        [0, 0, 3, 0, 3],
        [0, 0, 3, 0, 3, float("nan")],
        [0, 0, 1e9, 0, 3, 3],
        [0, 0, 3, 0, 3, -20],
        ["a"] * 6,
        [[0, 0], [1, 1], [2, 2]],
        5,
    ],
)
def test_polygons_that_cannot_be_filled_are_refused(polygon):
    with pytest.raises(ValueError, match="annotation 7: polygon"):
        read_segmentation([polygon], (4, 5), where="annotation 7")


@pytest.mark.parametrize("segmentation", [None, [], "runs", 3])
def test_what_is_neither_polygons_nor_runs_is_refused(segmentation):
    with pytest.raises(ValueError, match="allowed are polygons or runs"):
        read_segmentation(segmentation, (4, 5), where="annotation 7")
