"""How much is tried: all of it where DETKIT_EVERY_TEST is set; otherwise what finds most for its time."""

import os
from collections.abc import Collection, Iterable
from typing import Any

import pytest

EVERY_TEST = "DETKIT_EVERY_TEST" in os.environ


def sweep(count: int) -> int:
    """``count`` random cases, or a quarter of them."""
    return count if EVERY_TEST else count // 4


def on_request(reason: str) -> pytest.MarkDecorator:
    """Left out, with the reason, unless every test is asked for."""
    return pytest.mark.skipif(not EVERY_TEST, reason=f"{reason}; DETKIT_EVERY_TEST=1 runs it")


def mostly(cases: Iterable[Any], rare: Collection[Any], reason: str) -> list[Any]:
    """The cases of a parametrized test, of which the ``rare`` ones, that others nearly contain, run on request only."""
    cases = list(cases)
    assert not (unknown := [case for case in rare if case not in cases]), unknown
    return [pytest.param(case, marks=on_request(reason)) if case in rare else case for case in cases]
