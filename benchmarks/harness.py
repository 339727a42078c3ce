"""How one case is measured: results compared first, then both sides timed in turns, and the ratio of medians kept.

Interleaving makes the ratio survive a machine whose speed drifts; a faster wrong answer never gets as far as a clock.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from benchmarks import gpu


class Case(NamedTuple):
    """One comparison. ``agree(ours, theirs)`` raises AssertionError where the results differ; ``target`` is the ratio
    that the project aims at, ``floor`` what bounds any implementation, in words. ``clock`` reads seconds; that of the
    process (one thread) counts no others'. ``moved`` is how many bytes ours must read and write at least, 0 where
    memory is not what bounds it; it is looked at on a GPU."""

    name: str
    size: str
    peer: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    agree: Callable[[Any, Any], None]
    target: float
    floor: str = ""
    clock: Callable[[], float] = time.perf_counter
    moved: int = 0


class Measured(NamedTuple):
    """A case with its median seconds on both sides, and the CPU seconds of all threads that ours took; on a GPU also
    how often the host waits in ours and in theirs."""

    case: Case
    ours: float
    theirs: float
    cpu: float
    waits: tuple[int, int] | None = None

    @property
    def ratio(self) -> float:
        """How many times faster than the peer."""
        return self.theirs / self.ours


def measure(case: Case, *, budget: float = 8.0, device: str = "cpu") -> Measured:
    """Compare, then time both sides alternately for about ``budget`` seconds, at least 3 and at most 60 times each.

    On a GPU time is what passes between two events.
    """
    case.agree(case.ours(), case.theirs())
    times: tuple[list[float], list[float]] = ([], [])
    cpu: list[float] = []
    end = time.perf_counter() + budget
    gc.collect()
    while len(times[0]) < 3 or (time.perf_counter() < end and len(times[0]) < 60):
        start = time.process_time()
        times[0].append(_timed(case.ours, case, device))
        cpu.append(time.process_time() - start)
        times[1].append(_timed(case.theirs, case, device))
    waits = None if device == "cpu" else (gpu.waits(case.ours), gpu.waits(case.theirs))
    return Measured(case, statistics.median(times[0]), statistics.median(times[1]), statistics.median(cpu), waits)


def _timed(function: Callable[[], Any], case: Case, device: str) -> float:
    return _seconds(function, case.clock) if device == "cpu" else gpu.seconds(function)


def table(measured: Iterable[Measured]) -> str:
    """The cases as a Markdown table: name, size, peer, times, ratio, target, floor."""
    rows = [
        "| operation | size | peer | ours ms | its CPU ms | peer ms | ratio | target | floor |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    rows += [
        f"| {m.case.name} | {m.case.size} | {m.case.peer} | {m.ours * 1e3:.2f} | {m.cpu * 1e3:.2f} "
        f"| {m.theirs * 1e3:.2f} | {m.ratio:.2f}x "
        f"| {m.case.target:g}x{'' if m.ratio >= m.case.target else ' (missed)'} | {m.case.floor} |"
        for m in measured
    ]
    return "\n".join(rows)


def _seconds(function: Callable[[], Any], clock: Callable[[], float]) -> float:
    start = clock()
    function()
    return clock() - start


def table_of_device(measured: Iterable[Measured], bandwidth: float) -> str:
    """What a GPU adds: host syncs of both sides, and the share of the ``bandwidth`` of a copy, in bytes a second."""
    rows = [
        f"| operation | size | host syncs | peer's host syncs | of the copy's {bandwidth / 1e9:,.0f} GB/s |",
        "|---|---|---|---|---|",
    ]
    for m in measured:
        share = f"{m.case.moved / m.ours / bandwidth:.0%}" if m.case.moved else ""
        ours, theirs = m.waits or ("", "")
        rows.append(f"| {m.case.name} | {m.case.size} | {ours} | {theirs} | {share} |")
    return "\n".join(rows)
