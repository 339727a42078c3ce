"""Suppression on a GPU: which rows of many segments survive, without a word to the host.

A segment is a run of rows, best first, that may suppress each other. Its first ``BLOCK`` rows are settled by one
program, and suppress the later ones in a second launch; then the next block of every segment. So the number of launches
follows from the longest segment that the shapes allow: one for segments of up to ``BLOCK`` rows, however many.

What conflicts is decided as ``detkit.boxes.suppression`` does, bit for bit: divisions are rounded correctly, and no
multiplication is fused with an addition.
"""

from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from detkit.kernels.overlap import EXACT, diou, down_and_across, iou, sides

BLOCK, TILE = 1024, 64
OPTIONS = {**EXACT, "num_warps": 8}  # with 4 the pairs of a tile do not fit into the registers
_PROGRAMS = 4096  # each takes several segments where there are more


class Segments(NamedTuple):
    """Runs of rows: the first row and the number of rows of each, the segment of every row; ``longest`` is a bound on
    the numbers that holds for these shapes, whatever the values."""

    starts: Tensor
    lengths: Tensor
    owners: Tensor
    longest: int


class Rule(NamedTuple):
    """Conflict: IoU above ``threshold``, or DIoU if ``centers``. Coordinates count as at most ``limit``; boxes with an
    area of at most ``smallest`` never conflict. A segment's rows are settled until ``most`` of them survive."""

    threshold: float
    centers: bool
    limit: float
    smallest: float
    most: int


def surviving_rows(boxes: Tensor, places: Tensor, segments: Segments, rule: Rule) -> Tensor:
    """Which of R rows survive, a bool (R,); row r is the box ``boxes[places[r]]`` of (N, 4) in float32.

    Undefined for rows after the ``rule.most`` best survivors of a segment, and for rows outside all segments.
    """
    # An expanded tensor can be as flat as the kernel expects and still have fewer numbers than elements.
    boxes, places, starts, lengths, owners = (rows.contiguous() for rows in (boxes, places, *segments[:3]))
    keep, found = torch.ones_like(places, dtype=torch.uint8), torch.zeros_like(starts)
    given = (boxes, places, keep, starts, lengths, found, owners, rule.threshold, len(places))
    constants = {"LIMIT": rule.limit, "SMALLEST": rule.smallest, "CENTERS": rule.centers, "BLOCK": BLOCK, "TILE": TILE}
    for block in range(triton.cdiv(segments.longest, BLOCK) if len(places) else 0):
        settle[(min(len(starts), _PROGRAMS),)](*given, block, rule.most, **constants, **OPTIONS)
        if segments.longest > (block + 1) * BLOCK:
            span = TILE * triton.cdiv(len(places), TILE * _PROGRAMS)
            suppress[(triton.cdiv(len(places), span),)](*given, block, rule.most, span, **constants, **OPTIONS)
    return keep.bool()


@triton.jit(do_not_specialize=["threshold", "count", "block", "most"])
@no_type_check
def settle(
    boxes, places, keep, starts, lengths, found, owners, threshold, count, block, most,
    LIMIT: tl.constexpr, SMALLEST: tl.constexpr, CENTERS: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Settle a block of each segment: one tile after the other settles itself and suppresses in the later ones."""
    segments = tl.load(owners + count - 1) + 1
    for segment in range(tl.program_id(0), segments, tl.num_programs(0)):
        start = tl.load(starts + segment)
        row = start + block * BLOCK
        stop = tl.minimum(start + tl.load(lengths + segment), row + BLOCK)
        survivors = tl.load(found + segment)
        while (row < stop) & (survivors < most):
            rows = row + tl.arange(0, TILE)
            inside = rows < stop
            better = _boxes(boxes, places, rows, inside, LIMIT)
            alive = tl.load(keep + rows, mask=inside, other=0).to(tl.int32)
            alive = _settled(alive, _conflicts(better, better, threshold, SMALLEST, CENTERS), TILE)
            tl.store(keep + rows, alive.to(tl.uint8), mask=inside)
            survivors += tl.sum(alive, axis=0)
            row += TILE
            later = row
            while (later < stop) & (survivors < most):
                rows = later + tl.arange(0, TILE)
                inside = rows < stop
                worse = _boxes(boxes, places, rows, inside, LIMIT)
                hit = _suppressed(alive, _conflicts(better, worse, threshold, SMALLEST, CENTERS))
                tl.store(keep + rows, 0, mask=inside & (hit > 0))
                later += TILE
            tl.debug_barrier()  # the next tile is read by other threads than wrote it
        tl.store(found + segment, survivors)


@triton.jit(do_not_specialize=["threshold", "count", "block", "most", "span"])
@no_type_check
def suppress(
    boxes, places, keep, starts, lengths, found, owners, threshold, count, block, most, span,
    LIMIT: tl.constexpr, SMALLEST: tl.constexpr, CENTERS: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """What the survivors of a settled block suppress among the later rows of their segment, ``span`` rows a program.

    As a block is not shorter than a tile, all rows of a tile that lie behind a block are of the segment of its first.
    """
    segments = tl.load(owners + count - 1) + 1
    first = tl.program_id(0).to(tl.int64) * span
    last = tl.minimum(first + span, count)
    while first < last:
        segment = tl.load(owners + first)
        start = tl.load(starts + segment)
        following = tl.load(starts + segment + 1, mask=segment + 1 < segments, other=count)
        end, stop = start + (block + 1) * BLOCK, start + tl.load(lengths + segment)
        stop = tl.where(tl.load(found + segment) < most, stop, start)
        if (first + TILE > end) & (tl.maximum(first, end) < stop):
            rows = first + tl.arange(0, TILE)
            inside = (rows >= end) & (rows < stop)
            worse = _boxes(boxes, places, rows, inside, LIMIT)
            hit = tl.zeros((TILE,), dtype=tl.int32)
            for row in range(end - BLOCK, end, TILE):
                others = row + tl.arange(0, TILE)
                better = _boxes(boxes, places, others, others < end, LIMIT)
                alive = tl.load(keep + others).to(tl.int32)
                hit = tl.maximum(hit, _suppressed(alive, _conflicts(better, worse, threshold, SMALLEST, CENTERS)))
            tl.store(keep + rows, 0, mask=inside & (hit > 0))
        done = stop <= tl.maximum(end, first + TILE)  # the rest of the segment is no concern of this block
        first = tl.maximum(first + TILE, tl.where(done, following, end))


@triton.jit
@no_type_check
def _settled(alive, conflicts, TILE: tl.constexpr):
    """Which rows of a tile survive each other: all conflicts at once, again and again, until nothing changes."""
    earlier = tl.arange(0, TILE)[:, None] < tl.arange(0, TILE)[None, :]
    conflicts = conflicts & earlier
    now, changed = alive, 1
    while changed > 0:
        settled = tl.where(_suppressed(now, conflicts) > 0, 0, alive)
        changed = tl.max(tl.abs(settled - now), axis=0)
        now = settled
    return now


@triton.jit
@no_type_check
def _suppressed(alive, conflicts):
    """1 for each column that conflicts with a row that is alive."""
    return tl.max(tl.where(conflicts, alive[:, None], 0), axis=0)


@triton.jit
@no_type_check
def _boxes(boxes, places, rows, inside, LIMIT: tl.constexpr):
    return sides(boxes, tl.load(places + rows, mask=inside, other=0), inside, LIMIT)


@triton.jit
@no_type_check
def _conflicts(better, worse, threshold, SMALLEST: tl.constexpr, CENTERS: tl.constexpr):
    """Whether each row of ``better`` suppresses each of ``worse``, if it survives."""
    better, worse = down_and_across(better, worse)
    measure = diou(better, worse, SMALLEST) if CENTERS else iou(better, worse, SMALLEST)
    return (measure > threshold) & (better[4] > SMALLEST) & (worse[4] > SMALLEST)
