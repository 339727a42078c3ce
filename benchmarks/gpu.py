"""What is measured on a GPU besides the ratio: how often the host waits, and the speed at which memory is copied."""

import statistics
import warnings
from collections.abc import Callable
from typing import Any

import torch

_COPIED = 1 << 30


def seconds(function: Callable[[], Any]) -> float:
    """Between two events around ``function`` on the current stream."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def waits(function: Callable[[], Any]) -> int:
    """How often the host waits for the device in ``function``."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            function()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in said)


def copy_bandwidth(device: str) -> float:
    """Bytes read and written in a second where a tensor of 1 GiB is copied."""
    source = torch.zeros(_COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = [seconds(lambda: target.copy_(source)) for _ in range(20)]
    return 2 * _COPIED / statistics.median(times)
