"""When values are checked, and the words that errors use.

Shapes, dtypes and options are always checked where they are used: that needs no device sync. *Values* (NaN, inverted
boxes, label ranges) cost a sync on an accelerator, so device ops check them only with ``DETKIT_CHECKS=full``.
"""

import math
import os

import torch
from torch import Tensor


def full_checks() -> bool:
    """True when ``DETKIT_CHECKS=full`` is set: device ops then check values too, at the price of a host sync.

    Always False while ``torch.compile`` or ``torch.export`` traces, where a value cannot be looked at.

    >>> full_checks()
    False
    """
    return not torch.compiler.is_compiling() and os.environ.get("DETKIT_CHECKS", "") == "full"


def check_fraction(value: float, *, name: str, function: str) -> None:
    """Raise ValueError unless ``value`` is a number in [0, 1]; NaN is refused.

    >>> check_fraction(0.5, name="iou_threshold", function="nms")
    """
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{function}: {name}={value} must lie in [0, 1]")


def check_not_negative(function: str, **settings: float) -> None:
    """Raise ValueError for the first of ``settings`` that is below 0 or not finite.

    >>> check_not_negative("DeltaL1", beta=0.0)
    """
    for name, value in settings.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{function}: {name}={value} must be at least 0 and finite")


def first_bad(bad: Tensor) -> tuple[tuple[int, ...], int]:
    """The first index where the mask ``bad`` is True, and how many are: what an error message names.

    >>> first_bad(torch.tensor([False, True, True]))
    ((1,), 2)
    """
    indices = bad.nonzero()
    return tuple(indices[0].tolist()), len(indices)
