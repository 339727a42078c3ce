"""Measures: how much two boxes agree, by IoU and the variants that also tell how far apart they are.

A *measure* is a function of two :class:`BoxSides` that broadcast. A new one is written from the parts below, as GIoU,
DIoU and CIoU are here; :func:`~detkit.boxes.all_pairs` and :func:`~detkit.boxes.paired` make a function of boxes of it.
A box without area (zero-size or inverted) has IoU 0 with every box. Coordinates count as at most 2e18 in float32 and
1e153 in float64, as areas of larger boxes would overflow.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from detkit._door import door
from detkit._inputs import as_boxes
from detkit._ranges import Count


class BoxSides(NamedTuple):
    """Boxes column by column: x1, y1, x2, y2 and area, five tensors of one shape, or of shapes that broadcast.

    >>> sides_of(torch.tensor([[1.0, 2, 4, 4]])).width
    tensor([3.])
    """

    x1: Float[Tensor, "*B"]
    y1: Float[Tensor, "*B"]
    x2: Float[Tensor, "*B"]
    y2: Float[Tensor, "*B"]
    area: Float[Tensor, "*B"]

    @staticmethod
    @door
    def of(x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor) -> "BoxSides":
        """The boxes with these corners, and their areas."""
        # relu, not clamp(min=0): without gradient at 0 in every version of torch
        return BoxSides(x1, y1, x2, y2, (x2 - x1).relu() * (y2 - y1).relu())

    @property
    def width(self) -> Float[Tensor, "*B"]:
        """At least 0."""
        return (self.x2 - self.x1).relu()

    @property
    def height(self) -> Float[Tensor, "*B"]:
        """At least 0."""
        return (self.y2 - self.y1).relu()

    @door
    def map(self, function: Callable[[Tensor], Tensor]) -> "BoxSides":
        """The boxes that ``function`` makes of each of the five tensors: a slice, a selection, another shape.

        >>> sides_of(torch.zeros(3, 4)).map(lambda values: values[:2, None]).area.shape
        torch.Size([2, 1])
        """
        return BoxSides(*map(function, self))

    @door
    def take(self, rows: Int[Tensor, "*P"]) -> "BoxSides":
        """The boxes, or rows of boxes, at these places of the first dimension, in the shape of ``rows``."""
        taken = BoxSides(*(values.index_select(0, rows.flatten()) for values in self))
        return taken if rows.ndim == 1 else taken.map(lambda values: values.unflatten(0, rows.shape))

    @door
    def split(self, size: Count) -> "list[BoxSides]":
        """Pieces of at most ``size`` in the first dimension, nothing copied."""
        return [BoxSides(*piece) for piece in zip(*(values.split(size) for values in self), strict=True)]

    def corners(self) -> Float[Tensor, "*B 4"]:
        """The boxes as xyxy again."""
        return torch.stack(self[:4], -1)


Measure = Callable[[BoxSides, BoxSides], Tensor]


@door
def sides_of(boxes: Shaped[Tensor, "*B 4"]) -> BoxSides:
    """Boxes xyxy (..., 4) as :class:`BoxSides` (...), promoted and bounded; a NaN box counts as (0, 0, 0, 0).

    Raises ValueError where the last dimension is not 4.

    >>> sides_of(torch.tensor([[1.0, 2, 4, 4], [torch.nan, 2, 4, 4]])).area
    tensor([6., 0.])
    """
    return bounded_sides(as_boxes(boxes, function="sides_of"))


def bounded_sides(boxes: Float[Tensor, "*B 4"]) -> BoxSides:
    """:func:`sides_of` boxes of a promoted type that were checked before."""
    limit = coordinate_limit(boxes.dtype)
    columns = boxes.movedim(-1, 0).contiguous().clamp(-limit, limit)
    return BoxSides.of(*columns.masked_fill(columns.sum(0).isnan(), 0).unbind(0))


@door
def intersection_and_union(a: BoxSides, b: BoxSides) -> tuple[Float[Tensor, "*B"], Float[Tensor, "*B"]]:
    """The area that both boxes cover, and the area that at least one covers.

    >>> intersection_and_union(*(sides_of(torch.tensor(box)) for box in ([0.0, 0, 2, 2], [1.0, 1, 3, 3])))
    (tensor(1.), tensor(7.))
    """
    width = (torch.minimum(a.x2, b.x2) - torch.maximum(a.x1, b.x1)).relu()
    height = (torch.minimum(a.y2, b.y2) - torch.maximum(a.y1, b.y1)).relu()
    intersection = width * height
    return intersection, (a.area + b.area) - intersection


@door
def hull(a: BoxSides, b: BoxSides) -> tuple[Float[Tensor, "*B"], Float[Tensor, "*B"]]:
    """Width and height of the smallest box around both, at least 0.

    >>> hull(*(sides_of(torch.tensor(box)) for box in ([0.0, 0, 2, 2], [1.0, 1, 5, 3])))
    (tensor(5.), tensor(3.))
    """
    width = torch.maximum(a.x2, b.x2) - torch.minimum(a.x1, b.x1)
    height = torch.maximum(a.y2, b.y2) - torch.minimum(a.y1, b.y1)
    return width.relu(), height.relu()


@door
def ratio(numerator: Float[Tensor, "*#B"], denominator: Float[Tensor, "*#B"]) -> Float[Tensor, "*B"]:
    """``numerator / denominator``, and 0 with gradient 0 where the denominator is not safely positive.

    That is: where it is at most 64 times the smallest normal number (1e-36 in float32), below which a ratio is not
    accurate. So neither values nor gradients become NaN, and no epsilon bends the result. The numerator is finite.

    >>> ratio(torch.tensor([1.0, 0.0, 3.0]), torch.tensor([4.0, 0.0, -1.0]))
    tensor([0.2500, 0.0000, 0.0000])
    """
    return numerator / torch.threshold(denominator, smallest_union(denominator.dtype), math.inf)


@door
def iou(a: BoxSides, b: BoxSides) -> Float[Tensor, "*B"]:
    """Intersection over union, in [0, 1].

    >>> iou(*(sides_of(torch.tensor(box)) for box in ([0.0, 0, 2, 2], [0.0, 0, 4, 2])))
    tensor(0.5000)
    """
    return ratio(*intersection_and_union(a, b))


@door
def giou(a: BoxSides, b: BoxSides) -> Float[Tensor, "*B"]:
    """IoU minus the share of the enclosing box that neither covers, in [-1, 1].

    Source: Rezatofighi et al. 2019, Algorithm 1.

    >>> giou(*(sides_of(torch.tensor(box)) for box in ([0.0, 0, 1, 1], [2.0, 0, 3, 1])))
    tensor(-0.3333)
    """
    intersection, union = intersection_and_union(a, b)
    width, height = hull(a, b)
    enclosing = width * height
    return ratio(intersection, union) - ratio((enclosing - union).relu(), enclosing)


@door
def diou(a: BoxSides, b: BoxSides) -> Float[Tensor, "*B"]:
    """IoU minus squared center distance over squared diagonal of the enclosing box, in [-1, 1].

    Source: Zheng et al. 2020, equation 7.

    >>> diou(*(sides_of(torch.tensor(box)) for box in ([0.0, 0, 2, 2], [2.0, 0, 4, 2])))
    tensor(-0.2000)
    """
    diagonal = _diagonal_squared(a, b)
    apart = torch.minimum(_center_distance_squared(a, b), diagonal)  # centers of inverted boxes lie outside their hull
    return iou(a, b) - ratio(apart, diagonal)


@door
def unsquared_diou(a: BoxSides, b: BoxSides) -> Float[Tensor, "*B"]:
    """IoU minus the center distance, not squared, over the squared diagonal: changes with the scale of the boxes.

    >>> unsquared_diou(*(sides_of(torch.tensor(box)) for box in ([0.0, 0, 2, 2], [2.0, 0, 4, 2])))
    tensor(-0.1000)
    """
    squared = _center_distance_squared(a, b)
    apart = squared > 0
    distance = torch.where(apart, torch.where(apart, squared, 1).sqrt(), 0)  # the root has no gradient at 0
    return iou(a, b) - ratio(distance, _diagonal_squared(a, b))


@door
def ciou(a: BoxSides, b: BoxSides) -> Float[Tensor, "*B"]:
    """DIoU minus a penalty for different aspect ratios, in [-1.5, 1].

    The weight alpha of the penalty takes no gradient, as in its authors' code; a box without area has no aspect ratio
    and no penalty. Source: Zheng et al. 2020, equations 8 to 11.

    >>> ciou(*(sides_of(torch.tensor(box)) for box in ([0.0, 0, 2, 2], [0.0, 0, 4, 1])))
    tensor(0.2530)
    """
    penalty = (4 / math.pi**2) * (_aspect_angle(a) - _aspect_angle(b)) ** 2
    penalty = torch.where((a.area > 0) & (b.area > 0), penalty, 0)
    with torch.no_grad():
        alpha = ratio(penalty, 1 - iou(a, b) + penalty).detach()  # no_grad alone lets forward differentiation pass
    return diou(a, b) - alpha * penalty


def smallest_union(dtype: torch.dtype) -> float:
    """Denominators up to this count as 0: a ratio of numbers below it would not be accurate."""
    return 64 * torch.finfo(dtype).tiny


def coordinate_limit(dtype: torch.dtype) -> float:
    """Coordinates count as at most this, so that no area, sum of areas or squared distance overflows."""
    return math.sqrt(torch.finfo(dtype).max) / 8


def _center_distance_squared(a: BoxSides, b: BoxSides) -> Tensor:
    dx = ((a.x1 + a.x2) - (b.x1 + b.x2)) / 2
    dy = ((a.y1 + a.y2) - (b.y1 + b.y2)) / 2
    return dx * dx + dy * dy


def _diagonal_squared(a: BoxSides, b: BoxSides) -> Tensor:
    width, height = hull(a, b)
    return width * width + height * height


def _aspect_angle(a: BoxSides) -> Tensor:
    width, height = (torch.where(a.area > 0, side, 1) for side in (a.width, a.height))
    larger = torch.maximum(width, height).detach()  # the angle's gradient squares the sides
    return torch.atan2(width / larger, height / larger)
