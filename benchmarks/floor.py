"""``python -m benchmarks floor``: how much of a whole detector's time are convolutions and matrix products.

Both sides run torch's kernels for them, so the peer's time over ours of these alone, the last column, is what work on
the rest could reach at most, in the same layout. The cases are those of ``python -m benchmarks whole``; one thread, in
turns. Times are of operators: what Python takes between them is not in any column.
"""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from benchmarks.bench_whole import cases

_PRODUCTS = ("addmm", "mm", "bmm", "baddbmm", "_scaled_dot_product")
_RUNS = 3


def study(words: Sequence[str]) -> str:
    """The table, of the eager cases whose name or size contains all ``words``."""
    torch.set_num_threads(1)
    rows = [
        "| operation | size | peer ms | of these products | ours ms | of these products | ratio | at most |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in cases():
        if "compiled" in case.name or not all(word in f"{case.name} {case.size}" for word in words):
            continue
        case.agree(case.ours(), case.theirs())
        runs = [(_spent(case.ours), _spent(case.theirs)) for _ in range(_RUNS)]
        (ours, our_products), (theirs, their_products) = (
            [statistics.median(spent) for spent in zip(*side, strict=True)] for side in zip(*runs, strict=True)
        )
        rows.append(
            f"| {case.name} | {case.size} | {theirs:.0f} | {their_products / theirs:.0%} | {ours:.0f} "
            f"| {our_products / ours:.0%} | {theirs / ours:.2f}x | {theirs / our_products:.2f}x |"
        )
        tqdm.write(rows[-1])
    return "\n".join(rows)


def _spent(function: Callable[[], Any]) -> tuple[float, float]:
    """Milliseconds in all, and in convolutions and matrix products."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        function()
    events = found.key_averages()
    names = {one.key: one.key.split("::")[-1] for one in events}
    products = (one for one in events if "conv" in names[one.key] or names[one.key].startswith(_PRODUCTS))
    return sum(one.self_cpu_time_total for one in events) / 1e3, sum(one.self_cpu_time_total for one in products) / 1e3
