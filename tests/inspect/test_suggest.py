"""The input size that is suggested: small objects get pixels enough, and images no more than they need."""

import pytest
import torch

from detkit.inspect.report import Truth
from detkit.inspect.suggest import small_side, suggest


def truth(sides, size, labels=None):
    boxes = torch.tensor([[0.0, 0, side, side] for side in sides]).reshape(-1, 4)
    return Truth([0], [{"boxes": boxes, "labels": torch.tensor(labels or [0] * len(sides))}], [size])


@pytest.mark.parametrize(
    ("side", "size", "expected", "finest"),
    [
        (42, (600, 800), (384, 544), 8),  # two thirds: 28 pixels
        (400, (600, 800), (288, 384), 8),  # large objects: no fewer than some 320 x 320 pixels
        (8, (640, 640), (640, 640), 4),  # tiny ones: no more than 640 x 640, and a finer level
        (20, (480, 1920), (320, 1280), 4),  # a wide picture stays one
        (20, (96, 96), (128, 128), 8),  # small pictures are enlarged for small objects
        (60, (96, 96), (96, 96), 8),  # and only for these
        (2, (96, 96), (192, 192), 4),  # at most twice
    ],
)
def test_a_small_object_has_28_pixels_within_the_bounds_of_the_input(side, size, expected, finest):
    assert suggest(truth([side] * 5, size)) == (expected, finest)


def test_a_quarter_of_all_classes_is_small_however_rare_their_objects():
    assert small_side(truth([50.0] * 90 + [10.0], (480, 640), [0] * 90 + [1])) == 10
    assert small_side(truth([50.0] * 90 + [10.0], (480, 640))) == 50


def test_nothing_to_learn_needs_no_more_than_the_usual_size():
    assert suggest(Truth([], [], [])) == ((320, 320), 8)
    assert small_side(truth([], (480, 640))) is None
    assert small_side(truth([0.0, 0.0, 50.0], (480, 640))) == 50  # boxes without area are none
    assert suggest(truth([], (480, 640))).size == (288, 384)
