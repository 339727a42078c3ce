"""How much a sweep tries: all of it where DETKIT_EVERY_TEST is set, a quarter of it otherwise."""

import os

EVERY_TEST = "DETKIT_EVERY_TEST" in os.environ


def sweep(count: int) -> int:
    """``count`` random cases, or a quarter of them."""
    return count if EVERY_TEST else count // 4
