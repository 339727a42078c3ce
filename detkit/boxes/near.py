"""Which of many boxes are near enough to overlap by a given IoU, found without comparing all with all.

Of two boxes with IoU above t, the widths differ by a factor of at most 1/t, the heights too, and the centers lie at
most (1-t)/(1+t) times the mean width (height) apart: each side is an interval, and the IoU of the sides bounds that of
the boxes. So boxes are put into cells: one for each power of 1/t in width and in height, and for each step of the
center that fits such sizes. A box then has its partners in its own, the next smaller and the next larger sizes (nine
kinds of cells), and there within a few steps. Cells along x follow each other in one table, so that a row of cells is
one range of it. The table is a hash: cells that fall together only add pairs, which the caller's exact test discards.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from detkit.boxes.measures import BoxSides

_SLOTS = 16  # slots of the table for each box: with fewer more strangers meet, more do not fit the cache
_ROUNDING = 1e-5  # a computed IoU may be above t where the exact one is a little below
_LARGEST = 0.99  # nearer to 1 every size would be a level of its own
_ULP = 2.0**-51  # how far a center in float64 may be rounded, relative to itself
_MOST_ROWS = 4  # of cells that a box may reach into; two, but for rounding
_PRIMES = (73856093, 19349663, 83492791)


def near_pairs(
    boxes: BoxSides, others: BoxSides, threshold: float, *, most: float = math.inf
) -> tuple[Int[Tensor, "P"], Int[Tensor, "P"]] | None:
    """Index pairs (into ``boxes``, into ``others``) among which all with IoU above ``threshold`` are, and some more.

    All boxes have an area; ``threshold`` in (0, 1]. Pairs may come twice; where ``others is boxes`` a pair may come in
    one order only. None where there are more than ``most``, and where the boxes are so small, so far from the origin,
    that rounding spreads each over many cells.

    >>> from detkit.boxes import sides_of
    >>> boxes = sides_of(torch.tensor([[0.0, 0, 9, 9], [0, 1, 9, 10], [500, 0, 509, 9]]))
    >>> first, second = near_pairs(boxes, boxes, 0.5)
    >>> sorted({(i, j) for i, j in zip(first.tolist(), second.tolist()) if i != j})
    [(0, 1), (1, 0)]
    """
    if 0 in (len(boxes.area), len(others.area)):
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    cells = _Cells(min(threshold, _LARGEST) * (1 - _ROUNDING), others)
    larger_only = others is boxes  # the other half of the pairs is found from the other side
    ranges = cells.ranges(boxes, wider=(0, 1) if larger_only else (-1, 0, 1))
    if ranges is None:
        return None
    starts, counts, order = ranges
    places = counts.nonzero().squeeze(1)
    starts, counts = starts.index_select(0, places), counts.index_select(0, places)
    total = int(counts.sum())
    if total > most:
        return None
    owner = torch.repeat_interleave(torch.arange(len(places)), counts, output_size=total)
    entry = (starts - counts.cumsum(0) + counts).index_select(0, owner).add_(torch.arange(total))
    return (places % len(boxes.area)).index_select(0, owner), order.index_select(0, entry)


class _Interval(NamedTuple):
    """Cells of one axis, of several levels, that a box has partners in: from ``low`` to ``high``, empty if lower."""

    level: Int[Tensor, "A N"]
    low: Int[Tensor, "A N"]
    high: Int[Tensor, "A N"]


class _Cells:
    """Boxes sorted by the slot of their cell. Arrays of two rows hold x and y."""

    def __init__(self, threshold: float, boxes: BoxSides) -> None:
        self.threshold, self.ratio = threshold, 1 / threshold
        self.reach = (1 - threshold) / (1 + threshold) / 2  # of the sum of two sides
        # A cell is so high that a box reaches into two rows at most; along x, where ranges are free, cells are finer.
        self.steps = [2 * self.reach * self.ratio, 2 * self.reach * self.ratio * (self.ratio + 1)]
        (x, y), sides = _centers_and_sides(boxes)
        levels = self._levels(sides)
        self.lowest, self.highest = int(levels.amin()), int(levels.amax())
        exponents = torch.arange(self.lowest, self.highest + 1, dtype=torch.float64)
        self.powers = self.ratio**exponents
        wide, high = levels
        column = (x / (self.steps[0] * self.powers[wide - self.lowest])).floor().to(torch.int64)
        row = (y / (self.steps[1] * self.powers[high - self.lowest])).floor().to(torch.int64)
        self.mask = (1 << (_SLOTS * max(len(x), _SLOTS)).bit_length()) - 1
        slots = (_hash(wide, high, row) + column) & self.mask
        self.order = slots.argsort()
        self.starts = torch.cat((slots.new_zeros(1), slots.bincount(minlength=self.mask + 1).cumsum(0)))

    def ranges(
        self, boxes: BoxSides, *, wider: tuple[int, ...]
    ) -> tuple[Int[Tensor, "R"], Int[Tensor, "R"], Int[Tensor, "M"]] | None:
        """Starts and counts of ranges in the returned order; range r belongs to box r modulo their number.

        ``wider`` lists how many levels wider partners may be. None where boxes reach into more than a few rows.
        """
        centers, sides = _centers_and_sides(boxes)
        levels = self._levels(sides)
        columns = self._interval(0, centers[0], sides[0], levels[0], wider)
        rows = self._interval(1, centers[1], sides[1], levels[1], (-1, 0, 1))
        spans = (columns.high - columns.low + 1).clamp(0, self.mask)
        height = int((rows.high - rows.low).amax()) + 1
        if height > _MOST_ROWS:
            return None
        row = rows.low[:, None] + torch.arange(height)[:, None]
        slots = _hash(columns.level[:, None, None], rows.level[:, None], row) + columns.low[:, None, None]
        slots &= self.mask
        around = int(spans.amax())  # a range may run over the end of the table: its beginning is repeated there
        table = torch.cat((self.starts, self.starts[1 : around + 1] + len(self.order)))
        order = torch.cat((self.order, self.order[: self.starts[around]]))
        starts = table.index_select(0, slots.flatten())
        ends = table.index_select(0, (slots + spans[:, None, None]).flatten())
        counts = torch.where(row <= rows.high[:, None], (ends - starts).view(slots.shape), 0)
        return starts, counts.flatten(), order

    def _levels(self, sides: Float[Tensor, "2 N"]) -> Int[Tensor, "2 N"]:
        return (sides.log() / math.log(self.ratio)).floor().to(torch.int64)

    def _interval(self, axis: int, center: Tensor, side: Tensor, level: Tensor, offsets: tuple[int, ...]) -> _Interval:
        level = level + torch.tensor(offsets)[:, None]
        present = (level >= self.lowest) & (level <= self.highest)
        level = level.clamp(self.lowest, self.highest)
        power = self.powers[level - self.lowest]
        largest = torch.minimum(power * self.ratio, side * self.ratio)
        reach = (side + largest) * self.reach + center.abs() * _ULP
        step = self.steps[axis] * power
        low = ((center - reach) / step).floor()
        high = torch.where(present, ((center + reach) / step).floor(), low - 1)
        return _Interval(level, low.to(torch.int64), high.to(torch.int64))


def _centers_and_sides(boxes: BoxSides) -> tuple[Float[Tensor, "2 N"], Float[Tensor, "2 N"]]:
    low, high = torch.stack((boxes.x1, boxes.y1)).double(), torch.stack((boxes.x2, boxes.y2)).double()
    return (low + high) / 2, high - low


def _hash(wide: Tensor, high: Tensor, row: Tensor) -> Tensor:
    return (wide * _PRIMES[0]) ^ (high * _PRIMES[1]) ^ (row * _PRIMES[2])
