"""How one case is measured: results compared first, then both sides timed in turns, and the ratio of medians kept.

Interleaving makes the ratio survive a machine whose speed drifts; a faster wrong answer never gets as far as a clock.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch


class Case(NamedTuple):
    """One comparison. ``agree(ours, theirs)`` raises AssertionError where the results differ; ``target`` is the ratio
    that the project aims at, ``floor`` what bounds any implementation, in words. ``clock`` reads seconds; that of the
    process (one thread) counts no others'."""

    name: str
    size: str
    peer: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    agree: Callable[[Any, Any], None]
    target: float
    floor: str = ""
    clock: Callable[[], float] = time.perf_counter


class Measured(NamedTuple):
    """A case with its median seconds on both sides, and the CPU seconds of all threads that ours took."""

    case: Case
    ours: float
    theirs: float
    cpu: float

    @property
    def ratio(self) -> float:
        """How many times faster than the peer."""
        return self.theirs / self.ours


def measure(case: Case, *, budget: float = 8.0) -> Measured:
    """Compare, then time both sides alternately for about ``budget`` seconds, at least 3 and at most 60 times each."""
    case.agree(case.ours(), case.theirs())
    times: tuple[list[float], list[float]] = ([], [])
    cpu: list[float] = []
    end = time.perf_counter() + budget
    gc.collect()
    while len(times[0]) < 3 or (time.perf_counter() < end and len(times[0]) < 60):
        start = time.process_time()
        times[0].append(_seconds(case.ours, case.clock))
        cpu.append(time.process_time() - start)
        times[1].append(_seconds(case.theirs, case.clock))
    return Measured(case, *map(statistics.median, (*times, cpu)))


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
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = clock()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start
