"""The type checker that runs every annotation in the tests: beartype, with an int allowed where a float is."""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """What checks the arguments of a function, made at its first call: most are called in no process, or in one."""
    made: Callable[..., Any] | None = None

    def checked(*args: Any, **kwargs: Any) -> Any:
        nonlocal made
        made = made or _checked(function)
        return made(*args, **kwargs)

    return checked
