"""RoIAlign over a feature pyramid in plain operators: the cells of all levels in one list, read by their numbers."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


def plain_pyramid_roi_align(
    features: Sequence[Float[Tensor, "B D _ _"]],
    rois: Float[Tensor, "M 5"],
    levels: Int[Tensor, " M"],
    scales: Sequence[float],
    size: int,
    sampling_ratio: int,
) -> Float[Tensor, "M D S S"]:
    """What the operator behind :class:`~detkit.boxes.PyramidRoIAlign` reads; equal up to the order of sums.

    Raises ValueError for ``sampling_ratio=0``, as many points as cells: their number depends on the box.

    >>> features = [torch.arange(4.0).reshape(1, 1, 1, 4)]
    >>> rois, levels = torch.tensor([[0.0, 0, 0, 3, 1]]), torch.tensor([0])
    >>> plain_pyramid_roi_align(features, rois, levels, [1.0], 1, 2)
    tensor([[[[1.5000]]]])
    """
    if sampling_ratio < 1:
        raise ValueError(
            f"plain: PyramidRoIAlign has sampling_ratio={sampling_ratio}, as many points as cells, whose number "
            "depends on the box; allowed is at least 1"
        )
    own = _Levels(features, levels.clamp(min=0))
    scale = own.of(rois, scales)[:, None]
    y = _points(rois[:, 2:3] * scale, rois[:, 4:5] * scale, size, sampling_ratio)
    x = _points(rois[:, 1:2] * scale, rois[:, 3:4] * scale, size, sampling_ratio)
    rows, columns = _cells(y, own.heights[:, None]), _cells(x, own.widths[:, None])
    first = own.first + rois[:, 0].to(torch.int64) * own.heights * own.widths
    result = own.cells.new_zeros(())
    for row, row_weight in rows:
        for column, column_weight in columns:
            index = first[:, None, None] + row[:, :, None] * own.widths[:, None, None] + column[:, None]
            weight = row_weight[:, :, None] * column_weight[:, None]
            result = result + own.cells.index_select(0, index.flatten()) * weight.flatten()[:, None]
    bins = result.reshape(-1, size, sampling_ratio, size, sampling_ratio, own.cells.shape[1]).mean((2, 4))
    return torch.where((levels >= 0)[:, None, None, None], bins.permute(0, 3, 1, 2), 0)


class _Levels:
    """The cells of all levels as rows (cells, D), and of each roi's level: first row, height and width."""

    def __init__(self, features: Sequence[Tensor], levels: Int[Tensor, " M"]) -> None:
        self.levels = levels
        self.cells = torch.cat([level.permute(0, 2, 3, 1).flatten(0, 2) for level in features])
        counts = [level.shape[0] * level.shape[2] * level.shape[3] for level in features]
        self.first = self.of(levels, [sum(counts[:i]) for i in range(len(counts))])
        self.heights, self.widths = (self.of(levels, [level.shape[side] for level in features]) for side in (2, 3))

    def of(self, like: Tensor, values: Sequence[Any]) -> Tensor:
        """The entry of ``values`` for the level of each roi, of the type of ``like``."""
        return torch.stack([like.new_full((), value) for value in values]).index_select(0, self.levels)


def _points(low: Float[Tensor, "M 1"], high: Float[Tensor, "M 1"], size: int, ratio: int) -> Float[Tensor, "M P"]:
    """Where a side is read: ``ratio`` points in each of ``size`` bins."""
    width = (high - low).clamp(min=1) / size
    order = torch.arange(size * ratio, device=low.device)
    return low + (order // ratio).to(low) * width + ((order % ratio).to(low) + 0.5) * width / ratio


def _cells(points: Float[Tensor, "M P"], count: Int[Tensor, "M 1"]) -> list[tuple[Tensor, Tensor]]:
    """The two cells around each point of a side of ``count`` cells, and their weights; 0 beyond a cell outside."""
    outside = (points < -1) | (points > count)
    points = points.clamp(min=0)
    low = torch.minimum(points.to(torch.int64), count - 1)
    part = torch.where(low == count - 1, 0, points - low)
    inside = torch.where(outside, 0, 1).to(points)
    return [(low, (1 - part) * inside), (torch.minimum(low + 1, count - 1), part * inside)]
