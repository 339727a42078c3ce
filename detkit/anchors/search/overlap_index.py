"""An index of anchors that finds those with a high IoU without computing the IoU of all pairs.

Anchors are sorted by shape, then along a Z-order curve over their centers, so that 16 neighbors in this order are
mostly a small tile of one grid of equal boxes. 16 anchors are a *leaf*, 16 leaves a *node*. Each leaf and node keeps
its enclosing box, the largest sides and the smallest area: together they bound the IoU of an object with any anchor
inside. A search compares all objects with all nodes, then with the leaves of the nodes that may hold a good anchor, and
computes exact IoUs for the anchors of the leaves that remain: about one pair in two hundred, and none where so many
remain that the matrix of all pairs costs less. The order only affects speed: the bounds hold for any anchors, so the
result is exact for any anchors.
"""

import math
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from detkit.boxes.measures import BoxSides, bounded_sides, iou

Made = TypeVar("Made")

_LEAF = 16
_NODE = 16  # leaves in a node
_PROBES = 4  # nodes of which one leaf is tried before the search
_SLACK = 1 - 1e-5  # rounding of a bound must never hide an anchor
_INEXACT = 1e-30
_OBJECTS_AT_ONCE = 128
_LEAVES_AT_ONCE = 8192  # their overlaps fit a core's cache
_MOST_LEAVES = 2**18
_MOST_SHARE = 1 / 3  # of all pairs of objects and leaves: beyond, the matrix of all IoUs costs less


class Pairs(NamedTuple):
    """Pairs of an object and an anchor that overlap, with their IoU."""

    objects: Int[Tensor, "P"]
    anchors: Int[Tensor, "P"]
    overlaps: Float[Tensor, "P"]


class OverlapIndex:
    """Anchors (N, 4), N at least 1, sorted so that a search can skip nearly all of them.

    >>> from detkit.boxes import sides_of
    >>> index = OverlapIndex(torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60], [0, 0, 10, 9]]))
    >>> index.pairs(sides_of(torch.tensor([[0.0, 0, 10, 10]])), torch.tensor([0.5]))
    Pairs(objects=tensor([0, 0]), anchors=tensor([2, 0]), overlaps=tensor([0.9000, 1.0000]))
    """

    def __init__(self, anchors: Float[Tensor, "N 4"]) -> None:
        self.anchors = anchors
        every = bounded_sides(anchors)
        shapes, order = _neighbors(every)
        places, filling = _whole_nodes(shapes)
        self._order = order[places].view(-1, _LEAF)
        self._members = every.take(self._order)
        self._leaves = _Hulls.around(self._members)
        self._nodes = self._leaves.merged()
        for column in self._members:
            column.view(-1).masked_fill_(filling, 0)  # copies are never found

    def reachable(self, objects: BoxSides) -> Float[Tensor, "M"]:
        """For each object a lower bound of its highest IoU with any anchor, mostly close to it."""
        probes = min(_PROBES, len(self._nodes.area))
        pieces = objects.split(_OBJECTS_AT_ONCE)
        nodes = torch.cat(
            [self._nodes.promise(piece.map(_column)).topk(probes, sorted=False).indices for piece in pieces]
        )
        cube = objects.map(lambda values: values[:, None, None])
        best = self._leaves.children(nodes).promise(cube).argmax(2)
        return iou(cube, self._members.take(nodes * _NODE + best)).float().amax((1, 2))

    def pairs(self, objects: BoxSides, least: Float[Tensor, "M"]) -> Pairs | None:
        """All pairs with an IoU > 0 of at least its object's ``least``; None if there are too many for a search."""
        promising = self._promising(objects, least)
        if promising is None:
            return None
        rows, leaves = promising
        pieces = zip(rows.split(_LEAVES_AT_ONCE), leaves.split(_LEAVES_AT_ONCE), strict=True)
        found = [self._exact(objects, least, *piece) for piece in pieces]
        return Pairs(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    def _promising(self, objects: BoxSides, least: Tensor) -> tuple[Tensor, Tensor] | None:
        """Pairs of an object and a leaf that may hold such an anchor; None once there are too many."""
        found, start, total = [], 0, 0
        for piece, floor in zip(objects.split(_OBJECTS_AT_ONCE), least.split(_OBJECTS_AT_ONCE), strict=True):
            rows, nodes = self._nodes.may_reach(floor[:, None], piece.map(_column)).nonzero().unbind(1)
            leaves = self._leaves.children(nodes).may_reach(floor[rows, None], piece.take(rows).map(_column))
            pairs, children = leaves.nonzero().unbind(1)
            found.append((rows[pairs] + start, nodes[pairs] * _NODE + children))
            start, total = start + len(floor), total + len(pairs)
            if total > min(_MOST_LEAVES, start * len(self._leaves.area) * _MOST_SHARE):
                return None
        rows, leaves = (torch.cat(parts) for parts in zip(*found, strict=True))
        return rows, leaves

    def _exact(self, objects: BoxSides, least: Tensor, rows: Tensor, leaves: Tensor) -> Pairs:
        overlaps = iou(objects.take(rows).map(_column), self._members.take(leaves)).float()
        enough = least.index_select(0, rows)[:, None]
        hits = (overlaps >= enough).logical_and_(overlaps > 0).view(-1).nonzero().squeeze(1)
        pairs = hits // _LEAF
        anchors = _rows(self._order.view(-1), leaves[pairs] * _LEAF + hits % _LEAF)
        return Pairs(rows[pairs], anchors, _rows(overlaps.view(-1), hits))


class _Kept(Generic[Made]):
    """What ``make`` makes of anchors; the last result is cached, as a detector mostly has the same ones in every
    step."""

    def __init__(self, make: Callable[[Tensor], Made]) -> None:
        self._make = make
        self._last: tuple[Tensor, Made] | None = None

    def __call__(self, anchors: Tensor) -> Made:
        last = self._last  # another thread may replace it meanwhile
        if last is None or last[0].dtype != anchors.dtype or not torch.equal(last[0], anchors):
            anchors = anchors.clone()
            self._last = last = anchors, self._make(anchors)
        return last[1]


_kept_index = _Kept(OverlapIndex)
_kept_sides = _Kept(bounded_sides)


def overlap_index(anchors: Float[Tensor, "N 4"]) -> OverlapIndex:
    """The index of ``anchors``, cached.

    >>> anchors = torch.tensor([[0.0, 0, 10, 10]])
    >>> overlap_index(anchors) is overlap_index(anchors.clone())
    True
    """
    return _kept_index(anchors)


def anchor_sides(anchors: Float[Tensor, "N 4"]) -> BoxSides:
    """The sides of ``anchors``, cached: not to be written to.

    >>> anchor_sides(torch.tensor([[0.0, 0, 10, 10]])).area
    tensor([100.])
    """
    return _kept_sides(anchors)


class _Hulls(NamedTuple):
    """The enclosing box, smallest area and largest sides of each group of anchors."""

    x1: Tensor
    y1: Tensor
    area: Tensor
    x2: Tensor
    y2: Tensor
    width: Tensor
    height: Tensor

    @staticmethod
    def around(members: BoxSides) -> "_Hulls":
        """Those of groups (L, 16) of anchors."""
        x1, y1, x2, y2, area = members
        return _Hulls(x1, y1, area, x2, y2, x2 - x1, y2 - y1)._reduced()

    def merged(self) -> "_Hulls":
        """Those of every 16 of these."""
        return _Hulls(*(values.view(-1, _NODE) for values in self))._reduced()

    def children(self, nodes: Int[Tensor, "*P"]) -> "_Hulls":
        """The 16 leaves of each of ``nodes``."""
        return _Hulls(*(_rows(values.view(-1, _NODE), nodes) for values in self))

    def promise(self, objects: BoxSides) -> Tensor:
        """An estimate of the highest IoU inside, lower for mixed shapes, whose bound is loose."""
        shared, union = self._shared_and_union(objects)
        return shared.mul_(self.area / (self.width * self.height)).div_(union).nan_to_num_(0)

    def may_reach(self, least: Tensor, objects: BoxSides) -> Tensor:
        """False where no anchor inside can have an IoU of ``least`` with the object."""
        shared, union = self._shared_and_union(objects)
        least = least.masked_fill(least < _INEXACT, 0)  # rounding of so small a ratio exceeds the slack
        return (shared >= union.mul_(least * _SLACK)).logical_and_(shared > 0)

    def _reduced(self) -> "_Hulls":
        return _Hulls(*(values.amin(1) for values in self[:3]), *(values.amax(1) for values in self[3:]))

    def _shared_and_union(self, objects: BoxSides) -> tuple[Tensor, Tensor]:
        width = torch.minimum(self.x2, objects.x2).sub_(torch.maximum(self.x1, objects.x1))
        height = torch.minimum(self.y2, objects.y2).sub_(torch.maximum(self.y1, objects.y1))
        width = torch.minimum(width, self.width, out=width).clamp_(min=0)
        shared = torch.minimum(height, self.height, out=height).clamp_(min=0).mul_(width)
        return shared, torch.maximum(shared, self.area, out=width).add_(objects.area).sub_(shared)


def _rows(values: Tensor, index: Tensor) -> Tensor:
    return values.index_select(0, index.flatten()).unflatten(0, index.shape)  # faster than values[index]


def _column(values: Tensor) -> Tensor:
    return values[:, None]


def _neighbors(boxes: BoxSides) -> tuple[Int[Tensor, "N"], Int[Tensor, "N"]]:
    """An order with boxes of one shape together and near ones side by side, and the number of each one's shape."""
    shape = [_octave_eighths(high - low) for low, high in ((boxes.x1, boxes.x2), (boxes.y1, boxes.y2))]
    keys, order = ((((shape[0] << 8) | shape[1]).long() << 24) | _curve(boxes)).sort(stable=True)
    return keys >> 24, order


def _curve(boxes: BoxSides) -> Int[Tensor, "N"]:
    """How far along a Z-order curve, 0 to 2 ** 24 - 1, the center of each box lies."""
    place = [_every_other_bit(_cells(low + high)) for low, high in ((boxes.x1, boxes.x2), (boxes.y1, boxes.y2))]
    return (place[0] | (place[1] << 1)).long()


def along_curve(boxes: Float[Tensor, "M 4"]) -> Int[Tensor, "M"]:
    """An order in which boxes of about one size are together, and near ones side by side. None is NaN.

    >>> along_curve(torch.tensor([[0.0, 0, 9, 9], [90, 90, 99, 99], [1, 0, 9, 9], [0, 0, 99, 99]]))
    tensor([0, 2, 1, 3])
    """
    sides = bounded_sides(boxes)
    size = _octave_eighths(torch.maximum(sides.x2 - sides.x1, sides.y2 - sides.y1)) // 8
    return ((size.long() << 24) | _curve(sides)).argsort(stable=True)


def _whole_nodes(shapes: Int[Tensor, "N"]) -> tuple[Int[Tensor, "S"], Bool[Tensor, "S"]]:
    """Places that pad the boxes of each shape to whole nodes by repeating the last one; and which are padding.

    If that would double the places, as with many shapes, only the whole is padded and nodes mix shapes.
    """
    counts = shapes.unique_consecutive(return_counts=True)[1]
    size = _LEAF * _NODE
    if (-counts % size).sum() > len(shapes):
        counts = torch.tensor([len(shapes)])
    ends, filled = counts.cumsum(0), counts + -counts % size
    skipped = (filled.cumsum(0) - filled) - (ends - counts)
    places = torch.arange(int(filled.sum())) - skipped.repeat_interleave(filled)
    last = (ends - 1).repeat_interleave(filled)
    return places.minimum(last), places > last


def _octave_eighths(sides: Tensor) -> Tensor:
    """Lengths on a log scale, 0 to 255, shifted so that powers of two, which rounding may move, are off the steps."""
    return ((sides.clamp(2.0**-15, 2.0**15).log2() + 15) * 8 + 0.2).int()


def _cells(places: Tensor) -> Tensor:
    """Positions on a scale of 0 to 4095 whose step is a power of two, as most strides are."""
    low, high = places.aminmax()
    step = 2.0 ** math.ceil(math.log2(max(float(high - low), 1e-30) / 4095))
    return ((places - low) / step).int()


def _every_other_bit(numbers: Tensor) -> Tensor:
    """Bits 0 to 11 moved to the places 0, 2, 4 ... 22."""
    for shift, mask in ((8, 0x00FF00FF), (4, 0x0F0F0F0F), (2, 0x33333333), (1, 0x55555555)):
        numbers = (numbers | (numbers << shift)) & mask
    return numbers
