"""What a function asks of torch's allocator on the CPU: bytes held at most, bytes in all, and operators."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch.profiler import ProfilerActivity, profile


class Allocations(NamedTuple):
    """Megabytes held at most and asked for in all, both above what was held before; and how many operators ran."""

    peak: float
    total: float
    operators: int


def allocations(function: Callable[[], Any]) -> Allocations:
    """Those of one call, inside operators of Python, too."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        kept = function()
    del kept
    events: Any = record.profiler.kineto_results.events()  # pyright: ignore[reportOptionalMemberAccess]
    memory = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = peak = total = 0
    for _, size in memory:
        held += size
        peak, total = max(peak, held), total + max(0, size)
    return Allocations(peak / 1e6, total / 1e6, sum(event.name().startswith("aten::") for event in events))
