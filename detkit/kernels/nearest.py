"""The nearest points of each goal on a GPU, without the distances of all pairs.

A program takes a few goals of one image and goes through all points as often as there are candidates: each time it
finds the nearest of those that are farther than the last. Distance and index are one integer, so ties go to the lower
index, as in the torch form.
"""

from collections.abc import Sequence
from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from detkit.kernels.overlap import EXACT

GOALS, POINTS = 8, 256
_FARTHEST = tl.constexpr(2**63 - 1)


def nearest(points: Tensor, goals: Tensor, counts: Sequence[int], candidates: int) -> Tensor:
    """Indices (B, T, K) of the ``candidates`` points nearest to each goal on each level, or all of a smaller level.

    points (N, 2) or (B, N, 2) in levels of ``counts``, and goals (B, T, 2), in float32. A point that is NaN comes last.
    """
    points, goals, shared = points.contiguous(), goals.contiguous(), points.ndim == 2
    batch, count, _ = goals.shape
    taken = [min(level, candidates) for level in counts]
    places = torch.empty(batch, count, sum(taken), dtype=torch.int64, device=goals.device)
    stride, grid = 0 if shared else points.shape[1], (triton.cdiv(count, GOALS), batch)
    start = column = 0
    for level, some in zip(counts, taken, strict=True):
        if places.numel() and some:
            find_nearest[grid](
                points, goals, places, count, stride, start, level, places.shape[2], column, some,
                GOALS=GOALS, POINTS=POINTS, **EXACT,
            )  # fmt: skip
        start, column = start + level, column + some
    return places


@triton.jit(do_not_specialize=["count", "stride", "start", "length", "width", "column", "taken"])
@no_type_check
def find_nearest(
    points, goals, places, count, stride, start, length, width, column, taken,
    GOALS: tl.constexpr, POINTS: tl.constexpr,
):  # fmt: skip
    """The nearest ``taken`` of the points ``start`` to ``start + length``, into the columns from ``column`` on."""
    image = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * GOALS + tl.arange(0, GOALS)
    goal = goals + 2 * (image * count + rows)
    x = tl.load(goal, mask=rows < count, other=0)
    y = tl.load(goal + 1, mask=rows < count, other=0)
    last = tl.full((GOALS,), -1, tl.int64)
    for rank in range(taken):
        best = tl.full((GOALS, POINTS), _FARTHEST, tl.int64)
        for first in range(start, start + length, POINTS):
            indices = first + tl.arange(0, POINTS)
            inside = indices < start + length
            point = points + 2 * (image * stride + indices)
            dx = tl.load(point, mask=inside, other=0)[None] - x[:, None]
            dy = tl.load(point + 1, mask=inside, other=0)[None] - y[:, None]
            distance = dx * dx + dy * dy
            distance = tl.where(distance == distance, distance, float("inf"))
            keys = (distance.to(tl.int32, bitcast=True).to(tl.int64) << 32) + indices[None]
            best = tl.minimum(best, tl.where(inside[None] & (keys > last[:, None]), keys, _FARTHEST))
        last = tl.min(best, axis=1)
        place = places + (image * count + rows) * width + column + rank
        tl.store(place, last & 0xFFFFFFFF, mask=rows < count)
