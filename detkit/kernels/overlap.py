"""Boxes inside kernels: corners, areas and quotients, rounded as ``detkit.boxes.measures`` rounds them in float32.

That holds where a kernel is launched with ``EXACT``: no multiplication is fused with an addition.
"""

from typing import no_type_check

import triton
import triton.language as tl

EXACT = {"enable_fp_fusion": False, "num_warps": 4}


@triton.jit
@no_type_check
def sides(boxes, rows, inside, LIMIT: tl.constexpr):
    """Corners and area of the boxes in these rows, (0, 0, 0, 0) where they are NaN or not ``inside``.

    Coordinates count as at most ``LIMIT``.
    """
    corner = boxes + 4 * rows
    x1 = tl.load(corner, mask=inside, other=0)
    y1 = tl.load(corner + 1, mask=inside, other=0)
    x2 = tl.load(corner + 2, mask=inside, other=0)
    y2 = tl.load(corner + 3, mask=inside, other=0)
    known = (x1 == x1) & (y1 == y1) & (x2 == x2) & (y2 == y2)
    x1, y1, x2, y2 = _held(x1, known, LIMIT), _held(y1, known, LIMIT), _held(x2, known, LIMIT), _held(y2, known, LIMIT)
    return x1, y1, x2, y2, tl.maximum(x2 - x1, 0) * tl.maximum(y2 - y1, 0)


@triton.jit
@no_type_check
def _held(values, known, LIMIT: tl.constexpr):
    return tl.where(known, tl.minimum(tl.maximum(values, -LIMIT), LIMIT), 0.0)


@triton.jit
@no_type_check
def down_and_across(rows, columns):
    """Boxes that lie (N,) and boxes that lie (M,), as (N, 1) and (1, M): for the pairs of all with all."""
    x1, y1, x2, y2, area = rows
    left, top, right, bottom, other = columns
    rows = x1[:, None], y1[:, None], x2[:, None], y2[:, None], area[:, None]
    return rows, (left[None], top[None], right[None], bottom[None], other[None])


@triton.jit
@no_type_check
def shared_area(a, b):
    """The area of the intersection of boxes that broadcast."""
    width = tl.maximum(tl.minimum(a[2], b[2]) - tl.maximum(a[0], b[0]), 0)
    return width * tl.maximum(tl.minimum(a[3], b[3]) - tl.maximum(a[1], b[1]), 0)


@triton.jit
@no_type_check
def iou(a, b, SMALLEST: tl.constexpr):
    """Intersection over union of boxes that broadcast."""
    shared = shared_area(a, b)
    return ratio(shared, (a[4] + b[4]) - shared, SMALLEST)


@triton.jit
@no_type_check
def diou(a, b, SMALLEST: tl.constexpr):
    """IoU minus squared center distance over squared diagonal of the hull."""
    across = tl.maximum(tl.maximum(a[2], b[2]) - tl.minimum(a[0], b[0]), 0)
    down = tl.maximum(tl.maximum(a[3], b[3]) - tl.minimum(a[1], b[1]), 0)
    diagonal = across * across + down * down
    dx = ((a[0] + a[2]) - (b[0] + b[2])) * 0.5
    dy = ((a[1] + a[3]) - (b[1] + b[3])) * 0.5
    return iou(a, b, SMALLEST) - ratio(tl.minimum(dx * dx + dy * dy, diagonal), diagonal, SMALLEST)


@triton.jit
@no_type_check
def ratio(numerator, denominator, SMALLEST: tl.constexpr):
    """The quotient, rounded correctly; 0 where the denominator is at most ``SMALLEST``."""
    safe = denominator > SMALLEST
    return tl.where(safe, tl.div_rn(numerator, tl.where(safe, denominator, 1.0)), 0.0)
