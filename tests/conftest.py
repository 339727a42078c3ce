"""Fixtures that every test may use."""

from __future__ import annotations

import atexit
import collections
import functools
import gc
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import hypothesis
import jaxtyping
import pytest
from thorough import EVERY_TEST

if TYPE_CHECKING:  # the process that only hands tests out needs no torch
    import torch

# Two workers on two cores: threads of their own would only wait for one another.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

# Where bytecode may not lie beside the sources, each process would compile all of torch's anew.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    sys.dont_write_bytecode = False
    sys.pycache_prefix = str(Path(__file__).parent.parent / ".pytest_cache" / "bytecode")
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix

# What torch.compile traces must not carry the shape checks, Triton reads its interpreter when it is imported, and a
# device is registered before the first gradient: tests/test_compiled.py, tests/test_interpreted.py and
# tests/test_on_device.py run these folders in processes of their own.
collect_ignore = ["traced_before.py"]
collect_ignore += [] if os.environ.get("DETKIT_COMPILED_TESTS") else ["compiled"]
collect_ignore += [] if os.environ.get("TRITON_INTERPRET") else ["interpreted"]
collect_ignore += [] if os.environ.get("DETKIT_DEVICE_TESTS") else ["on_device"]

# A trace prints the lines that each operation came from; to find its columns as well takes a tenth of its time.
os.environ.setdefault("PYTHONNODEBUGRANGES", "1")  # in the processes that tests start

CHECKED_EXAMPLES = 10 if EVERY_TEST else 3  # of each property
QUICK_CASES = 5 if EVERY_TEST else 2  # of each parametrized test


def pytest_configure() -> None:
    """Properties are tried on ten examples, on thirty where every test is asked for."""
    # The machine may be slow, and CI must say the same thing twice.
    # mutmut runs a test several times in one process, each time from another instance of its class.
    hypothesis.settings.register_profile(
        "detkit",
        max_examples=30 if EVERY_TEST else 10,
        deadline=None,
        derandomize="CI" in os.environ,
        suppress_health_check=[hypothesis.HealthCheck.differing_executors],
    )
    hypothesis.settings.load_profile("detkit")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    """What is imported and collected stays to the end: no garbage collection need walk through it again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # extension modules count at the end what they see freed
        gc.enable()


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests come first in either half, as each of two workers is given one and steals from the other.

    Of a parametrized test the first cases and the last are quick, and the others are counted among the slow.
    """
    cases: dict[str, list[pytest.Item]] = collections.defaultdict(list)
    for item in items:
        if not item.get_closest_marker("slow"):
            cases[item.nodeid.partition("[")[0]].append(item)
    for own in cases.values():
        for item in own[QUICK_CASES - 1 : -1]:
            item.add_marker(pytest.mark.slow(0))

    def seconds(item: pytest.Item) -> float:
        slow = item.get_closest_marker("slow")
        return (*slow.args, 1)[0] if slow else 0

    items.sort(key=seconds, reverse=True)
    items[:] = items[::2] + items[1::2]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Shape checks can take longer than what they watch: quick tests have them, and the first of their examples."""
    unchecked = item.get_closest_marker("slow") is not None
    disable = functools.partial(jaxtyping.config.update, "jaxtyping_disable")
    handle = getattr(getattr(item, "obj", None), "hypothesis", SimpleNamespace(inner_test=lambda: None))
    test, numbers = handle.inner_test, itertools.count()

    @functools.wraps(test)
    def example(*arguments: object, **drawn: object) -> object:
        disable(unchecked or next(numbers) >= CHECKED_EXAMPLES)
        return test(*arguments, **drawn)

    disable(unchecked)
    handle.inner_test = example
    try:
        return (yield)
    finally:
        handle.inner_test = test
        disable(False)


@pytest.fixture(scope="session")
def detkit_data() -> Path:
    """The folder of real data sets; a test that asks for it is skipped, with the reason, where there is none."""
    folder = os.environ.get("DETKIT_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("DETKIT_DATA names no folder of data sets: this test on real data did NOT run")
    return Path(folder)


@pytest.fixture
def generator() -> torch.Generator:
    """A freshly seeded generator: the same numbers in every run."""
    import torch

    return torch.Generator().manual_seed(0)


@pytest.fixture
def no_memory() -> Iterator[None]:
    """Modules are built on the meta device: for tests of large ones that only count their parts."""
    import torch

    with torch.device("meta"):
        yield
