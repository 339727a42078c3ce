"""What a recipe was given, kept with the detector that it built, so that a file of weights can say how to build it."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

from detkit._door import door

Arguments = ParamSpec("Arguments")
Built = TypeVar("Built")
_PLAIN = (type(None), bool, int, float, str)


class Recipe(NamedTuple):
    """The name of a recipe, the arguments that it was called with, and which of them no file can hold.

    >>> from detkit.detectors import fpn_ssd
    >>> fpn_ssd(3, size=(64, 96)).recipe
    Recipe(name='fpn_ssd', arguments={'num_classes': 3, 'size': (64, 96)}, unwritable=())
    """

    name: str
    arguments: dict[str, Any]
    unwritable: tuple[str, ...] = ()


def recipe(function: Callable[Arguments, Built]) -> Callable[Arguments, Built]:
    """A :func:`door` for functions that build a :class:`Detector`, which keeps ``detector.recipe``."""
    opened, signature = door(function), inspect.signature(function)

    @functools.wraps(opened)
    def built(*arguments: Arguments.args, **settings: Arguments.kwargs) -> Built:
        detector: Any = opened(*arguments, **settings)
        given = signature.bind(*arguments, **settings).arguments
        plain = {name: value for name, value in given.items() if _is_plain(value)}
        detector.recipe = Recipe(function.__name__, plain, tuple(given.keys() - plain.keys()))
        return detector

    _RECIPES[function.__name__] = built
    return built


_RECIPES: dict[str, Callable[..., Any]] = {}


def recipe_named(name: str) -> Callable[..., Any] | None:
    """The recipe of this name, one of ``detkit.detectors`` and of no other place; None if there is none.

    >>> recipe_named("os.system") is None
    True
    """
    return _RECIPES.get(name)


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, (list, tuple)) and all(map(_is_plain, value)))
