"""A file of the user's own Python: where a run takes its data or its detector from instead of from an option."""

import functools
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

PARTS = ("datasets", "detector")
"""The functions that are looked for."""


@functools.cache
def load_module(path: Path) -> ModuleType:
    """The module in a file, run once; what lies beside it can be imported there.

    Raises ValueError for a file without one of :data:`PARTS`, and for one whose name another module has.
    """
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"--module {path}; allowed is a file of Python, its name ending in .py")
    if path.stem in sys.modules:  # workers find the classes of data sets by this name
        raise ValueError(f"--module {path} has the name of a module that is imported already; give it another")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
    if not any(callable(getattr(module, name, None)) for name in PARTS):
        raise ValueError(f"--module {path} defines neither datasets() nor detector(num_classes)")
    return module


def function_of(path: Path | None, name: str) -> Callable[..., Any] | None:
    """The function of this name, if there is a module and it defines one."""
    found = getattr(load_module(path), name, None) if path else None
    return found if callable(found) else None
