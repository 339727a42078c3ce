"""Processes that tests start: forked from one that has torch and detkit loaded, so that none loads them anew.

The process that they are forked from imports without the hook of the shape checks, as a user's does.
"""

import gc
import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
LOADED = ("detkit.demo", "detkit.viz", "detkit.weights", "matplotlib.figure", "pytest", "traced_before")
LONGEST = 600  # seconds


class Started(NamedTuple):
    process: Any
    printed: Path


def start(
    function: Callable[..., None], *arguments: Any, printed: Path, cwd: Path = ROOT, **environment: str
) -> Started:
    """Start ``function(*arguments)``, a function of a module, in a process that prints into the file ``printed``."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(LOADED))
    process = context.Process(target=_call, args=(function, arguments, printed, cwd, environment))
    process.start()
    return Started(process, printed)


def end(*started: Started) -> list[str]:
    """What each process printed; all of them must end well."""
    try:
        for process, _ in started:
            process.join(LONGEST)
        texts = [printed.read_text() for _, printed in started]
        for (process, _), text in zip(started, texts, strict=True):
            assert process.exitcode == 0, text[-20_000:]
    finally:
        for process, _ in started:
            process.kill()
            process.join()
    return texts


def script(path: Path, *arguments: str) -> None:
    """Be ``python path arguments``: what to start where a user starts a script."""
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.parent))
    runpy.run_path(str(path), run_name="__main__")


def _call(
    function: Callable[..., None], arguments: tuple, printed: Path, cwd: Path, environment: dict[str, str]
) -> None:
    import torch

    with printed.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(cwd)
    os.environ.update(environment)
    torch.set_num_threads(1)
    gc.freeze()  # what was loaded before stays: no collection need walk through it
    gc.set_threshold(20_000, 20, 20)  # a trace makes many objects, few of them in circles
    function(*arguments)
