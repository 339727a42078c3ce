"""IoU of many pairs at the least cost: what box_iou does where no gradient is asked for, and what suppression runs on.

Boxes are *mirrored* first: (-x1, -y1, x2, y2). The corner of an intersection nearest to the origin is a maximum, the
other one a minimum; of mirrored sides both are minima, so one operation takes all four, and one addition of its halves
gives width and height. Work goes in blocks that stay in the cache, in place: eight passes over a block instead of
fourteen over memory. No step rounds otherwise than the plain formula in iou.py: results are equal bit for bit.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_BLOCK = 1 << 17  # pairs worked on at a time: a block's buffers fit the cache, a block is worth two threads


class Mirrored(NamedTuple):
    """Boxes for comparing: sides (4, N) as -x1, -y1, x2, y2, bounded so that no area overflows; area (N,)."""

    sides: Float[Tensor, "4 N"]
    area: Float[Tensor, "N"]

    def take(self, rows: Int[Tensor, "M"]) -> "Mirrored":
        """The boxes at these places."""
        return Mirrored(self.sides.index_select(1, rows), self.area.index_select(0, rows))

    def cut(self, start: int, stop: int) -> "Mirrored":
        """The boxes from one place to another, nothing copied."""
        return Mirrored(self.sides[:, start:stop], self.area[start:stop])

    def corners(self) -> Float[Tensor, "N 4"]:
        """The boxes as xyxy again."""
        return torch.cat((-self.sides[:2], self.sides[2:])).T


def smallest_union(dtype: torch.dtype) -> float:
    """Unions up to this are read as empty: a ratio of numbers below it would not be accurate."""
    return 64 * torch.finfo(dtype).tiny


def coordinate_limit(dtype: torch.dtype) -> float:
    """Coordinates count as at most this, so that no area, sum of areas or squared distance overflows."""
    return math.sqrt(torch.finfo(dtype).max) / 8


def mirror(boxes: Float[Tensor, "N 4"]) -> Mirrored:
    """Boxes xyxy as :class:`Mirrored`.

    >>> mirror(torch.tensor([[1.0, 2, 4, 4]]))
    Mirrored(sides=tensor([[-1.], [-2.], [ 4.], [ 4.]]), area=tensor([6.]))
    """
    limit = coordinate_limit(boxes.dtype)
    sides = boxes.T.clamp(-limit, limit).contiguous()
    sides[:2].neg_()
    spans = (sides[:2] + sides[2:]).clamp_(min=0)
    return Mirrored(sides, spans[0] * spans[1])


def is_plain(boxes: Mirrored) -> bool:
    """True where no box is NaN or so small that its unions are read as empty: what the functions below need."""
    smallest = torch.where(boxes.area == 0, torch.inf, boxes.area).amin() if len(boxes.area) else torch.inf
    return bool(smallest > smallest_union(boxes.area.dtype))  # a NaN area is the minimum, and compares False


def iou_matrix(rows: Mirrored, columns: Mirrored) -> Float[Tensor, "N M"]:
    """IoU (N, M) of every pair of plain boxes.

    >>> iou_matrix(mirror(torch.tensor([[0.0, 0, 2, 2]])), mirror(torch.tensor([[1.0, 1, 3, 3], [5, 5, 5, 5]])))
    tensor([[0.1429, 0.0000]])
    """
    (height, width), smallest = (len(rows.area), len(columns.area)), smallest_union(rows.area.dtype)
    result = rows.area.new_empty(height, width)
    if 0 in (height, width):
        return result
    parts = -(-width // _BLOCK)
    wide = -(-width // parts)
    high = min(height, max(1, _BLOCK // wide))
    buffer = result.new_empty(4, high, wide)
    bands = list(zip(rows.sides[:, :, None].split(high, 1), rows.area[:, None].split(high), strict=True))
    for left in range(0, width, wide):
        sides, areas = columns.sides[:, None, left : left + wide], columns.area[left : left + wide]
        outputs = result[:, left : left + wide].split(high)
        for (band, band_areas), output in zip(bands, outputs, strict=True):
            block = buffer[:, : output.shape[0], : output.shape[1]]
            torch.minimum(band, sides, out=block)
            block[:2].add_(block[2:]).clamp_(min=0)
            intersection, union = block[0].mul_(block[1]), torch.add(band_areas, areas, out=block[2])
            union.sub_(intersection).clamp_(min=smallest)
            torch.div(intersection, union, out=output)
    return result


def paired_above(boxes1: Mirrored, boxes2: Mirrored, threshold: float) -> Bool[Tensor, "N"]:
    """Whether the IoU of each of plain ``boxes1`` with its partner in ``boxes2`` is above ``threshold``.

    >>> boxes = mirror(torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1]]))
    >>> paired_above(boxes, boxes.take(torch.tensor([0, 0])), 0.5)
    tensor([ True, False])
    """
    sides = torch.minimum(boxes1.sides, boxes2.sides)
    spans = sides[:2].add_(sides[2:]).clamp_(min=0)
    intersection = spans[0].mul_(spans[1])
    union = (boxes1.area + boxes2.area).sub_(intersection).clamp_(min=smallest_union(sides.dtype))
    return intersection.div_(union) > threshold
