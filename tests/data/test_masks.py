"""COCO's segmentations: equal to pycocotools where that is right, an error in no time where it would crash."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from detkit.data.masks import check_segmentation, draw_mask, parse_counts

GOOD = coco_mask.encode(np.asfortranarray(np.eye(4, 6, dtype=np.uint8)))["counts"].decode()
HUGE = coco_mask.encode(np.asfortranarray(np.eye(40, 60, dtype=np.uint8)))["counts"].decode()

BAD_RUNS = {
    "too short": {"size": [4, 6], "counts": [3, 4]},
    "too long": {"size": [4, 6], "counts": [3, 40]},
    "empty list": {"size": [4, 6], "counts": []},
    "empty text": {"size": [4, 6], "counts": ""},
    "no counts": {"size": [4, 6]},
    "no size": {"counts": [24]},
    "size 0": {"size": [0, 0], "counts": []},
    "size 0 text": {"size": [0, 6], "counts": GOOD},
    "huge": {"size": [200_000, 200_000], "counts": [4 * 10**10]},
    "huge text": {"size": [200_000, 200_000], "counts": GOOD},
    "transposed": {"size": [6, 4], "counts": [24]},
    "size of floats": {"size": [4.5, 6], "counts": [24]},
    "size of text": {"size": "4x6", "counts": [24]},
    "negative run": {"size": [4, 6], "counts": [30, -6]},
    "float run": {"size": [4, 6], "counts": [12.5, 11.5]},
    "boolean run": {"size": [4, 6], "counts": [True, False]},
    "nested run": {"size": [4, 6], "counts": [[24]]},
    "ragged run": {"size": [4, 6], "counts": [[24], 1]},
    "text run": {"size": [4, 6], "counts": ["24"]},
    "giant run": {"size": [4, 6], "counts": [2**70]},
    "runs that overflow to the right sum": {"size": [4, 6], "counts": [2**62, 2**62, 2**62, 2**62, 24]},
    "text cut short": {"size": [4, 6], "counts": HUGE[:-1] + "P"},
    "text of another size": {"size": [4, 6], "counts": HUGE},
    "text too short": {"size": [4, 6], "counts": GOOD[:-1]},
    "text never ending": {"size": [4, 6], "counts": "o" * 100},
    "text long number": {"size": [4, 6], "counts": "o" * 12 + "0"},
    "text with bad characters": {"size": [4, 6], "counts": "\x00\x7fé"},
    "counts of bytes": {"size": [4, 6], "counts": 24},
}


@pytest.mark.parametrize("value", BAD_RUNS.values(), ids=BAD_RUNS)
def test_runs_that_do_not_fill_the_image_are_refused_in_under_a_tenth_of_a_second(value):
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"annotation id=9: (the )?RLE"):
        check_segmentation(value, size=(4, 6), owner="annotation id=9")
    assert time.perf_counter() - start < 0.1


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "x",
        3,
        [[]],
        [[0, 0, 1, 1]],
        [[0, 0, 1, 1, 2]],
        [[0, 0, 1, 1, 2, 2, 3]],
        [[0, 0, 1, 1, 2, float("nan")]],
    ]
    + [[[0, 0, 1, 1, 2, 1e300]], [[0, 0, 1, 1, 2, 10**400]], [[0, 0, 1, 1, 2, "3"]], [[0, 0, 1, 1, 2, None]]]
    + [[[0, 0, 1, 1, 1e9, 1e9]], [[0, 0, 1, 1, -1e9, 0]], [0, 0, 1, 1, 2, 2], [[True] * 6]],
    ids=str,
)
def test_polygons_that_are_none_are_refused(value):
    with pytest.raises(ValueError, match=r"annotation id=9: (segmentation|polygon)"):
        check_segmentation(value, size=(4, 6), owner="annotation id=9")


@given(
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    density=st.sampled_from([0, 0.1, 0.5, 1]),
    seed=st.integers(0, 99),
)
def test_drawing_encoded_masks_gives_them_back(height, width, density, seed):
    mask = (np.random.default_rng(seed).random((height, width)) < density).astype(np.uint8)
    encoded = coco_mask.encode(np.asfortranarray(mask))
    value = {"size": [height, width], "counts": encoded["counts"].decode()}
    segmentation = check_segmentation(value, size=(height, width), owner="o")
    assert (draw_mask(segmentation, (height, width)) == mask).all()


@given(st.text(alphabet=[chr(c) for c in range(40, 120)], max_size=40))
def test_any_text_is_parsed_or_refused_and_never_draws_an_unwritten_pixel(text):
    try:
        segmentation = check_segmentation({"size": [3, 5], "counts": text}, size=(3, 5), owner="o")
    except ValueError:
        return
    mask = draw_mask(segmentation, (3, 5))
    assert mask.shape == (3, 5)
    assert mask.max() <= 1


def test_long_runs_survive_the_text_form():
    mask = np.zeros((2000, 3000), np.uint8)
    mask[:, 1000:1001] = 1
    mask[5, 2500] = 1
    counts = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    assert parse_counts(counts).tolist() == [2_000_000, 2000, 1499 * 2000 + 5, 1, 500 * 2000 - 6]


def test_polygons_are_drawn_as_by_pycocotools():
    polygons = [[1.0, 1.0, 20.0, 3.0, 10.0, 18.5], [22.0, 2.0, 29.0, 2.0, 29.0, 9.0, 22.0, 9.0], [-3.0, 5, 4, 5, 4, 40]]
    encoded = coco_mask.merge(coco_mask.frPyObjects(polygons, 24, 32))
    drawn = draw_mask(check_segmentation(polygons, size=(24, 32), owner="o"), (24, 32))
    assert (drawn == coco_mask.decode(encoded)).all()
    assert 0 < drawn.sum() < drawn.size
