"""Fields of many JSON entries as arrays: one reading of numbers, integers and flags.

What can only mean one thing is taken: numbers as text ("309"), whole floats as integers (64.0), false and "0" and null
as a flag that is not set. Everything else comes back as what cannot be read: NaN, or a mark beside it.
"""

import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_COORDINATE = float(1 << 31)
"""Larger coordinates, in either direction, are refused."""
_LARGEST = 1e300
_REAL = (int, float, np.integer, np.floating)
_TEXT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
_FLAGS: dict[str, int] = dict.fromkeys(("", "0", "0.0", "false", "no", "none", "null", "unspecified"), 0)
_FLAGS |= dict.fromkeys(("1", "1.0", "true", "yes"), 1)


def read_numbers(values: Sequence[Any], limit: float = _LARGEST) -> NDArray[np.float64]:
    """One number of each entry, float64 (N,): NaN where there is none, or one beyond ``limit``.

    >>> read_numbers([3, "4.5", None, True, float("inf")])
    array([3. , 4.5, nan, nan, nan])
    """
    if set(map(type, values)) <= {int, float}:
        try:
            column = np.array(values, np.float64)
            return np.where(np.abs(column) <= limit, column, np.nan)
        except OverflowError:
            pass
    return np.array([_number(value, limit) for value in values], np.float64)


def read_lists(values: Sequence[Any], count: int, limit: float = MAX_COORDINATE) -> NDArray[np.float64]:
    """``count`` numbers of each entry, float64 (N, count): NaN where there are none, or one is beyond ``limit``.

    >>> read_lists([[1, 2], [1], "12", [1, None], ["3", 4.0]], 2)
    array([[ 1.,  2.],
           [nan, nan],
           [nan, nan],
           [ 1., nan],
           [ 3.,  4.]])
    """
    if set(map(type, values)) != {list} or set(map(len, values)) != {count}:
        values = [_row(value, count) for value in values]
    return read_numbers(list(chain.from_iterable(values)), limit).reshape(len(values), count)


def read_integers(values: Sequence[Any], *, text: bool = False) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """An integer of 64 bits of each entry, and where there is none; text is read on request.

    >>> read_integers([3, 4.0, "5", None, 2**63], text=True)
    (array([3, 4, 5, 0, 0]), array([False, False, False,  True,  True]))
    """
    if set(map(type, values)) == {int}:
        try:
            return np.array(values, np.int64), np.zeros(len(values), bool)
        except OverflowError:
            pass
    read = [_integer(value, text) for value in values]
    missing = np.array([value is None for value in read], bool)
    return np.array([value or 0 for value in read], np.int64), missing


def read_flags(values: Sequence[Any]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """A flag of each entry, and where there is none; null and empty text are flags that are not set.

    >>> read_flags([0, 1, True, "0", "False", None, 2, "maybe"])
    (array([False,  True,  True, False, False, False, False, False]),
     array([False, False, False, False, False, False,  True,  True]))
    """
    read = [_flag(value) for value in values]
    return np.array([value == 1 for value in read], bool), np.array([value is None for value in read], bool)


def _number(value: Any, limit: float) -> float:
    if isinstance(value, str):
        value = float(value) if len(value) < 400 and _TEXT.fullmatch(value.strip()) else None
    if not isinstance(value, _REAL) or isinstance(value, bool) or not abs(value) <= limit:
        return np.nan
    return float(value)


def _row(value: Any, count: int) -> list[Any]:
    value = value.tolist() if hasattr(value, "tolist") else value
    fits = isinstance(value, Sequence) and not isinstance(value, str | bytes) and len(value) == count
    return list(value) if fits else [None] * count


def _integer(value: Any, text: bool) -> int | None:
    if type(value) is int:
        return value if -(1 << 63) <= value < 1 << 63 else None
    if isinstance(value, str):
        number = value.strip()
        return int(number) if text and re.fullmatch(r"[-+]?\d{1,18}", number, re.ASCII) else None
    number = _number(value, float(1 << 53))
    return int(number) if number.is_integer() else None


def _flag(value: Any) -> int | None:
    if type(value) is int:  # what nearly all are
        return value if value in (0, 1) else None
    if value is None:
        return 0
    if isinstance(value, str):
        return _FLAGS.get(value.strip().lower())
    return int(value) if isinstance(value, (*_REAL, np.bool_)) and value in (0, 1) else None
