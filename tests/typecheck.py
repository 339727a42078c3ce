"""The type checker that runs every annotation in the tests: beartype, with an int allowed where a float is."""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """What checks a function's arguments and result, made at its first call: most are never called in a process.

    So an annotation that beartype cannot read is found then, and not when the module is imported.
    """
    made: Callable[..., Any] | None = None

    def checked(*args: Any, **kwargs: Any) -> Any:
        nonlocal made
        made = made or _checked(function)
        return made(*args, **kwargs)

    return checked
