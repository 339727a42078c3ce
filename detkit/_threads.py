"""Operators of many small steps run on one thread: to share each step out costs more than the step.

Torch splits an operation over its threads and then waits for the last of them. In hundreds of small steps those waits
are most of the time, and beside processes that keep the other cores busy, as data-loading workers do, nearly all of it:
suppression of 30,000 boxes took 25 times as long on two threads as on one.
"""

import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class _Outside(threading.local):
    threads: int | None = None


_outside = _Outside()


def on_one_thread(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """``function`` with torch's number of threads set to 1, and set back after it. Not for what is traced.

    To torch, the number last set is also that of every thread that uses it for the first time: one that does so just
    now keeps 1. It must not hand that on, so where the number is 1 nothing is set.

    >>> on_one_thread(torch.get_num_threads)()
    1
    """

    @functools.wraps(function)
    def alone(*arguments: Arguments.args, **settings: Arguments.kwargs) -> Result:
        threads = torch.get_num_threads()
        if threads == 1:  # called by another one, perhaps
            return function(*arguments, **settings)
        _outside.threads = threads
        torch.set_num_threads(1)
        try:
            return function(*arguments, **settings)
        finally:
            torch.set_num_threads(threads)
            _outside.threads = None

    return alone


def threads_for_pieces() -> int:
    """The number of threads that torch had outside: for whole pieces of work, each on a thread of its own.

    >>> threads_for_pieces() == torch.get_num_threads()
    True
    """
    return _outside.threads or torch.get_num_threads()
