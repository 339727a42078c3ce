"""Pictures of an image's errors, as text that stands in an HTML page."""

import base64
import io

import numpy as np
from PIL import Image

from detkit.metrics.engines import Match
from detkit.metrics.errors import HIT, KINDS
from detkit.metrics.records import corners
from detkit.viz import class_color, draw_boxes

LARGEST_SIDE = 640
_COLORS = {"hit": 3, "missed": 0, "background": 0, "classification": 4, "localization": 6, "both": 2, "duplicate": 1}


def kind_color(kind: str) -> str:
    """The CSS color of "hit" and of each kind of error.

    >>> kind_color("hit")
    'rgb(0,158,115)'
    """
    return f"rgb{class_color(_COLORS[kind])}".replace(" ", "")


def draw_errors(image: Image.Image, match: Match, kinds: np.ndarray, names: tuple[str, ...]) -> tuple[str, str]:
    """The objects, found or missed, and the detections, by kind of error (D,), drawn as two data URIs of JPEGs."""
    small = image.convert("RGB")
    small.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    scale = small.width / image.width
    found = np.isin(np.arange(len(match.truth.labels)), match.objects)
    state = ["hit" if hit else "missed" for hit in found]
    truth = [names[label] for label in match.truth.labels]
    errors = ["hit" if kind == HIT else KINDS[kind] for kind in kinds.tolist()]
    scored = zip(match.detections.labels, match.detections.scores, strict=True)
    texts = [f"{names[label]} {score:.2f}" for label, score in scored]
    sides = (match.truth.boxes, state, truth), (match.detections.boxes, errors, texts)
    first, second = (_uri(_drawn(small, corners(boxes) * scale, *rest)) for boxes, *rest in sides)
    return first, second


def _drawn(image: Image.Image, boxes: np.ndarray, kinds: list[str], texts: list[str]) -> Image.Image:
    order = range(len(kinds))[::-1]  # the best on top
    labels = np.array([_COLORS[kinds[row]] for row in order], np.int64)
    return draw_boxes(image, boxes[list(order)].reshape(-1, 4), labels=labels, texts=[texts[row] for row in order])


def _uri(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
