"""RoIAlign over a feature pyramid: every box is read (align.py) from the one level whose cells suit its size."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from detkit._door import door
from detkit._inputs import as_tensor, promote
from detkit._ranges import Count, Positive, Whole
from detkit.boxes.align import FARTHEST_CELL, align


class PyramidRoIAlign(nn.Module):
    """Reads S x S values for each box from the pyramid level that suits its size.

    A box of ``canonical_size`` pixels (the square root of its area) is read from level ``canonical_level``, counted so
    that level l has stride 2**l; half the size is one level finer. Levels that are not there give way to the nearest.
    ``strides`` are those of the levels, finest first, powers of 2; ``sampling_ratio`` points in each direction are
    averaged for a value, 0: as many as cells. Source: Lin et al. 2017, "Feature Pyramid Networks", equation 1;
    He et al. 2017, section 3 ("RoIAlign"), without the half-pixel offset, as torchvision.

    Raises ValueError for an output size below 1, and for strides that are not powers of 2, rising by 2.

    >>> pool = PyramidRoIAlign(7, strides=(4, 8))
    >>> features = [torch.zeros(2, 16, 32, 32), torch.zeros(2, 16, 16, 16)]
    >>> pool(features, torch.tensor([[[0.0, 0, 60, 60]], [[0, 0, 99, 90]]])).shape
    torch.Size([2, 16, 7, 7])
    """

    @door
    def __init__(
        self,
        output_size: Count,
        *,
        strides: Sequence[Count],
        sampling_ratio: Whole = 2,
        canonical_size: Positive = 224,
        canonical_level: Whole = 4,
    ) -> None:
        super().__init__()
        levels = [math.log2(stride) for stride in strides]
        if not levels or any(level != levels[0] + i or level % 1 for i, level in enumerate(levels)):
            raise ValueError(f"PyramidRoIAlign: strides={tuple(strides)}; allowed are powers of 2, each twice the last")
        self.output_size, self.sampling_ratio, self.strides = output_size, sampling_ratio, tuple(strides)
        self.canonical_size, self.canonical_level = canonical_size, canonical_level

    @door
    def forward(
        self,
        features: Sequence[Float[Tensor, "B _ _ _"]],
        boxes: Float[Tensor, "B K 4"],
        rows: Int[Tensor, " M"] | None = None,
    ) -> Float[Tensor, "M D S S"]:
        """Values (B * K, D, S, S) of all boxes xyxy in image pixels; of the flat ``rows`` of B * K only, where given.

        ``features`` has a level for each stride (further levels are not read). Half precision comes back as it came.
        Nothing is read for a box that is not finite: its values are 0. Raises ValueError for too few levels, and where
        features and boxes differ in the number of images.
        """
        if len(features) < len(self.strides):
            raise ValueError(f"PyramidRoIAlign: got {len(features)} feature levels for {len(self.strides)} strides")
        boxes = as_tensor(boxes, function="PyramidRoIAlign", name="boxes", form="XYXY")
        if features[0].shape[0] != boxes.shape[0]:
            raise ValueError(
                f"PyramidRoIAlign: boxes are of {boxes.shape[0]} images; allowed are the {features[0].shape[0]} of "
                "features"
            )
        images = torch.arange(boxes.shape[0], device=boxes.device).repeat_interleave(boxes.shape[1])
        flat = boxes.detach().flatten(0, 1)
        if rows is not None:
            images, flat = images.index_select(0, rows), flat.index_select(0, rows)
        maps = [promote(level) for level in features[: len(self.strides)]]
        finite = torch.isfinite(flat).all(1)
        flat = torch.where(finite[:, None], flat, 0).to(maps[0].dtype)
        rois = torch.cat((images[:, None].to(flat), self._bounded(flat, maps[0])), dim=1)
        levels = torch.where(finite, self.levels_of(flat), -1)
        scales = [1 / stride for stride in self.strides]
        size = (self.output_size, self.output_size)
        pooled = align(maps, rois, levels, scales, size=size, sampling_ratio=self.sampling_ratio)
        return pooled.to(features[0].dtype)

    @door
    def levels_of(self, boxes: Shaped[Tensor, "*B 4"]) -> Int[Tensor, "*B"]:
        """The level that each box is read from, as an index into ``strides``.

        >>> PyramidRoIAlign(7, strides=(4, 8, 16, 32)).levels_of(torch.tensor([[0.0, 0, 224, 224], [0, 0, 111, 112]]))
        tensor([2, 0])
        """
        boxes = promote(as_tensor(boxes, function="PyramidRoIAlign.levels_of", name="boxes", form="XYXY"))
        sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
        size = (sides[..., 0] * sides[..., 1]).sqrt()
        level = torch.floor(self.canonical_level + torch.log2(size / self.canonical_size) + 1e-6)
        finest = round(math.log2(self.strides[0]))
        return level.nan_to_num(finest).clamp(finest, finest + len(self.strides) - 1).to(torch.int64) - finest

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"{self.output_size}, strides={self.strides}, sampling_ratio={self.sampling_ratio}"

    def _bounded(self, boxes: Float[Tensor, "M 4"], finest: Float[Tensor, "B D _ _"]) -> Float[Tensor, "M 4"]:
        """Corners held to where the kernel is safe; as many points as cells are bounded by the size of the map only."""
        if self.sampling_ratio > 0:
            return boxes.clamp(-FARTHEST_CELL * self.strides[0], FARTHEST_CELL * self.strides[0])
        height, width = (boxes.new_full((), side * self.strides[0]) for side in finest.shape[2:])
        sides = torch.stack((width, height, width, height))
        return boxes.clamp(-sides, 2 * sides)
