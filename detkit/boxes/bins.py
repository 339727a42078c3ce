"""RoIAlign as a sparse matrix: each bin of a box is a weighted sum of the cells around its points.

On a processor this is one ``embedding_bag`` over the cells, whose rows are channels side by side; its gradient is the
same product with the matrix transposed. torchvision's kernel walks the channels one after another instead.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag


def bin_points(
    low: Float[Tensor, "M 1"], high: Float[Tensor, "M 1"], size: int, ratio: int, aligned: bool = False
) -> Float[Tensor, "M P"]:
    """Where a side from ``low`` to ``high`` cells is read: ``ratio`` points in each of ``size`` bins.

    ``aligned`` moves the side by half a cell, and reads an inverted one backwards; without, it is at least one cell
    long.

    >>> bin_points(torch.tensor([[0.0]]), torch.tensor([[8.0]]), 2, 2)
    tensor([[1., 3., 5., 7.]])
    """
    low, length = (low - 0.5, high - low) if aligned else (low, (high - low).clamp(min=1))
    width = length / size
    order = torch.arange(size * ratio, device=low.device)
    return low + (order // ratio).to(low) * width + ((order % ratio).to(low) + 0.5) * width / ratio


def cells_around(points: Float[Tensor, "M P"], count: Int[Tensor, "M 1"] | int) -> list[tuple[Tensor, Tensor]]:
    """The two cells around each point of a side of ``count`` cells, and their weights.

    The weights are 0 for a point more than one cell outside.

    >>> cells_around(torch.tensor([[1.25, 9.0]]), 4)
    [(tensor([[1, 3]]), tensor([[0.7500, 0.0000]])), (tensor([[2, 3]]), tensor([[0.2500, 0.0000]]))]
    """
    outside = (points < -1) | (points > count)
    points = points.clamp(min=0)
    low = points.to(torch.int64).clamp(max=count - 1)
    part = torch.where(low == count - 1, 0, points - low)
    inside = torch.where(outside, 0, 1).to(points)
    return [(low, (1 - part) * inside), ((low + 1).clamp(max=count - 1), part * inside)]


class Bins:
    """Bins (height, width) of boxes (image, x1, y1, x2, y2), in cells: the cells that each reads, and their weights.

    ``shape`` is that of the maps: images, height and width; the rest as in :func:`bin_points`.

    >>> bins = Bins(torch.tensor([[0.0, 0, 0, 4, 2]]), (1, 2, 4), size=(1, 1), ratio=2)
    >>> bins.read(torch.arange(8.0)[:, None])
    tensor([[5.]])
    >>> cells = bins.transposed()
    >>> cells.read[0], cells.gradient(torch.ones(1, 1))[0]
    (tensor(1, dtype=torch.int32), tensor([0.1250]))
    """

    def __init__(
        self,
        boxes: Float[Tensor, "M 5"],
        shape: Sequence[int],
        *,
        size: tuple[int, int],
        ratio: int,
        aligned: bool = False,
    ) -> None:
        _, height, width = shape
        image, x1, y1, x2, y2 = (column[:, None] for column in boxes.unbind(1))
        rows, row_weights = _side(bin_points(y1, y2, size[0], ratio, aligned), height, ratio)
        columns, column_weights = _side(bin_points(x1, x2, size[1], ratio, aligned), width, ratio)
        rows = (rows + image.to(torch.int32)[:, None] * height) * width
        index = rows[:, :, None, :, None] + columns[:, None, :, None, :]
        weight = (row_weights / ratio**2)[:, :, None, :, None] * column_weights[:, None, :, None, :]
        self.index, self.weight = index.flatten(3).flatten(0, 2), weight.flatten(3).flatten(0, 2)

    def read(self, cells: Float[Tensor, "N D"]) -> Float[Tensor, "M_S_S D"]:
        """The value of each bin."""
        return embedding_bag(self.index, cells, per_sample_weights=self.weight, mode="sum")

    def transposed(self) -> "Cells":
        """The same matrix, cell by cell."""
        places, order = self.index.flatten().sort()
        read, counts = places.unique_consecutive(return_counts=True)
        return Cells(read, order // self.index.shape[1], self.weight.flatten()[order], counts.cumsum(0) - counts)


class Cells(NamedTuple):
    """The cells that are read at all, and the bins that read them, cell after cell from ``starts`` on, with weights."""

    read: Int[Tensor, " R"]
    bins: Int[Tensor, " E"]
    weights: Float[Tensor, " E"]
    starts: Int[Tensor, " R"]

    def gradient(self, incoming: Float[Tensor, "M_S_S D"]) -> Float[Tensor, "R D"]:
        """The gradient of each, from that of each bin."""
        return embedding_bag(self.bins, incoming, self.starts, per_sample_weights=self.weights, mode="sum")


def _side(points: Float[Tensor, "M P"], count: int, ratio: int) -> tuple[Int[Tensor, "M S C"], Float[Tensor, "M S C"]]:
    """The cells that each bin of a side reads, and their weights."""
    around = zip(*cells_around(points, count), strict=True)
    index, weight = (torch.stack(own, dim=2).unflatten(1, (-1, ratio)).flatten(2) for own in around)
    return index.to(torch.int32), weight
