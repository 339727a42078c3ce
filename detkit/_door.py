"""The one door of all public functions: numbers out of range are refused, and what fails inside names the argument.

``door`` costs a call nothing but the call: numbers are checked where annotations bound them (see
:mod:`detkit._ranges`), and types and devices are looked at only after something went wrong. While ``torch.compile`` or
``torch.export`` traces, nothing is looked at.
"""

import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, get_args, get_origin

import numpy as np
import torch
from torch import Tensor, nn

from detkit._inputs import unfit
from detkit._ranges import Rule, check, rule_of

P = ParamSpec("P")
R = TypeVar("R")
_KNOWN: dict[Callable[..., Any], tuple[inspect.Signature, list[tuple[int, str, Rule]]]] = {}
"""Signature and bounded numbers of every function with a door: not in its closure, which torch.compile takes apart."""
_GIVE = "give a tensor: torch.tensor(...)"
_SAID = re.compile(r"[\w.]+(\[\S*\])?: ")  # how every message of this library begins


def door(function: Callable[P, R]) -> Callable[P, R]:
    """``function`` with the ranges in its annotations checked, and with errors that say which argument is no tensor.

    An error from inside is replaced if an argument is not of the type of its annotation, is complex, or lies on another
    device than the rest: by TypeError or ValueError that names function and argument.

    >>> @door
    ... def double(boxes: Tensor): return boxes.abs() * 2
    >>> double([1.0])
    Traceback (most recent call last):
    TypeError: double: boxes is a list; give a tensor: torch.tensor(...)
    """
    signature = inspect.signature(function)
    rules = {name: rule_of(parameter.annotation) for name, parameter in signature.parameters.items()}
    _KNOWN[function] = signature, [(place, name, rule) for place, (name, rule) in enumerate(rules.items()) if rule]

    @functools.wraps(function)
    def opened(*arguments: P.args, **settings: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return function(*arguments, **settings)
        for place, name, rule in _KNOWN[function][1]:
            if place < len(arguments):
                _check_number(arguments[place], rule, name, function, arguments)
            elif name in settings:
                _check_number(settings[name], rule, name, function, arguments)
        try:
            for value in (*arguments, *settings.values()) if settings else arguments:
                if type(value) is np.ndarray or (type(value) is Tensor and value.dtype.is_complex):
                    _refuse(function, arguments, settings)  # what would pass, and come out wrong
            return function(*arguments, **settings)
        except (TypeError, ValueError, AttributeError, RuntimeError, LookupError) as error:
            better = _better(error, function, arguments, settings)
            if better is None:
                raise
            raise better from error

    return opened


def _check_number(value: Any, rule: Rule, name: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        check(value, rule, name)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{_named(function, arguments)}: {error}") from None


def _refuse(function: Callable[..., Any], arguments: tuple[Any, ...], settings: dict[str, Any]) -> None:
    """Raise what :func:`_better` says of this call; nothing for an array where it may come, or stands for numbers."""
    wrong = _better(TypeError(), function, arguments, settings)
    if wrong is not None and (isinstance(wrong, ValueError) or _GIVE in str(wrong)):
        raise wrong


def _better(
    error: Exception, function: Callable[..., Any], arguments: tuple[Any, ...], settings: dict[str, Any]
) -> TypeError | ValueError | None:
    """The error that says more than ``error``: it names the first argument that does not fit; None where all do.

    What the library says on purpose stays, unless it blames another argument than one of a wrong type. What a door
    farther inside said (its error has a cause) is replaced: the names of this function are nearer to the caller.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return None
    said = isinstance(error, TypeError | ValueError) and _SAID.match(str(error)) and error.__cause__ is None
    if said and isinstance(error, TypeError):
        return None
    signature, where = _KNOWN[function][0], _named(function, arguments)
    try:
        given = signature.bind(*arguments, **settings).arguments
    except TypeError:
        return None
    if said:
        named = {name: value for name, value in given.items() if not re.search(rf"\b{name}\b", str(error))}
        wrong = _wrong_type(named, signature, where)
        return wrong if wrong and _GIVE in str(wrong) else None
    return _wrong_type(given, signature, where) or _wrong_tensor(
        given, where, of_devices="device" in str(error).lower()
    )


def _named(function: Callable[..., Any], arguments: tuple[Any, ...]) -> str:
    """What messages call the function: a constructor and a module by its class, a method by both."""
    first = next(iter(_KNOWN[function][0].parameters), "")
    if first not in ("self", "cls") or not arguments:
        return function.__qualname__.rpartition("<locals>.")[2].removesuffix(".__init__")
    owner = arguments[0].__name__ if first == "cls" else type(arguments[0]).__name__
    return owner if function.__name__ in ("__init__", "forward", "__call__") else f"{owner}.{function.__name__}"


def _wrong_type(given: Mapping[str, Any], signature: inspect.Signature, where: str) -> TypeError | None:
    single = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    for name, value in given.items():
        parameter = signature.parameters[name]
        if parameter.kind in single and (wrong := _misfit(value, parameter.annotation, name)):
            return TypeError(f"{where}: {wrong}")
    return None


def _wrong_tensor(given: Mapping[str, Any], where: str, *, of_devices: bool) -> ValueError | None:
    """For the first complex or sparse tensor; in errors ``of_devices`` for the first on another device, too."""
    tensors = [found for name, value in given.items() for found in _tensors(value, name)]
    for name, tensor in tensors:
        if (tensor.is_complex() or tensor.layout != torch.strided) and name != "self":
            return ValueError(f"{where}: {name} has {unfit(tensor)}")
    for name, tensor in tensors if of_devices else []:
        if tensor.device != tensors[0][1].device:
            first = "the module" if tensors[0][0] == "self" else tensors[0][0]
            devices = f"{tensor.device}, {first} on {tensors[0][1].device}"
            return ValueError(f"{where}: {name} is on device {devices}; allowed is one device")
    for name, tensor in tensors:
        if tensor.is_meta and name != "self":
            return ValueError(f"{where}: {name} is on device meta, where tensors hold no values")
    return None


def _misfit(value: Any, annotation: Any, name: str) -> str | None:
    """What is wrong with a value, in words; None if it fits its annotation, or that says nothing that can be tested."""
    kinds = alternatives(annotation)
    if fitting := [kind for kind in kinds if kind in (Any, inspect.Parameter.empty) or _fits(value, kind)]:
        wrong = [_misfit_inside(value, kind, name) for kind in fitting]
        return None if None in wrong else wrong[0]
    if any(is_tensor(kind) for kind in kinds) and not any(get_origin(kind) in (list, Sequence) for kind in kinds):
        return f"{name} is a {type(value).__name__}; {_GIVE}"
    allowed = " or ".join(dict.fromkeys(_word(kind) for kind in kinds))
    return f"{name} is a {type(value).__name__}; allowed is {allowed}"


def _misfit_inside(values: Any, annotation: Any, name: str) -> str | None:
    parts = [part for part in get_args(annotation) if part is not Ellipsis]
    if not parts or get_origin(annotation) not in (list, tuple, Sequence):
        return None
    each = parts if len(parts) == len(values) else parts[:1] * len(values)
    found = (_misfit(value, part, f"{name}[{i}]") for i, (value, part) in enumerate(zip(values, each, strict=True)))
    return next((wrong for wrong in found if wrong), None)


def alternatives(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Annotated:
        return [Any]  # a number, checked before
    if get_origin(annotation) in (typing.Union, types.UnionType):
        return [kind for part in get_args(annotation) for kind in alternatives(part)]
    return [annotation]


def is_tensor(kind: Any) -> bool:
    return kind is Tensor or getattr(kind, "array_type", None) is Tensor


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a kind; True for a kind that cannot be tested."""
    origin = get_origin(kind) or kind
    if is_tensor(kind):
        return isinstance(value, Tensor)
    if kind is None or origin is types.NoneType:
        return value is None
    if typing.is_typeddict(kind):
        return isinstance(value, Mapping)
    if origin is Literal or not isinstance(origin, type) or getattr(origin, "_is_protocol", False):
        return True
    if origin in (list, tuple, Sequence):  # which of them never matters
        return isinstance(value, Sequence) and not isinstance(value, str | bytes) and not hasattr(value, "_fields")
    if origin is float:
        return isinstance(value, int | float)
    return isinstance(value, origin)


def _word(kind: Any) -> str:
    if is_tensor(kind):
        return "a tensor"
    if kind is None or kind is types.NoneType:
        return "None"
    origin = get_origin(kind) or kind
    return {list: "a list", tuple: "a tuple", Sequence: "a list"}.get(origin, getattr(origin, "__name__", str(kind)))


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors in an argument, each with its name: of a module the first of its own."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, nn.Module) and "_parameters" in vars(value):  # else its constructor has not run yet
        own: Iterable[Tensor] = (*value.parameters(), *value.buffers())
        yield from ((name, tensor) for tensor in list(own)[:1])
    elif isinstance(value, Mapping):
        yield from (found for key, part in value.items() for found in _tensors(part, f"{name}[{key!r}]"))
    elif hasattr(value, "_fields"):
        fields: Any = value._fields
        yield from (found for key in fields for found in _tensors(getattr(value, key), f"{name}.{key}"))
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        yield from (found for i, part in enumerate(value) for found in _tensors(part, f"{name}[{i}]"))
