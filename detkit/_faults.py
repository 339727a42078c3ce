"""The faults of a file, told at once: how many there are of each kind, and where the first is.

A reader looks at everything before it complains. What is wrong with one object falls under the policy ``degenerate``:
"drop" leaves such objects out with one warning for all kinds, "raise" makes them errors as well.
"""

import warnings
from collections.abc import Callable, Sequence
from reprlib import Repr
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Degenerate = Literal["drop", "raise"]
"""What happens to an object that is none: it is dropped, with one warning for all of them, or an error."""

Describe = Callable[[int], str]
"""What is wrong with the entry at a position, in words that begin with its name and hold its value."""

_MOST_NAMES = 10
_short = Repr()
_short.maxstring = _short.maxother = 120


def shown(value: object) -> str:
    """``repr`` of a value from a file, truncated to fit an error message.

    >>> shown("x" * 5000).count("x") < 120
    True
    """
    return _short.repr(value)


def enumerated(names: Sequence[str]) -> str:
    """Names from a file, the first ten of them, for an error message.

    >>> enumerated(["a.jpg", "b.jpg"])
    "'a.jpg', 'b.jpg'"
    """
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(map(shown, names[:_MOST_NAMES])) + more


def check_degenerate(policy: Any, *, owner: str) -> None:
    """Raise ValueError unless the policy for objects that are none is "drop" or "raise".

    >>> check_degenerate("drop", owner="CocoDataset")
    """
    if policy not in ("drop", "raise"):
        raise ValueError(f"{owner}: degenerate={policy!r}; allowed are 'drop' and 'raise'")


class _Kind(NamedTuple):
    """One kind of fault: what its first entry has, and the class of the error if it is the only kind."""

    text: str
    error: type[Exception] = ValueError


class Faults:
    """Every kind of fault of the file ``source``, kept until :meth:`settle` raises or warns for all together.

    >>> faults = Faults("a.json", policy="drop")
    >>> faults.refuse([False, True, True], lambda position: f"image {position}: id is missing")
    >>> faults.refuse([True], lambda position: f"category {position}: name=7; allowed is text")
    >>> faults.settle()
    Traceback (most recent call last):
    ValueError: a.json: 2 kinds of faults:
      image 1: id is missing (2 such)
      category 0: name=7; allowed is text
    """

    def __init__(self, source: str, *, policy: Degenerate = "raise") -> None:
        self.source, self._policy = source, policy
        self._refused: list[_Kind] = []
        self._dropped: list[_Kind] = []
        self._parts: list[_Kind] = []

    def refuse(self, bad: ArrayLike, describe: Describe, *, error: type[Exception] = ValueError) -> None:
        """A kind that is always an error; ``bad`` (N,) says which entries have it."""
        self._refused += _kinds(bad, describe, error)

    def drop(self, bad: ArrayLike, describe: Describe) -> None:
        """A kind that makes an object none: the policy decides."""
        self._dropped += _kinds(bad, describe)

    def leave_out(self, bad: ArrayLike, describe: Describe) -> None:
        """A kind that spoils a part of an object, which stays without it: the policy decides."""
        self._parts += _kinds(bad, describe)

    def settle(self, kept: NDArray[np.bool_] | None = None, *, things: str = "boxes") -> None:
        """Raise or warn for everything collected; ``kept`` says which of all objects, called ``things``, stay."""
        optional = self._dropped + self._parts
        if self._refused or (optional and self._policy == "raise"):
            way_out = "" if self._refused else "; repair the file, or drop such objects with degenerate='drop'"
            kinds = self._refused + optional
            errors = {kind.error for kind in kinds}
            raise (errors.pop() if len(errors) == 1 else ValueError)(f"{self.source}: {_listed(kinds)}{way_out}")
        if optional:
            left_out = [_Kind(f"{kind.text}; left out of a mask that has others") for kind in self._parts]
            kinds, objects = self._dropped + left_out, np.ones(0, np.bool_) if kept is None else kept
            dropped = int((~objects).sum())
            counts = f"{dropped} of {len(objects)} {things} were dropped for this" if dropped else ""
            between = ("\n  " if len(kinds) > 1 else "; ") if counts else ""
            warnings.warn(f"{self.source}: {_listed(kinds)}{between}{counts}", stacklevel=4)


def judge_boxes(
    boxes: NDArray[np.floating[Any]],
    sizes: NDArray[np.integer[Any]],
    name: Describe,
    faults: Faults,
    *,
    among: NDArray[np.bool_] | None = None,
) -> NDArray[np.bool_]:
    """Which boxes (A, 4) xyxy are objects: finite, with width and height, and not wholly outside their picture.

    The others go to ``faults`` as kinds that the policy decides. ``sizes`` (A, 2) are the (height, width) of each box's
    picture, 0 where that is not known; ``name`` says what a box is called; only those ``among`` are looked at. Warns
    where the good ones seem to be fractions of their pictures, or corners read as width and height.

    >>> faults = Faults("a.json", policy="drop")
    >>> judge_boxes(np.array([[0.0, 0, 1, 1], [9, 0, 12, 4]]), np.array([[6, 8], [6, 8]]), "box {}".format, faults)
    array([ True, False])
    """
    looked = np.ones(len(boxes), bool) if among is None else among
    finite = np.isfinite(boxes).all(1)
    low, high = boxes[:, :2], boxes[:, 2:]
    sized, inverted = (high > low).all(1), (high < low).any(1)
    beyond = (high <= 0).any(1) | ((low >= sizes[:, ::-1]) & (sizes[:, ::-1] > 0)).any(1)
    outside = beyond & (sizes > 0).all(1)

    def kind(bad: ArrayLike, words: Callable[[int], str]) -> None:
        faults.drop(
            looked & np.asarray(bad), lambda row: f"{name(row)}: the box {boxes[row].tolist()} (xyxy) {words(row)}"
        )

    kind(~finite, lambda _: "is not finite")
    kind(finite & inverted, lambda _: "is inverted; allowed is x1 <= x2 and y1 <= y2")
    kind(finite & ~inverted & ~sized, lambda _: "has no width or no height")
    kind(finite & sized & outside, lambda row: f"lies outside its picture of {sizes[row, 0]} x {sizes[row, 1]}")
    good = looked & finite & sized & ~outside
    _warn_of_other_units(boxes[good], sizes[good], faults.source)
    return good


def _warn_of_other_units(boxes: NDArray[np.floating[Any]], sizes: NDArray[np.integer[Any]], source: str) -> None:
    """Boxes may be well formed and yet mean something else: fractions, or corners where width and height belong."""
    beyond = int((boxes[:, 2:] > sizes[:, ::-1] + 1).any(1).sum(where=(sizes > 0).all(1)))
    if len(boxes) and boxes.max() <= 1:
        warnings.warn(
            f"{source}: all {len(boxes)} boxes lie in the first pixel, as fractions of the pictures would; allowed are "
            "pixels: multiply by width and height",
            stacklevel=5,
        )
    elif 2 * beyond > len(boxes):
        warnings.warn(
            f"{source}: {beyond} of {len(boxes)} boxes reach beyond their pictures: are they corners, x1, y1, x2, y2, "
            "where x, y, width, height belong, or of pictures of another size?",
            stacklevel=5,
        )


def _kinds(bad: ArrayLike, describe: Describe, error: type[Exception] = ValueError) -> list[_Kind]:
    places = np.flatnonzero(np.asarray(bad, bool))
    such = f" ({len(places)} such)" if len(places) > 1 else ""
    return [_Kind(describe(int(first)) + such, error) for first in places[:1]]


def _listed(kinds: list[_Kind]) -> str:
    if len(kinds) == 1:
        return kinds[0].text
    return f"{len(kinds)} kinds of faults:\n  " + "\n  ".join(kind.text for kind in kinds)
