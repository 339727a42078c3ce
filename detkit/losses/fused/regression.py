"""The fused form of the box losses: what :func:`detkit.losses.regression.one_minus` defines.

It is written on columns: sides (2, n) hold x in row 0 and y in row 1. Gradients are those of the definition: those of
a minimum of equal numbers go half to each, a denominator that is not safely positive has none, coordinates beyond 2e18
(float32) count as that and have none. Only a side of exactly 0, where ``clamp`` bends, has no gradient here.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detkit._gradient import Derivatives
from detkit.boxes.measures import (
    BoxSides,
    Measure,
    ciou,
    coordinate_limit,
    diou,
    giou,
    iou,
    smallest_union,
    unsquared_diou,
)
from detkit.kernels.switch import launched, serves


def one_minus(
    boxes1: Tensor, boxes2: Tensor, needs: tuple[bool, ...], *, measure: Measure
) -> tuple[Tensor, Derivatives]:
    """1 - IoU + what the measure takes off, by the chain rule from areas to sides to corners."""
    if (found := _by_a_kernel(boxes1, boxes2, needs, measure)) is not NotImplemented:
        return found
    low1, high1, low2, high2 = (half for boxes in (boxes1, boxes2) for half in _columns(boxes).split(2))
    overlap = torch.minimum(high1, high2).sub_(torch.maximum(low1, low2)).relu_()
    sides1, sides2 = (high1 - low1).relu_(), (high2 - low2).relu_()
    hull = torch.maximum(high1, high2).sub_(torch.minimum(low1, low2)).relu_()
    intersection = overlap[0] * overlap[1]
    union = (sides1[0] * sides1[1]).add_(sides2[0] * sides2[1]).sub_(intersection)
    iou = _ratio(intersection, union)
    extra = _PENALTIES[measure](_Pairs(low1, high1, low2, high2, sides1, sides2, hull, union, iou))
    losses = (1 - iou).add_(extra.value)
    if not any(needs):
        return losses, (None, None)
    by_union, by_meet = _ratio(iou, union), _inverse(union).neg_()
    if extra.union is not None:
        by_union = by_union.add_(extra.union)
    by_overlap = _gate(by_meet.sub_(by_union) * overlap.flip(0), overlap)  # what both cover counts once in the union
    low, high = (_share(one, other) for one, other in ((low1, low2), (high1, high2)))
    own1, own2 = (_gate(by_union * sides.flip(0), sides) for sides in (sides1, sides2))
    gradients: list[Tensor | None] = [None, None]
    if needs[0]:
        gradients[0] = _by_corners(boxes1, by_overlap, extra.hull, own1, (low, high), extra.sides1, extra.offset)
    if needs[1]:
        back = None if extra.offset is None else -extra.offset
        gradients[1] = _by_corners(boxes2, by_overlap, extra.hull, own2, (1 - low, 1 - high), extra.sides2, back)
    return losses, tuple(gradients)


def one_minus_compiled(boxes1: Tensor, boxes2: Tensor, *, measure: Measure) -> Tensor:
    """The definition on contiguous columns, which ``torch.compile`` fuses: a quarter of the time of that on rows."""
    limit, on_cpu = coordinate_limit(boxes1.dtype), boxes1.device.type == "cpu"
    columns = [_box_columns(boxes) if on_cpu else boxes.unbind(-1) for boxes in (boxes1, boxes2)]
    first, second = (BoxSides.of(*(column.clamp(-limit, limit) for column in four)) for four in columns)
    return 1 - measure(first, second)


def _by_a_kernel(boxes1: Tensor, boxes2: Tensor, needs: tuple[bool, ...], measure: Measure) -> Any:
    """NotImplemented where there is none; compilers see :func:`one_minus_compiled` instead."""
    if torch.compiler.is_compiling() or not serves(boxes1):
        return NotImplemented
    from detkit.kernels import box_loss

    limits = {"limit": coordinate_limit(boxes1.dtype), "smallest": smallest_union(boxes1.dtype)}
    return launched(box_loss.one_minus, boxes1, boxes2, needs, measure=measure.__name__, **limits)


class _Pairs(NamedTuple):
    """What a penalty is made of, as sides (2, n), and the IoU (n)."""

    low1: Tensor
    high1: Tensor
    low2: Tensor
    high2: Tensor
    sides1: Tensor
    sides2: Tensor
    hull: Tensor
    union: Tensor
    iou: Tensor


class _Penalty(NamedTuple):
    """What is added to 1 - IoU; its derivatives by hull (2, n), union (n), offset of the centers and sides (2, n)."""

    value: Tensor
    hull: Tensor
    union: Tensor | None = None
    offset: Tensor | None = None
    sides1: Tensor | None = None
    sides2: Tensor | None = None


def _by_corners(
    boxes: Tensor,
    overlap: Tensor,
    hull: Tensor,
    own: Tensor,
    shares: tuple[Tensor, Tensor],
    sides: Tensor | None,
    offset: Tensor | None,
) -> Tensor:
    """Derivative by the corners of a box from those by the sides (2, n): a low corner is the larger one of two in the
    overlap, the smaller one in the hull, for ``shares`` of 0, 1/2 or 1; a high corner the other way round."""
    own = own if sides is None else own.add_(sides)
    low = torch.lerp(hull, overlap, shares[0]).add_(own).neg_()
    high = torch.lerp(overlap, hull, shares[1]).add_(own)
    if offset is not None:
        low, high = low.add_(offset), high.add_(offset)
    gradient = _as_rows((*low, *high))
    size = boxes.abs()
    if boxes.device.type == "cpu" and size.sum() < coordinate_limit(boxes.dtype):  # the usual case: no mask needed
        return gradient
    return torch.where(size > coordinate_limit(boxes.dtype), 0, gradient)


def _columns(boxes: Tensor) -> Tensor:
    """(n, 4) to (4, n) in memory, bounded, in one pass."""
    limit = coordinate_limit(boxes.dtype)
    return torch.clamp(boxes.T, -limit, limit, out=boxes.new_empty(4, len(boxes)))


def _share(one: Tensor, other: Tensor) -> Tensor:
    """1 where one is larger, 1/2 where both are equal, 0 where it is smaller."""
    return (one - other).sign_().mul_(0.5).add_(0.5)


def _as_rows(columns: Sequence[Tensor]) -> Tensor:
    """4 columns (n) as boxes (n, 4); column by column, which a CPU does four times as fast as a transposition."""
    boxes = columns[0].new_empty(len(columns[0]), 4)
    for place, column in enumerate(columns):
        boxes[:, place] = column
    return boxes


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator, and 0 where the denominator is not safely positive."""
    limit = smallest_union(denominator.dtype)
    return torch.ops.aten.threshold_backward(numerator / denominator, denominator, limit)  # one pass; where() is slow


def _inverse(denominator: Tensor) -> Tensor:
    return _ratio(torch.ones_like(denominator), denominator)


def _gate(gradient: Tensor, sides: Tensor) -> Tensor:
    """The gradient through ``clamp(min=0)``: none where nothing is left."""
    return torch.ops.aten.threshold_backward(gradient, sides, 0)


def _none(pairs: _Pairs) -> _Penalty:
    return _Penalty(torch.zeros_like(pairs.iou), torch.zeros_like(pairs.hull))


def _generalized(pairs: _Pairs) -> _Penalty:
    area = pairs.hull[0] * pairs.hull[1]
    gap = (area - pairs.union).relu_()
    share = _ratio(gap, area)
    by_gap = _gate(_inverse(area), gap)
    sides = pairs.hull.flip(0)
    return _Penalty(share, union=-by_gap, hull=(by_gap - _ratio(share, area)) * sides)


def _centers(pairs: _Pairs) -> tuple[Tensor, Tensor]:
    """Offset (2, n) between the centers, and the squared diagonal (n) of the hull."""
    offset = ((pairs.low1 + pairs.high1) - (pairs.low2 + pairs.high2)).div_(2)
    return offset, pairs.hull.square().sum(0)


def _distance(pairs: _Pairs) -> _Penalty:
    offset, diagonal = _centers(pairs)
    apart = offset.square().sum(0)
    share = _ratio(torch.minimum(apart, diagonal), diagonal)
    inside = (diagonal - apart).sign_().mul_(0.5).add_(0.5)  # centers of inverted boxes lie outside their hull
    inverse = _inverse(diagonal)
    by_diagonal = ((1 - inside) - share).mul_(inverse)
    return _Penalty(share, hull=by_diagonal * 2 * pairs.hull, offset=(inside * inverse) * offset)


def _distance_unsquared(pairs: _Pairs) -> _Penalty:
    offset, diagonal = _centers(pairs)
    distance = offset.square().sum(0).sqrt_()
    share = _ratio(distance, diagonal)
    direction = offset / distance.clamp(min=torch.finfo(offset.dtype).tiny)
    inverse = _inverse(diagonal)
    by_hull = (pairs.hull * -2).mul_(inverse).mul_(share)
    bound = torch.finfo(by_hull.dtype).max / 8  # this form does not stay small: it grows as boxes shrink
    return _Penalty(share, hull=by_hull.clamp_(-bound, bound), offset=direction.mul_(inverse).div_(2))


def _complete(pairs: _Pairs) -> _Penalty:
    distance = _distance(pairs)
    valid = ((pairs.sides1[0] * pairs.sides1[1]).minimum(pairs.sides2[0] * pairs.sides2[1]) > 0).to(pairs.iou.dtype)
    (angle1, slope1), (angle2, slope2) = (_aspect_angle(sides, valid) for sides in (pairs.sides1, pairs.sides2))
    difference = (angle1 - angle2).mul_(valid)
    penalty = difference.square().mul_(4 / math.pi**2)
    alpha = _ratio(penalty, (1 - pairs.iou).add_(penalty))
    by_angle = (difference * alpha).mul_(8 / math.pi**2)
    return distance._replace(
        value=distance.value + alpha * penalty, sides1=slope1.mul_(by_angle), sides2=slope2.mul_(-by_angle)
    )


def _aspect_angle(sides: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """The angle (n) whose tangent is width / height, and its derivative by both sides (2, n); 0 where not valid."""
    sides = sides + (1 - valid)  # a side of 0 would divide by 0
    larger = torch.maximum(sides[0], sides[1])
    scaled = sides / larger
    slope = scaled.flip(0) / scaled.square().sum(0).mul_(larger)
    slope[1].neg_()
    return torch.atan2(scaled[0], scaled[1]), slope.mul_(valid)


_PENALTIES: dict[Measure, Callable[[_Pairs], _Penalty]] = {
    iou: _none,
    giou: _generalized,
    diou: _distance,
    unsquared_diou: _distance_unsquared,
    ciou: _complete,
}


@torch.library.custom_op("detkit::box_columns", mutates_args=())
def _box_columns(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(n, 4) to 4 x (n), each contiguous: of a step of 4 numbers a compiler makes loops without vectors."""
    x1, y1, x2, y2 = (column.clone() for column in boxes.unbind(-1))
    return x1, y1, x2, y2


@_box_columns.register_fake
def _(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x1, y1, x2, y2 = (boxes.new_empty(boxes.shape[0]) for _ in range(4))
    return x1, y1, x2, y2


@torch.library.custom_op("detkit::box_rows", mutates_args=())
def _box_rows(x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor) -> Tensor:
    return _as_rows((x1, y1, x2, y2))


@_box_rows.register_fake
def _(x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor) -> Tensor:
    return x1.new_empty(x1.shape[0], 4)


_box_columns.register_autograd(lambda context, *upstream: _box_rows(*upstream))
