"""Pictures of errors: the colors of the kinds stand at the boxes."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from detkit.evaluate.pictures import LARGEST_SIDE, draw_errors, kind_color
from detkit.metrics.engines import Match
from detkit.metrics.errors import BACKGROUND, KINDS
from detkit.metrics.records import objects


def decoded(uri):
    start, text = uri.split(",")
    assert start == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_every_box_has_the_color_of_what_became_of_it():
    truth = objects(np.array([[100.0, 200, 400, 400], [1000, 200, 400, 400]]), np.array([0, 0]))
    found = objects(np.array([[100.0, 200, 400, 400], [1000, 800, 400, 400]]), np.array([0, 0]))
    match = Match((0, 1, 0), found, truth, np.array([0, -1]))
    pictures = draw_errors(Image.new("RGB", (1600, 1280)), match, np.array([-1, BACKGROUND]), ("cat",))
    for uri, kinds, boxes in zip(pictures, (("hit", "missed"), ("hit", "background")), (truth, found), strict=True):
        picture = decoded(uri)
        assert max(picture.size) == LARGEST_SIDE
        for kind, (x, y, _, height) in zip(kinds, boxes.boxes * 0.4, strict=True):
            middle = np.array(picture, int)[int(y + height / 2), int(x) - 3 : int(x) + 4]
            color = [int(part) for part in kind_color(kind)[4:-1].split(",")]
            assert np.abs(middle - color).sum(axis=1).min() < 60


def test_nothing_found_and_nothing_there_is_drawn():
    none = objects(np.zeros((0, 4)), np.zeros(0, np.int64))
    match = Match((0, 1, 0), none, none, np.zeros(0, np.int64))
    assert (
        decoded(draw_errors(Image.new("L", (500, 600)), match, np.zeros(0, np.int64), ("cat",))[0]).size[1] == 640 - 40
    )


@pytest.mark.parametrize("kind", ["hit", *KINDS])
def test_every_kind_has_a_color(kind):
    assert kind_color(kind).startswith("rgb(")
