"""RoIAlign over a feature pyramid: every box is read from the one level whose cells suit its size.

The work is torchvision's kernel, once a level, on the boxes of that level. Which boxes those are depends on values, so
this is a custom op: compiled and exported code sees one node with a known shape, and its gradient is another.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from detkit._door import door
from detkit._inputs import as_tensor, promote
from detkit._ranges import Count, Positive, Whole

_FARTHEST_CELL = 2.0**20  # the kernel holds cells in 32-bit integers


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
        pooled = torch.ops.detkit.pyramid_roi_align(maps, rois, levels, scales, self.output_size, self.sampling_ratio)
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
            return boxes.clamp(-_FARTHEST_CELL * self.strides[0], _FARTHEST_CELL * self.strides[0])
        height, width = (boxes.new_full((), side * self.strides[0]) for side in finest.shape[2:])
        sides = torch.stack((width, height, width, height))
        return boxes.clamp(-sides, 2 * sides)


def read_cells(
    maps: Sequence[Float[Tensor, "B D _ _"]], windows: Float[Tensor, "M 5"], levels: Int[Tensor, " M"], size: int
) -> Float[Tensor, "M D S S"]:
    """The cells in windows of ``size`` x ``size`` cells: RoIAlign with one point in the middle of each.

    ``windows`` are (image, x1, y1, x2, y2) in cells of the map that ``levels`` names. What is outside a map is
    arbitrary.

    >>> windows = torch.tensor([[0.0, 0.5, 0.5, 2.5, 2.5]])
    >>> read_cells([torch.arange(9.0).view(1, 1, 3, 3)], windows, torch.tensor([0]), 2)
    tensor([[[[4., 5.],
              [7., 8.]]]])
    """
    return torch.ops.detkit.pyramid_roi_align(maps, windows, levels, [1.0] * len(maps), size, 1)


@torch.library.custom_op("detkit::pyramid_roi_align", mutates_args=())
def _pool(
    features: Sequence[Tensor], rois: Tensor, levels: Tensor, scales: Sequence[float], size: int, sampling_ratio: int
) -> Tensor:
    result = features[0].new_zeros((rois.shape[0], features[0].shape[1], size, size))
    for level, (feature, scale) in enumerate(zip(features, scales, strict=True)):
        settings, rows = (scale, size, size, sampling_ratio, False), _rows_of(level, levels)
        if rows is None:
            own = torch.ops.torchvision.roi_align(feature, rois, *settings)
            result = torch.where(_column(levels == level), own, result)
        elif rows.numel():
            result.index_copy_(0, rows, torch.ops.torchvision.roi_align(feature, rois[rows], *settings))
    return result


def _rows_of(level: int, levels: Tensor) -> Tensor | None:
    """The rois of a level; None on a device, which would have to wait for their number, and so looks at all of them."""
    return (levels == level).nonzero().squeeze(1) if levels.device.type == "cpu" else None


def _column(mask: Tensor) -> Tensor:
    return mask[:, None, None, None]


@_pool.register_fake
def _(
    features: Sequence[Tensor], rois: Tensor, levels: Tensor, scales: Sequence[float], size: int, sampling_ratio: int
) -> Tensor:
    return features[0].new_empty((rois.shape[0], features[0].shape[1], size, size))


@torch.library.custom_op("detkit::pyramid_roi_align_backward", mutates_args=())
def _unpool(
    gradient: Tensor, rois: Tensor, levels: Tensor, shapes: Sequence[int], scales: Sequence[float], sampling_ratio: int
) -> list[Tensor]:
    """``shapes`` are those of the features, four numbers for each level: the features themselves need not be kept."""
    size, results = gradient.shape[-1], []
    nowhere = (torch.arange(5, device=rois.device) > 0).to(rois) * -_FARTHEST_CELL  # outside of the first image
    for level, (shape, scale) in enumerate(zip(_by_four(shapes), scales, strict=True)):
        rows = _rows_of(level, levels)
        if rows is None or 2 * len(rows) > len(levels):  # a copy of most of the gradient would double it
            own, boxes = gradient, torch.where((levels == level)[:, None], rois, nowhere)
        else:
            own, boxes = gradient[rows], rois[rows]
        arguments = (scale, size, size, *shape, sampling_ratio, False)
        results.append(torch.ops.torchvision._roi_align_backward(own, boxes, *arguments))
        del own  # before that of the next level
    return results


@_unpool.register_fake
def _(
    gradient: Tensor, rois: Tensor, levels: Tensor, shapes: Sequence[int], scales: Sequence[float], sampling_ratio: int
) -> list[Tensor]:
    return [gradient.new_empty(shape) for shape in _by_four(shapes)]


def _by_four(shapes: Sequence[int]) -> list[Sequence[int]]:
    return [shapes[start : start + 4] for start in range(0, len(shapes), 4)]


def _keep(ctx, inputs, output) -> None:
    features, rois, levels, ctx.scales, _, ctx.sampling_ratio = inputs
    ctx.shapes = [side for feature in features for side in feature.shape]
    ctx.save_for_backward(rois, levels)


def _backward(ctx, gradient: Tensor):
    rois, levels = ctx.saved_tensors
    gradients = torch.ops.detkit.pyramid_roi_align_backward(
        gradient.contiguous(), rois, levels, ctx.shapes, ctx.scales, ctx.sampling_ratio
    )
    return gradients, None, None, None, None, None


_pool.register_autograd(_backward, setup_context=_keep)
