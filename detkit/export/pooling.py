"""RoIAlign in plain operators: the cells of all levels in one list, read by their numbers."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from detkit.boxes.bins import bin_points, cells_around


def plain_roi_align(
    features: Sequence[Float[Tensor, "B D _ _"]],
    rois: Float[Tensor, "M 5"],
    levels: Int[Tensor, " M"],
    scales: Sequence[float],
    size: Sequence[int],
    sampling_ratio: int,
    aligned: bool = False,
) -> Float[Tensor, "M D S1 S2"]:
    """What the operator behind :class:`~detkit.boxes.PyramidRoIAlign` and ``roi_align`` reads, up to the order of sums.

    Raises ValueError for ``sampling_ratio=0``, as many points as cells: their number depends on the box.

    >>> features = [torch.arange(4.0).reshape(1, 1, 1, 4)]
    >>> rois, levels = torch.tensor([[0.0, 0, 0, 3, 1]]), torch.tensor([0])
    >>> plain_roi_align(features, rois, levels, [1.0], (1, 1), 2)
    tensor([[[[1.5000]]]])
    """
    if sampling_ratio < 1:
        raise ValueError(
            f"plain: RoIAlign has sampling_ratio={sampling_ratio}, as many points as cells, whose number depends on "
            "the box; allowed is at least 1"
        )
    own = _Levels(features, levels.clamp(min=0))
    scale = own.of(rois, scales)[:, None]
    y = bin_points(rois[:, 2:3] * scale, rois[:, 4:5] * scale, size[0], sampling_ratio, aligned)
    x = bin_points(rois[:, 1:2] * scale, rois[:, 3:4] * scale, size[1], sampling_ratio, aligned)
    rows, columns = cells_around(y, own.heights[:, None]), cells_around(x, own.widths[:, None])
    first = own.first + rois[:, 0].to(torch.int64) * own.heights * own.widths
    result = own.cells.new_zeros(())
    for row, row_weight in rows:
        for column, column_weight in columns:
            index = first[:, None, None] + row[:, :, None] * own.widths[:, None, None] + column[:, None]
            weight = row_weight[:, :, None] * column_weight[:, None]
            result = result + own.cells.index_select(0, index.flatten()) * weight.flatten()[:, None]
    points = result.reshape(-1, size[0], sampling_ratio, size[1], sampling_ratio, own.cells.shape[1])
    bins = points.mean((2, 4))
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
