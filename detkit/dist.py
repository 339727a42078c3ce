"""The few collective operations that parts need, on the default process group; a no-op in a single process.

Nothing here initializes a group or wraps a model: the training script does that.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as torch_dist
from torch import Tensor

from detkit._door import door
from detkit._inputs import as_tensor

_answer: Callable[[Tensor], Tensor] | None = None
"""What :func:`means_answered` made of the means, if it is in force."""


def world_size() -> int:
    """Number of processes in the default group, 1 without one.

    >>> world_size()
    1
    """
    return torch_dist.get_world_size() if _active() else 1


def rank() -> int:
    """Index of this process in the default group, 0 without one.

    >>> rank()
    0
    """
    return torch_dist.get_rank() if _active() else 0


@door
def all_reduce_mean(value: Tensor) -> Tensor:
    """Mean of ``value`` over all processes, without gradient; the input itself in a single process.

    Losses divide by it: each rank's sum divided by the *mean* count, averaged over ranks by DDP, equals the global sum
    divided by the global count, so N processes give the same result as one.

    >>> all_reduce_mean(torch.tensor(3.0))
    tensor(3.)
    """
    value = as_tensor(value, function="all_reduce_mean", name="value")
    mean = value if world_size() == 1 else all_reduce_sum(value) / world_size()
    return mean if _answer is None else _answer(mean)


@door
def all_reduce_sum(value: Tensor) -> Tensor:
    """Sum of ``value`` over all processes, without gradient; the input itself in a single process.

    >>> all_reduce_sum(torch.tensor(3))
    tensor(3)
    """
    value = as_tensor(value, function="all_reduce_sum", name="value")
    if world_size() == 1:
        return value
    total = value.detach().clone()
    torch_dist.all_reduce(total)
    return total


@contextmanager
def means_answered(answer: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, :func:`all_reduce_mean` returns what ``answer`` makes of the mean: the counts that losses divide by.

    So a batch in parts can divide by the counts of the whole: :func:`~detkit.tricks.accumulate_gradients`.

    >>> with means_answered(lambda mean: 4 * mean):
    ...     all_reduce_mean(torch.tensor(3.0))
    tensor(12.)
    """
    global _answer
    before, _answer = _answer, answer
    try:
        yield
    finally:
        _answer = before


@door
def stack(value: Tensor) -> Tensor:
    """``value`` of every process along a new first dimension, without gradient, in the order of ranks.

    Shape (...), the same in all processes, to (world, ...); (1, ...) in a single process.

    >>> stack(torch.ones(2)).shape
    torch.Size([1, 2])
    """
    value = as_tensor(value, function="stack", name="value").detach()
    if world_size() == 1:
        return value[None]
    rows = [torch.empty_like(value) for _ in range(world_size())]
    torch_dist.all_gather(rows, value.contiguous())
    return torch.stack(rows)


def gather_objects(value: Any) -> list[Any]:
    """``value`` of every process, in rank order: any picklable object, on the host.

    >>> gather_objects({"seen": 3})
    [{'seen': 3}]
    """
    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * world_size()
    torch_dist.all_gather_object(gathered, value)
    return gathered


@door
def gather(value: Tensor) -> Tensor:
    """Rows of every process concatenated along the first dimension, with gradient; row counts may differ.

    Shape (N_rank, ...) to (sum of N_rank, ...). A single process returns the input itself.

    >>> gather(torch.ones(2, 3)).shape
    torch.Size([2, 3])
    """
    value = as_tensor(value, function="gather", name="value")
    if world_size() == 1:
        return value
    from torch.distributed.nn.functional import all_gather

    counts = [int(count) for count in gather_objects(len(value))]
    padded = torch.cat([value, value.new_zeros(max(counts) - len(value), *value.shape[1:])])
    return torch.cat([rows[:count] for rows, count in zip(all_gather(padded), counts, strict=True)])


def _active() -> bool:
    return torch_dist.is_available() and torch_dist.is_initialized()
