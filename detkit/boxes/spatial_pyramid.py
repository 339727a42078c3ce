"""Spatial pyramid pooling as a part that stages pool regions with."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from detkit._door import door
from detkit._inputs import as_tensor, promote
from detkit._ranges import Count, Positive
from detkit.boxes.pooling import spatial_pyramid_pool


class SpatialPyramidPool(nn.Module):
    """Reads each box from the last feature map as :func:`spatial_pyramid_pool` does: vectors of one length.

    ``stride`` is that of the map, in pixels. A region has ``cells`` numbers a channel, the sum of l * l over
    ``levels``: 46 of (1, 3, 6), which are the 11,776 features of 256 channels. Raises ValueError for levels below 1, or
    none.

    >>> pool = SpatialPyramidPool(stride=16)
    >>> pool([torch.zeros(2, 256, 13, 13)], torch.tensor([[[0.0, 0, 60, 60]], [[0, 0, 99, 90]]])).shape, pool.cells
    (torch.Size([2, 11776]), 46)
    """

    @door
    def __init__(self, levels: Sequence[Count] = (1, 3, 6), *, stride: Positive) -> None:
        super().__init__()
        if not levels:
            raise ValueError("SpatialPyramidPool: levels is empty; allowed is at least one number")
        self.levels, self.stride = tuple(levels), stride

    @property
    def cells(self) -> int:
        """Numbers that a region has of each channel."""
        return sum(level * level for level in self.levels)

    @door
    def forward(
        self,
        features: Sequence[Float[Tensor, "B _ _ _"]],
        boxes: Float[Tensor, "B K 4"],
        rows: Int[Tensor, " M"] | None = None,
    ) -> Float[Tensor, "M F"]:
        """Vectors (B * K, F) of all boxes xyxy in image pixels; of the flat ``rows`` of B * K only, where given.

        Nothing is read for a box that is not finite: its values are 0.
        """
        boxes = promote(as_tensor(boxes, function="SpatialPyramidPool", name="boxes", form="XYXY").detach())
        images = torch.arange(boxes.shape[0], device=boxes.device).repeat_interleave(boxes.shape[1])
        flat = torch.cat((images[:, None].to(boxes.dtype), boxes.flatten(0, 1) / self.stride), dim=1)
        return spatial_pyramid_pool(features[-1], flat if rows is None else flat.index_select(0, rows), self.levels)

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"{self.levels}, stride={self.stride}"
