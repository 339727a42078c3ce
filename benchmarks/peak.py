"""The peak of a process's memory, as the system counts it (VmHWM), above what it held before (VmRSS)."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

ALONE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0", "OMP_NUM_THREADS": "1"}
"""The environment of a process whose memory goes back to the system as soon as it is free: no gaps are counted."""

R = TypeVar("R")


def peak_of(run: Callable[[], R]) -> tuple[float, R]:
    """Megabytes that the process grows by in ``run``, and what that returns."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _megabytes("VmRSS")
    found = run()
    return max(0.0, _megabytes("VmHWM") - before), found


def _megabytes(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) / 1024
