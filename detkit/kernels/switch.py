"""Which operators run a kernel: those that handed over to one, unless kernels are disabled or Triton is missing."""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

from torch.library import CustomOpDef

_enabled = ContextVar("detkit_kernels_enabled", default=True)


@cache
def available() -> bool:
    """Whether Triton is installed: without it every operator runs its torch form.

    >>> available() in (True, False)
    True
    """
    return importlib.util.find_spec("triton") is not None


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


def takes_over(
    operator: CustomOpDef, plain: Callable[..., Any], load: Callable[[], Callable[..., Any]], *, device: str = "cuda"
) -> None:
    """From now on ``operator`` runs on ``device`` the kernel that ``load`` imports, at the first call.

    The kernel takes the arguments of the operator. Where it returns ``NotImplemented`` (a size or an option that it
    does not know), and where kernels are not :func:`running`, ``plain`` answers.
    """

    def dispatched(*arguments: Any) -> Any:
        result = load()(*arguments) if running() else NotImplemented
        return plain(*arguments) if result is NotImplemented else result

    operator.register_kernel(device)(dispatched)
