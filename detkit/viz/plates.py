"""Where the texts of objects stand in a picture: at a corner of their box, on little of other texts and of objects."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

Rectangle = tuple[int, int, int, int]
Plates = Literal["all", "clear", "none"]
"""Which texts are drawn: all, those that hide at most half of any object, or none."""

_HIDDEN = 0.5


def check_plates(plates: Any, *, function: str) -> None:
    """Raise ValueError for another choice of texts.

    >>> check_plates("clear", function="example")
    """
    if plates not in ("all", "clear", "none"):
        raise ValueError(f"{function}: plates={plates!r}; allowed are 'all', 'clear' and 'none'")


def text_size(font: Any, text: str) -> tuple[int, int]:
    """(width, height) of a text with its margin."""
    ascent, descent = font.getmetrics()
    return math.ceil(font.getlength(text)) + 4, ascent + descent + 1


def hidden_shares(places: Sequence[Rectangle], boxes: Sequence[Rectangle] | np.ndarray) -> np.ndarray:
    """How much of each box lies under each place, (P, K) in [0, 1]; all are pixels, ends included.

    >>> hidden_shares([(0, 0, 9, 4)], [(0, 0, 9, 9), (20, 20, 30, 30)]).tolist()
    [[0.5, 0.0]]
    """
    one, other = _as_rows(places)[:, None], _as_rows(boxes)[None]
    low, high = np.maximum(one[..., :2], other[..., :2]), np.minimum(one[..., 2:], other[..., 2:])
    return (high - low + 1).clip(0).prod(-1) / (other[..., 2:] - other[..., :2] + 1).prod(-1)


def find_places(
    edges: Sequence[Rectangle], sizes: Sequence[tuple[int, int]], size: tuple[int, int], boxes: Sequence[Rectangle]
) -> list[Rectangle]:
    """The position of each text, best first: at a corner of its box, in the picture, where least is lost.

    ``edges`` are the boxes of the texts, ``sizes`` their (width, height), ``boxes`` all that are drawn. Lost is the
    share of the text that covers earlier ones, plus the largest share of an object that it hides.
    """
    placed: list[Rectangle] = []
    every = _as_rows(boxes)
    width, height = (max([size[axis], *(text[axis] for text in sizes)]) for axis in (0, 1))
    covered = np.zeros((height, width), dtype=np.int32)  # by how many texts: their overlap without going through them
    for (x1, y1, x2, y2), (width, height) in zip(edges, sizes, strict=True):
        corners = [(x1, y1 - height), (x2 - width, y1 - height), (x1, y2 + 1), (x2 - width, y2 + 1)]
        corners += [(x1, y1), (x2 - width, y1), (x1, y2 - height), (x2 - width, y2 - height)]
        choices = [_inside(x, y, width, height, size) for x, y in corners]
        lost = hidden_shares(choices, _around(choices, every)).max(1, initial=0)
        lost += [covered[_area(choice)].sum() / (width * height) for choice in choices]
        placed.append(choices[int(lost.argmin())])
        covered[_area(placed[-1])] += 1
    return placed


def is_clear(places: Sequence[Rectangle], boxes: Sequence[Rectangle]) -> list[bool]:
    """Whether each place leaves at least half of every object to be seen.

    >>> is_clear([(0, 0, 9, 4), (0, 0, 9, 9)], [(0, 0, 9, 9)])
    [True, False]
    """
    every = _as_rows(boxes)
    return [bool((hidden_shares([place], _around([place], every)) <= _HIDDEN).all()) for place in places]


def _as_rows(boxes: Sequence[Rectangle] | np.ndarray) -> np.ndarray:
    return np.array(boxes, float).reshape(-1, 4)


def _around(places: Sequence[Rectangle], boxes: np.ndarray) -> np.ndarray:
    """The boxes that lie under the hull of some places: of thousands few, and shares of the others are 0."""
    x1, y1, x2, y2 = (limit(place[side] for place in places) for side, limit in enumerate((min, min, max, max)))
    low, high = boxes[:, :2], boxes[:, 2:]
    return boxes[(low[:, 0] <= x2) & (low[:, 1] <= y2) & (high[:, 0] >= x1) & (high[:, 1] >= y1)]


def _inside(x: int, y: int, width: int, height: int, size: tuple[int, int]) -> Rectangle:
    left, top = max(0, min(x, size[0] - width)), max(0, min(y, size[1] - height))
    return left, top, left + width - 1, top + height - 1


def _area(place: Rectangle) -> tuple[slice, slice]:
    return slice(place[1], place[3] + 1), slice(place[0], place[2] + 1)
