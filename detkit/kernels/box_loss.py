"""Losses of box pairs on a GPU: 1 - IoU, GIoU, DIoU or CIoU and their gradients, in one pass over the pairs.

The formulas, and their order, are those of the torch form (:mod:`detkit.losses.fused.regression`), one pair to a lane;
only the difference of two aspect angles is computed as one angle. Multiplications and additions are not fused, so that
two boxes that touch, or are equal, are so here as well.
"""

import math
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from detkit.kernels.overlap import EXACT

MEASURES = ("iou", "giou", "diou", "unsquared_diou", "ciou")
PAIRS = 256
"""Pairs of a program."""


def one_minus(
    boxes1: Tensor, boxes2: Tensor, needs: tuple[bool, ...], *, measure: str, limit: float, smallest: float
) -> Any:
    """Losses (n) of float32 boxes (n, 4) and (n, 4), and a tuple of the derivatives by both, where ``needs`` asks so.

    NotImplemented for other types. Coordinates count as at most ``limit``, and what is divided by at most ``smallest``
    is 0.
    """
    if boxes1.dtype != torch.float32 or boxes2.dtype != torch.float32:
        return NotImplemented
    boxes1, boxes2 = boxes1.contiguous(), boxes2.contiguous()
    losses = boxes1.new_empty(len(boxes1))
    gradients = [
        torch.empty_like(boxes) if needed else None for boxes, needed in zip((boxes1, boxes2), needs, strict=True)
    ]
    if len(losses):
        constants = {"MEASURE": MEASURES.index(measure), "LIMIT": limit, "SMALLEST": smallest, "PAIRS": PAIRS}
        rows = (boxes1, boxes2, losses, gradients[0], gradients[1], len(losses))
        one_minus_kernel[(triton.cdiv(len(losses), PAIRS),)](*rows, **constants, **EXACT)
    return losses, tuple(gradients)


@triton.jit
@no_type_check
def one_minus_kernel(
    boxes1,
    boxes2,
    losses,
    gradient1,
    gradient2,
    count,
    MEASURE: tl.constexpr,
    LIMIT: tl.constexpr,
    SMALLEST: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """One program for PAIRS pairs; a gradient of None is not asked for. What has x and y is a tile (PAIRS, 2)."""
    rows = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    inside = rows < count
    places = rows[:, None] * 4 + tl.arange(0, 4)[None, :]
    raw1 = tl.load(boxes1 + places, mask=inside[:, None], other=0.0)
    raw2 = tl.load(boxes2 + places, mask=inside[:, None], other=0.0)
    low1, high1 = _corners(raw1, LIMIT)
    low2, high2 = _corners(raw2, LIMIT)
    sides1, sides2 = _positive(high1 - low1), _positive(high2 - low2)
    overlap = _positive(_smaller(high1, high2) - _larger(low1, low2))
    hull = _positive(_larger(high1, high2) - _smaller(low1, low2))
    intersection, area1, area2 = _product(overlap), _product(sides1), _product(sides2)
    union = (area1 + area2) - intersection
    iou = _ratio(intersection, union, SMALLEST)
    by_union, by_meet = _ratio(iou, union, SMALLEST), -_inverse(union, SMALLEST)

    cost, by_hull, by_offset = 1 - iou, tl.zeros_like(hull), tl.zeros_like(hull)
    by_sides1, by_sides2 = tl.zeros_like(hull), tl.zeros_like(hull)
    if MEASURE == 1:
        extra, by_gap, by_hull = _generalized(hull, union, SMALLEST)
        cost, by_union = cost + extra, by_union - by_gap
    if MEASURE >= 2:
        offset = ((low1 + high1) - (low2 + high2)) * 0.5
        extra, by_hull, by_offset = _distance(offset, hull, MEASURE == 3, SMALLEST)
        cost += extra
    if MEASURE == 4:
        valid = _smaller(area1, area2) > 0
        extra, by_sides1, by_sides2 = _aspect(sides1, sides2, iou, valid, SMALLEST)
        cost += extra

    tl.store(losses + rows, cost, mask=inside)
    by_overlap = _gate((by_meet - by_union)[:, None] * _swapped(overlap), overlap)
    if gradient1 is not None:
        own = by_sides1 + _gate(by_union[:, None] * _swapped(sides1), sides1)
        low, high = _by_corners(low1, high1, low2, high2, by_overlap, by_hull, own, by_offset)
        tl.store(gradient1 + places, _boxes(low, high, raw1, LIMIT), mask=inside[:, None])
    if gradient2 is not None:
        own = by_sides2 + _gate(by_union[:, None] * _swapped(sides2), sides2)
        low, high = _by_corners(low2, high2, low1, high1, by_overlap, by_hull, own, -by_offset)
        tl.store(gradient2 + places, _boxes(low, high, raw2, LIMIT), mask=inside[:, None])


HALF_PI, QUARTER_PI, TANGENT = (tl.constexpr(x) for x in (math.pi / 2, math.pi / 4, math.tan(math.pi / 8)))
ANGLES = tl.constexpr(4 / math.pi**2)
LARGE, TINY = (tl.constexpr(x) for x in (torch.finfo(torch.float32).max / 8, torch.finfo(torch.float32).tiny))


@triton.jit
@no_type_check
def _corners(raw, LIMIT: tl.constexpr):
    """Bounded corners (n, 2) and (n, 2) of boxes (n, 4)."""
    bounded = _smaller(_larger(raw, -LIMIT), LIMIT)
    return tl.split(tl.permute(tl.reshape(bounded, (raw.shape[0], 2, 2)), (0, 2, 1)))


@triton.jit
@no_type_check
def _boxes(low, high, raw, LIMIT: tl.constexpr):
    """Gradients (n, 2) and (n, 2) as (n, 4); coordinates beyond the limit have none."""
    gradient = tl.reshape(tl.permute(tl.join(low, high), (0, 2, 1)), (raw.shape[0], 4))
    return tl.where(tl.abs(raw) > LIMIT, 0.0, gradient)


@triton.jit
@no_type_check
def _product(sides):
    x, y = tl.split(sides)
    return x * y


@triton.jit
@no_type_check
def _swapped(sides):
    """y, x."""
    x, y = tl.split(sides)
    return tl.join(y, x)


@triton.jit
@no_type_check
def _squares(sides):
    """x**2 + y**2."""
    x, y = tl.split(sides * sides)
    return x + y


@triton.jit
@no_type_check
def _smaller(a, b):
    """NaN where one of them is, as torch's minimum."""
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
@no_type_check
def _larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
@no_type_check
def _positive(x):
    return tl.where(x <= 0, 0.0, x)


@triton.jit
@no_type_check
def _gate(gradient, sides):
    """The gradient through ``clamp(min=0)``: none where nothing is left."""
    return tl.where(sides <= 0, 0.0, gradient)


@triton.jit
@no_type_check
def _ratio(numerator, denominator, SMALLEST: tl.constexpr):
    """numerator / denominator, and 0 where the denominator is not safely positive."""
    bad = denominator <= SMALLEST
    return tl.where(bad, 0.0, tl.div_rn(numerator, tl.where(bad, 1.0, denominator)))


@triton.jit
@no_type_check
def _inverse(denominator, SMALLEST: tl.constexpr):
    return _ratio(tl.full(denominator.shape, 1.0, tl.float32), denominator, SMALLEST)


@triton.jit
@no_type_check
def _share(one, other):
    """1 where one is larger, 1/2 where both are equal, 0 where it is smaller."""
    return tl.where(one > other, 1.0, tl.where(one < other, 0.0, 0.5))


@triton.jit
@no_type_check
def _mixed(a, b, share):
    """a for a share of 0, b for 1, half of each for 1/2."""
    return tl.where(share == 0, a, tl.where(share == 1, b, a + (b - a) * 0.5))


@triton.jit
@no_type_check
def _by_corners(low, high, other_low, other_high, by_overlap, by_hull, own, by_offset):
    """Derivatives by the corners of a box: a low corner is the larger one of two in the overlap, the smaller one in the
    hull; a high corner the other way round."""
    by_low = by_offset - (_mixed(by_hull, by_overlap, _share(low, other_low)) + own)
    by_high = by_offset + (_mixed(by_overlap, by_hull, _share(high, other_high)) + own)
    return by_low, by_high


@triton.jit
@no_type_check
def _generalized(hull, union, SMALLEST: tl.constexpr):
    """What GIoU adds to 1 - IoU; minus its derivative by the union; that by the hull."""
    area = _product(hull)
    gap = _positive(area - union)
    extra = _ratio(gap, area, SMALLEST)
    by_gap = _gate(_inverse(area, SMALLEST), gap)
    return extra, by_gap, (by_gap - _ratio(extra, area, SMALLEST))[:, None] * _swapped(hull)


@triton.jit
@no_type_check
def _distance(offset, hull, UNSQUARED: tl.constexpr, SMALLEST: tl.constexpr):
    """What DIoU adds; its derivatives by the hull and by the offset of the centers."""
    diagonal, apart = _squares(hull), _squares(offset)
    inverse = _inverse(diagonal, SMALLEST)
    if UNSQUARED:
        distance = tl.sqrt_rn(apart)
        extra = _ratio(distance, diagonal, SMALLEST)
        by_hull = hull * -2 * inverse[:, None] * extra[:, None]
        by_hull = _smaller(_larger(by_hull, -LARGE), LARGE)
        by_offset = tl.div_rn(offset, _larger(distance, TINY)[:, None]) * inverse[:, None] * 0.5
    else:
        extra = _ratio(_smaller(apart, diagonal), diagonal, SMALLEST)
        near = _share(diagonal, apart)  # centers of inverted boxes lie outside their hull
        by_hull = (((1 - near) - extra) * inverse)[:, None] * 2 * hull
        by_offset = (near * inverse)[:, None] * offset
    return extra, by_hull, by_offset


@triton.jit
@no_type_check
def _aspect(sides1, sides2, iou, valid, SMALLEST: tl.constexpr):
    """What CIoU adds to DIoU; its derivatives by the sides of both boxes; 0 where not valid."""
    angle, slope1, slope2 = _angles(sides1, sides2, valid)
    penalty = angle * angle * ANGLES
    alpha = _ratio(penalty, (1 - iou) + penalty, SMALLEST)
    by_angle = tl.where(valid, 2 * ANGLES * angle * alpha, 0.0)[:, None]
    return tl.where(valid, alpha * penalty, 0.0), slope1 * by_angle, -slope2 * by_angle


@triton.jit
@no_type_check
def _angles(sides1, sides2, valid):
    """How far apart the aspect angles are, whose tangents are width / height, and the derivatives of both by their
    sides. The angle between two vectors has no difference of rounded angles in it."""
    width1, height1, slope1 = _direction(sides1, valid)
    width2, height2, slope2 = _direction(sides2, valid)
    across, along = width1 * height2 - width2 * height1, height1 * height2 + width1 * width2
    size = tl.abs(across)
    angle = _arctangent(tl.div_rn(_smaller(size, along), _larger(size, along)))
    angle = tl.where(size > along, HALF_PI - angle, angle)
    return tl.where(across < 0, -angle, angle), slope1, slope2


@triton.jit
@no_type_check
def _direction(sides, valid):
    """A box's sides by the larger one, and the derivative of its angle by both of them."""
    width, height = tl.split(tl.where(valid[:, None], sides, 1.0))
    larger = _larger(width, height)
    width, height = tl.div_rn(width, larger), tl.div_rn(height, larger)
    scale = tl.div_rn(tl.full(width.shape, 1.0, tl.float32), (width * width + height * height) * larger)
    return width, height, tl.join(height * scale, -width * scale)


@triton.jit
@no_type_check
def _arctangent(x):
    """That of x in [0, 1]: its series, after a turn by pi / 4 where x is large."""
    turned = x > TANGENT
    x = tl.where(turned, tl.div_rn(x - 1, x + 1), x)
    square = x * x
    series = square * (-1 / 15) + 1 / 13
    series = series * square - 1 / 11
    series = series * square + 1 / 9
    series = series * square - 1 / 7
    series = series * square + 1 / 5
    series = series * square - 1 / 3
    return tl.where(turned, QUARTER_PI, 0.0) + (x + x * square * series)
