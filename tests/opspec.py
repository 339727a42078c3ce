"""What a record of an operation says, and how records are written: see tests/records.py."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import references as slow
import torch
from strategies import random_boxes, unhooked
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
TYPES = (*FLOATS, torch.int32, torch.int64, torch.uint8)


class OpSpec(NamedTuple):
    """What the generic tests need to know of an operation, or of one of its forms."""

    name: str  # of the operation as users call it, and words for the form behind a space
    op: Callable[..., Any]
    make: Callable[[int, torch.dtype], tuple[Tensor, ...]]  # arguments with so many rows in the first dimension
    reference: Callable[..., Any]  # of plain lists of float64, and of ints
    errors: dict[str, Callable[[], Any]]  # what a message says in this order, and a call that is refused with it
    dtypes: tuple[torch.dtype, ...] = TYPES
    gradient: Literal["checked", "finite", "none"] = "none"  # "finite": finite differences would not agree, on purpose
    constants: tuple[int, ...] = ()  # places of floating arguments that take no gradient
    sums: bool = False  # adds up within a row, in an order, and so with a last bit, that follows the memory layout


def rows(count: int, dtype: torch.dtype, *, seed: int = 1) -> Tensor:
    """Boxes, with a point, a line and a duplicate among them from six rows on."""
    made = random_boxes(count, seed=seed, dtype=torch.float64)
    if count >= 6:
        made[2, 2:] = made[2, :2]
        made[3, 2] = made[3, 0]
        made[5] = made[0]
    return made.to(dtype)


def numbers(count: int, dtype: torch.dtype, *, seed: int = 3) -> Tensor:
    """Scores in [0, 1], float32 beside integer boxes, without a tie."""
    generator = torch.Generator().manual_seed(seed)
    scores = (torch.randperm(max(count, 97), generator=generator)[:count] + 1) / (max(count, 97) + 1)
    return scores.to(dtype if dtype.is_floating_point else torch.float32)


def pairs(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return rows(count, dtype), rows(count, dtype, seed=2)


def each(function: Callable[..., Any]) -> Callable[..., Any]:
    """A reference of one row as one of columns."""
    return lambda *columns: [function(*row) for row in zip(*columns, strict=True)]


Changes = dict[str, dict[str, Any]]


def refusals(op: Callable[..., Any], good: dict[str, Any], changes: Changes) -> dict[str, Callable[[], Any]]:
    """For what each message says, behind the name of ``op``: the call with good arguments of which some are changed."""
    name, plain = op.__qualname__.removesuffix(".__init__"), unhooked(op)
    own = [good["self"]] if "self" in good else []
    good = {key: value for key, value in good.items() if key != "self"}
    return {f"{name}: {message}": partial(plain, *own, **{**good, **change}) for message, change in changes.items()}


def misshapen(*names: str, allowed: str = "(..., 4)") -> Changes:
    """That rows of five numbers are refused in each of these arguments."""
    return {f"{name} (3, 5) {allowed}": {name: torch.zeros(3, 5)} for name in names}


BOXES, SCORES, LABELS = torch.zeros(3, 4), torch.zeros(3), torch.zeros(3).long()
TWO_SETS = {"boxes1": BOXES, "boxes2": BOXES}
VARIANT: Changes = {"variant='root' 'squared' 'unsquared'": {"variant": "root"}}
UNSQUARED = partial(slow.distance, power=1)
