"""Which operators run a kernel: those that handed over to one, unless kernels are disabled or Triton is missing."""

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef

DEVICES = {"cuda"}
"""Types of the devices that kernels run on."""
_enabled = ContextVar("detkit_kernels_enabled", default=True)


@cache
def available() -> bool:
    """Whether Triton is installed, and a C compiler, without which it launches nothing; else torch forms run.

    >>> available() in (True, False)
    True
    """
    compilers = (os.environ.get("CC"), "clang", "gcc")
    return importlib.util.find_spec("triton") is not None and any(shutil.which(name) for name in compilers if name)


@contextmanager
def disabled() -> Iterator[None]:
    """Within the context, in this thread, operators run their torch form on every device.

    >>> with disabled():
    ...     running()
    False
    """
    token = _enabled.set(False)
    try:
        yield
    finally:
        _enabled.reset(token)


def running() -> bool:
    """Whether operators run kernels here."""
    return _enabled.get() and available()


def serves(values: Tensor) -> bool:
    """Whether a function on ``values`` hands over to a kernel: they lie on a GPU, and kernels are :func:`running`.

    For functions that call a kernel, or an operator, only there; where such a call is compiled, the operator asks.

    >>> serves(Tensor())
    False
    """
    return values.device.type in DEVICES and (torch.compiler.is_compiling() or running())


def launched(kernel: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    """What ``kernel`` answers where its tensors lie: Triton launches on the current device."""
    first = next(argument for argument in arguments if isinstance(argument, Tensor))
    with torch.cuda.device_of(first):
        return kernel(*arguments, **settings)


def takes_over(
    operator: CustomOpDef, plain: Callable[..., Any], load: Callable[[], Callable[..., Any]], *, device: str = "cuda"
) -> None:
    """From now on ``operator`` runs on ``device`` the kernel that ``load`` imports, at the first call.

    The kernel takes the arguments of the operator. Where it returns ``NotImplemented`` (a size or an option that it
    does not know), and where kernels are not :func:`running`, ``plain`` answers.
    """

    def dispatched(*arguments: Any) -> Any:
        result = launched(load(), *arguments) if running() else NotImplemented
        return plain(*arguments) if result is NotImplemented else result

    operator.register_kernel(device)(dispatched)
