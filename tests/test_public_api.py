"""The public names and their signatures are those of api.json; and each is documented, shown at work, and typed.

A change of the interface is a decision: after it, run ``python tests/test_public_api.py --write`` and commit api.json
and docs/names.md, the list for readers.
"""

import importlib
import inspect
import json
import pkgutil
import re
import sys
import typing
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, is_typeddict

import pytest

import detkit

API = Path(__file__).with_name("api.json")
NAMES = Path(__file__).parent.parent / "docs" / "names.md"
INTRODUCTION = """# All public names

One line each, for a clone; [parts](parts.md) has the whole of it. Written by `python tests/test_public_api.py --write`.
"""
PROGRAMS = {"detkit.demo", "detkit.evaluate", "detkit.inspect", "detkit.train"}  # run, not imported
REGENERATE = "if that is meant, run: python tests/test_public_api.py --write"


def units() -> list[str]:
    """The public paths: detkit, and each of its files and folders on the first level."""
    names = sorted(found.name for found in pkgutil.iter_modules(detkit.__path__, "detkit."))
    return ["detkit", *(name for name in names if name not in PROGRAMS and "._" not in name)]


def public_names(module: ModuleType) -> list[str]:
    """``__all__``; without it, what the module defines itself under a name without underscore."""
    if hasattr(module, "__all__"):
        return sorted(module.__all__)
    return sorted(
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    )


def written_default(value: Any) -> str:
    """A default as text that is the same in every process."""
    if isinstance(value, partial):
        return f"{written_default(value.func)}({value.keywords})"
    return getattr(value, "__qualname__", None) or repr(value)


def signature(thing: Any) -> str:
    """Names, kinds and defaults of the parameters: what a caller depends on."""
    if typing.get_origin(thing) is not None:  # an alias, whose signature depends on Python's version
        return "type"
    if not callable(thing):
        return "constant"
    if inspect.isclass(thing) and (is_typeddict(thing) or getattr(thing, "_is_protocol", False)):
        return "(" + ", ".join(sorted(getattr(thing, "__annotations__", {}))) + ")"
    try:
        found = inspect.signature(thing)
    except (TypeError, ValueError):
        return "type"
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty, default=inspect.Parameter.empty)
        for parameter in found.parameters.values()
    ]
    bare = str(found.replace(parameters=parameters, return_annotation=inspect.Signature.empty))
    defaults = [
        f"{name}={written_default(parameter.default)}"
        for name, parameter in found.parameters.items()
        if parameter.default is not inspect.Parameter.empty
    ]
    return bare + (f" with {', '.join(defaults)}" if defaults else "")


def current_api() -> dict[str, dict[str, str]]:
    modules = {unit: importlib.import_module(unit) for unit in units()}
    return {
        unit: {name: signature(getattr(module, name)) for name in public_names(module)}
        for unit, module in modules.items()
    }


def difference(recorded: dict[str, dict[str, str]], found: dict[str, dict[str, str]]) -> list[str]:
    """Every name that is new, gone or called otherwise, as sentences."""
    one = {f"{unit}.{name}": text for unit, names in recorded.items() for name, text in names.items()}
    other = {f"{unit}.{name}": text for unit, names in found.items() for name, text in names.items()}
    return (
        [f"gone: {name}{one[name]}" for name in sorted(one.keys() - other.keys())]
        + [f"new: {name}{other[name]}" for name in sorted(other.keys() - one.keys())]
        + [
            f"changed: {name}{one[name]} is now {other[name]}"
            for name in sorted(one.keys() & other.keys())
            if one[name] != other[name]
        ]
    )


def documented() -> Iterator[tuple[str, Any]]:
    """Every public function and class once, by its full name."""
    seen = set()
    for unit in units():
        module = importlib.import_module(unit)
        for name in public_names(module):
            thing = getattr(module, name)
            if (inspect.isclass(thing) or inspect.isfunction(thing)) and id(thing) not in seen:
                seen.add(id(thing))
                yield f"{unit}.{name}", thing


THINGS = dict(documented())


def listed() -> str:
    """docs/names.md: every unit a table of its names, each with its file and the first line of its docstring."""
    lines = [INTRODUCTION]
    root = NAMES.parent.parent
    for unit in units():
        rows = [(name.rpartition(".")[2], thing) for name, thing in THINGS.items() if name.rpartition(".")[0] == unit]
        lines += [f"## {unit}\n", "| name | | file |", "|---|---|---|"] if rows else []
        for name, thing in rows:
            file = Path(inspect.getsourcefile(inspect.unwrap(thing)) or "").relative_to(root).as_posix()
            said = (inspect.getdoc(thing) or "").split("\n\n")[0].replace("\n", " ").replace("|", "\\|")
            said = re.sub(r":[a-z]+:`~?([^`]+)`", r"`\1`", said)
            lines.append(f"| `{name}` | {said} | `{file}` |")
        lines += [""] if rows else []
    return "\n".join(lines)


def is_record(thing: Any) -> bool:
    """A tuple, dict or protocol of named parts: it has nothing to run."""
    return inspect.isclass(thing) and (
        is_typeddict(thing) or hasattr(thing, "_fields") or getattr(thing, "_is_protocol", False)
    )


def functions_of(thing: Any) -> dict[str, Callable[..., Any]]:
    """The function itself, or the constructor and the public methods that a class defines."""
    if inspect.isfunction(thing):
        return {thing.__name__: thing}
    members = {name: getattr(value, "fget", value) for name, value in vars(thing).items()}
    members = {name: getattr(value, "__func__", value) for name, value in members.items()}
    return {
        name: value
        for name, value in members.items()
        if inspect.isfunction(value) and (name == "__init__" or not name.startswith("_"))
    }


def unannotated(function: Callable[..., Any]) -> list[str]:
    """Parameters without a type, and "return" where that is missing."""
    found = inspect.signature(inspect.unwrap(function))
    missing = [
        name
        for name, parameter in found.parameters.items()
        if parameter.annotation is inspect.Parameter.empty and name not in ("self", "cls")
    ]
    return missing + (["return"] if found.return_annotation is inspect.Signature.empty else [])


def test_the_public_interface_is_the_recorded_one():
    changes = difference(json.loads(API.read_text(encoding="utf-8")), current_api())
    assert not changes, "\n".join(["the public interface differs from tests/api.json:", *changes, REGENERATE])


def test_the_list_of_names_is_up_to_date():
    assert NAMES.read_text(encoding="utf-8") == listed(), REGENERATE


def test_every_kind_of_change_is_noticed():
    recorded = {"u": {"kept": "(a)", "gone": "()", "changed": "(a, b)"}}
    found = {"u": {"kept": "(a)", "changed": "(a, *, b) with b=1", "new": "()"}}
    assert difference(recorded, found) == [
        "gone: u.gone()",
        "new: u.new()",
        "changed: u.changed(a, b) is now (a, *, b) with b=1",
    ]
    assert difference(recorded, recorded) == []
    assert signature(lambda a, b=2, *, c: 0) == "(a, b, *, c) with b=2"


def test_every_name_of_all_exists_once():
    for unit in units():
        module = importlib.import_module(unit)
        names = list(getattr(module, "__all__", []))
        assert len(names) == len(set(names)), unit
        assert [name for name in names if not hasattr(module, name)] == [], unit


@pytest.mark.parametrize("name", THINGS)
def test_a_public_name_is_documented_and_shown_at_work(name):
    thing = THINGS[name]
    text = vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
    assert text, f"{name} has no docstring"
    if not is_record(thing):
        examples = [text, *(function.__doc__ or "" for function in functions_of(thing).values())]
        assert any(">>>" in part for part in examples), f"{name} has no example (>>>) that runs"


@pytest.mark.parametrize("name", THINGS)
def test_a_public_name_is_typed(name):
    for function_name, function in functions_of(THINGS[name]).items():
        if function.__module__.startswith("detkit"):
            assert unannotated(function) == [], f"{name}: {function_name}() lacks types"


@pytest.mark.parametrize("name", [name for name, thing in THINGS.items() if inspect.isclass(thing)])
def test_what_a_public_constructor_takes_is_public(name):
    hidden = [
        f"{part.__module__}.{part.__name__}"
        for hint in typing.get_type_hints(THINGS[name].__init__).values()
        for part in [hint, *typing.get_args(hint)]
        if inspect.isclass(part) and part.__module__.startswith("detkit.") and part not in THINGS.values()
    ]
    assert hidden == [], f"{name}() takes what no unit's __init__ exports"


def test_missing_types_are_noticed():
    def half(first: int, second) -> int:
        return first

    def no_return(first: int):
        return first

    assert unannotated(half) == ["second"]
    assert unannotated(no_return) == ["return"]


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        raise SystemExit("usage: python tests/test_public_api.py --write")
    API.write_text(json.dumps(current_api(), indent=2) + "\n", encoding="utf-8")
    NAMES.write_text(listed(), encoding="utf-8")
    print(f"wrote {API} and {NAMES}")
