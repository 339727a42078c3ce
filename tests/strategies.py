"""What the tests of boxes share: boxes that hurt, drawn by Hypothesis, and functions without the hook of jaxtyping."""

import functools
import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import strategies as st
from jaxtyping import config
from torch import Tensor

from detkit.structures import Anchors, Targets, pad_targets

KINDS = (
    "plain",
    "sub-pixel",
    "zero-size",
    "one zero side",
    "inverted",
    "negative",
    "huge",
    "tiny",
    "whole",
    "minus zero",
)
SCORES = st.sampled_from([0.0, -0.0, 0.001, 0.25, 0.5, 0.5, 0.75, 1.0])


def random_boxes(count: int, *, seed: int = 0, extent: float = 100.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """(count, 4) boxes with an area, in a frame of ``extent`` pixels."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.rand(count, 4, generator=generator, dtype=torch.float64) * extent
    low, high = torch.minimum(numbers[:, :2], numbers[:, 2:]), torch.maximum(numbers[:, :2], numbers[:, 2:])
    return torch.cat((low, high + 0.5), dim=1).to(dtype)


@st.composite
def box(draw: st.DrawFn, *, inverted: bool = True, huge: float = 1e30) -> list[float]:
    """One box of a kind that plain random boxes leave out, as float32 holds it."""
    kinds = [kind for kind in KINDS if (inverted or kind != "inverted") and (huge or kind != "huge")]
    kind = draw(st.sampled_from(kinds))
    coordinate, side = st.floats(0, 100, width=32), st.floats(0.5, 60, width=32)
    x, y, w, h = draw(coordinate), draw(coordinate), draw(side), draw(side)
    if kind == "sub-pixel":
        w, h = w / 1000, h / 1000
    elif kind == "zero-size":
        w = h = 0
    elif kind == "one zero side":
        w = 0
    elif kind == "negative":
        x, y = -x - w / 2, -y - h / 2
    elif kind == "whole":
        x, y, w, h = x // 10, y // 10, w // 10 + 1, h // 10 + 1
    elif kind == "minus zero":
        x = y = -0.0
    corners = [x, y, x - w, y - h] if kind == "inverted" else [x, y, x + w, y + h]
    scale = {"huge": huge / 100, "tiny": 1e-15}.get(kind, 1)
    return (torch.tensor(corners, dtype=torch.float64) * scale).float().tolist()


@st.composite
def boxes(draw: st.DrawFn, *, most: int = 6, inverted: bool = True, huge: float = 1e30) -> Tensor:
    """(N, 4) float32 of 0 to ``most`` hostile boxes, some of them twice."""
    rows = draw(st.lists(box(inverted=inverted, huge=huge), max_size=most))
    if rows and draw(st.booleans()):
        rows = [*rows, rows[0]]
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def crowd(count: int, *, seed: int = 0, groups: int = 3, ties: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores and groups, in float64; with ``ties`` many scores are equal."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(count, generator=generator, dtype=torch.float64)
    scores = (scores * 8).round() / 8 if ties else scores
    return (
        random_boxes(count, seed=seed, dtype=torch.float64),
        scores,
        torch.randint(0, groups, (count,), generator=generator),
    )


def drawn(data: st.DataObject, rows: Tensor, most_groups: int = 2) -> tuple[Tensor, Tensor]:
    """Scores and groups for ``rows``, ties and zeros among them."""
    scores = torch.tensor(data.draw(st.lists(SCORES, min_size=len(rows), max_size=len(rows))), dtype=torch.float64)
    groups = data.draw(st.lists(st.integers(-most_groups, most_groups), min_size=len(rows), max_size=len(rows)))
    return scores, torch.tensor(groups, dtype=torch.int64)


def targets_of(*images: torch.Tensor, **entries) -> Targets:
    """Padded targets of images with these boxes, labeled 0, 1, ...; ``entries`` are lists with an entry an image."""
    labels = [torch.arange(len(rows)) for rows in images]
    return pad_targets(
        [
            {"boxes": rows, "labels": label, **{key: values[i] for key, values in entries.items()}}
            for i, (rows, label) in enumerate(zip(images, labels, strict=True))
        ]
    )


def in_cells(boxes: torch.Tensor, size: float | torch.Tensor) -> Anchors:
    """Boxes as anchors in cells of one ``size``, or of a width and height (..., 2) each."""
    strides = size if isinstance(size, torch.Tensor) else torch.full((2,), float(size))
    return Anchors(boxes, strides, (boxes.shape[0],))


def unhooked(function: Callable) -> Callable:
    """``function`` as users get it: without the test run's shape hook, which refuses a bad shape first."""

    @functools.wraps(function, updated=())
    def plain(*arguments, **settings):
        config.update("jaxtyping_disable", True)
        try:
            return function(*arguments, **settings)
        finally:
            config.update("jaxtyping_disable", False)

    return plain


def in_order(said: str) -> str:
    """A pattern of a message that begins with the first of these words and holds the others in this order."""
    first, *others = (rf"(?<!\w){re.escape(word)}(?!\w)" for word in said.split())
    return f"^{'.*'.join((first, *others))}"


def assert_refused(said: str, function: Callable, /, *arguments: object, **settings: object) -> None:
    """``function``, without the hook, refuses these arguments with a message that holds these words in this order.

    They are its name, the argument and its value, and what is allowed: how a message puts it is free.
    """
    with pytest.raises(ValueError, match=in_order(said)):
        unhooked(function)(*arguments, **settings)
