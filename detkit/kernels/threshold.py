"""Matching by threshold on a GPU without the matrix: a block of anchors meets the objects of its image, some at a time.

Forced matches need each object's highest IoU first, so there are two launches: one collects it by atomic maxima, the
other computes the IoUs again, the same numbers, and decides. The matrix of a piece lives in registers.
"""

from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from detkit.kernels.overlap import EXACT, down_and_across, iou, shared_area, sides
from detkit.structures import IGNORED, NEGATIVE

OBJECTS, ANCHORS = 16, 128
_CROWD_SHARE = tl.constexpr(0.5)  # as detkit.anchors.assigned counts
_NEGATIVE, _IGNORED = tl.constexpr(NEGATIVE), tl.constexpr(IGNORED)


class Rule(NamedTuple):
    """Thresholds, and whether the anchors with an object's highest IoU match too. Coordinates count as at most
    ``limit``, unions of at most ``smallest`` as 0."""

    positive_iou: float
    negative_iou: float
    low_quality: bool
    limit: float
    smallest: float


def match(boxes: Tensor, objects: Tensor, crowds: Tensor, anchors: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """Matched (B, N) int64 and quality (B, N) of ``anchors``, (N, 4) or (B, N, 4), with ``boxes`` (B, T, 4): float32.

    ``objects`` and ``crowds`` (B, T) say which boxes are matched, and which make the anchors in them ignored.
    """
    (batch, count), length = objects.shape, anchors.shape[-2]
    boxes, objects, crowds, anchors = (values.contiguous() for values in (boxes, objects, crowds, anchors))
    matched = torch.empty(batch, length, dtype=torch.int64, device=boxes.device)
    quality = torch.empty(batch, length, dtype=torch.float32, device=boxes.device)
    highest = torch.zeros(batch, count, dtype=torch.int32, device=boxes.device)  # the bits of an IoU sort as it does
    counts = (count, length, length if anchors.ndim == 3 else 0)
    constants = {"LIMIT": rule.limit, "SMALLEST": rule.smallest, "OBJECTS": OBJECTS, "ANCHORS": ANCHORS}
    grid = (triton.cdiv(length, ANCHORS), batch)
    if rule.low_quality:
        find_highest[grid](boxes, objects, anchors, highest, *counts, **constants, **EXACT)
    results, thresholds = (matched, quality), (rule.positive_iou, rule.negative_iou)
    match_anchors[grid](
        boxes, objects, anchors, highest, crowds, *results, *counts, *thresholds,
        FORCED=rule.low_quality, **constants, **EXACT,
    )  # fmt: skip
    return matched, quality


@triton.jit(do_not_specialize=["count", "length", "stride"])
@no_type_check
def find_highest(
    boxes, objects, anchors, highest, count, length, stride,
    LIMIT: tl.constexpr, SMALLEST: tl.constexpr, OBJECTS: tl.constexpr, ANCHORS: tl.constexpr,
):  # fmt: skip
    """The bits of each object's highest IoU with any anchor."""
    image = tl.program_id(1).to(tl.int64)
    columns, known, _places = _anchors(anchors + 4 * image * stride, length, LIMIT, ANCHORS)
    for start in range(0, count, OBJECTS):
        rows = start + tl.arange(0, OBJECTS)
        found = _overlaps(boxes, objects, image * count, rows, count, columns, known, LIMIT, SMALLEST)
        best = tl.max(found[0], axis=1)
        bits = best.to(tl.int32, bitcast=True)
        tl.atomic_max(highest + image * count + rows, bits, mask=(rows < count) & (best > 0), sem="relaxed")


@triton.jit(do_not_specialize=["count", "length", "stride", "positive_iou", "negative_iou"])
@no_type_check
def match_anchors(
    boxes, objects, anchors, highest, crowds, matched, quality, count, length, stride, positive_iou, negative_iou,
    FORCED: tl.constexpr, LIMIT: tl.constexpr, SMALLEST: tl.constexpr, OBJECTS: tl.constexpr, ANCHORS: tl.constexpr,
):  # fmt: skip
    """The object that each anchor of a block overlaps most, if it is enough, or if the anchor is an object's best."""
    image = tl.program_id(1).to(tl.int64)
    columns, known, places = _anchors(anchors + 4 * image * stride, length, LIMIT, ANCHORS)
    best, winner = tl.full((ANCHORS,), -1.0, tl.float32), tl.zeros((ANCHORS,), tl.int32)
    forced, crowded = tl.zeros((ANCHORS,), tl.int32), tl.zeros((ANCHORS,), tl.int32)
    for start in range(0, count, OBJECTS):
        rows = start + tl.arange(0, OBJECTS)
        overlaps, shared, area = _overlaps(boxes, objects, image * count, rows, count, columns, known, LIMIT, SMALLEST)
        top, row = tl.max(overlaps, axis=0, return_indices=True, return_indices_tie_break_left=True)
        winner = tl.where(top > best, start + row, winner)
        best = tl.maximum(best, top)
        crowd = tl.load(crowds + image * count + rows, mask=rows < count, other=0) != 0
        inside = (shared > _CROWD_SHARE * area) & crowd[:, None]
        crowded = tl.maximum(crowded, tl.max(inside.to(tl.int32), axis=0))
        if FORCED:
            peak = tl.load(highest + image * count + rows, mask=rows < count, other=0).to(tl.float32, bitcast=True)
            reached = (overlaps == peak[:, None]) & (peak > 0)[:, None]
            forced = tl.maximum(forced, tl.max(reached.to(tl.int32), axis=0))
    negative = tl.where(crowded > 0, _IGNORED, _NEGATIVE)
    unsure = tl.where(best >= negative_iou, _IGNORED, negative)
    found = tl.where((best >= negative_iou) & (best >= positive_iou) | (forced > 0), winner, unsure)
    here = image * length + places
    tl.store(matched + here, found.to(tl.int64), mask=places < length)
    tl.store(quality + here, tl.where(found >= 0, best, 0.0), mask=places < length)


@triton.jit
@no_type_check
def _anchors(anchors, length, LIMIT: tl.constexpr, ANCHORS: tl.constexpr):
    """The anchors of this program, which are known (no NaN), and their places."""
    places = tl.program_id(0) * ANCHORS + tl.arange(0, ANCHORS)
    x1 = tl.load(anchors + 4 * places, mask=places < length, other=float("nan"))
    return sides(anchors, places, places < length, LIMIT), x1 == x1, places


@triton.jit
@no_type_check
def _overlaps(boxes, objects, first, rows, count, columns, known, LIMIT: tl.constexpr, SMALLEST: tl.constexpr):
    """IoU of some boxes of the image with the anchors, -1 where there is no pair; shared areas; the anchors' areas."""
    rows, inside = first + rows, rows < count
    x1 = tl.load(boxes + 4 * rows, mask=inside, other=0)
    real = (tl.load(objects + rows, mask=inside, other=0) != 0) & (x1 == x1)
    some, anchors = down_and_across(sides(boxes, rows, inside, LIMIT), columns)
    overlaps = tl.where(real[:, None] & known[None], iou(some, anchors, SMALLEST), -1.0)
    return overlaps, shared_area(some, anchors), anchors[4]
