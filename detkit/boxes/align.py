"""RoIAlign as an operator: each box read from one of several maps.

On a processor that is a sparse matrix (bins.py) or torchvision's kernel, whichever should be faster for a map; on a
device the kernel reads every box from every map. Which boxes are read from a map depends on values, so this is a custom
op: compiled and exported code sees one node with a known shape, and its gradient is another node.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from detkit.boxes.bins import Bins

FARTHEST_CELL = 2.0**20  # the kernel holds cells in 32-bit integers
_MOST_ENTRIES = 1 << 19  # of a matrix: some 20 MB
_MOST_CELLS = 1 << 14  # of several images that are read by one matrix
_CHANNELS = 64  # whose gradients are taken at once: what they come from stays in the cache
_CALLS = 1 << 18  # nanoseconds that a matrix costs beside its entries


def align(
    maps: Sequence[Float[Tensor, "B D _ _"]],
    rois: Float[Tensor, "M 5"],
    levels: Int[Tensor, " M"],
    scales: Sequence[float],
    *,
    size: tuple[int, int],
    sampling_ratio: int,
    aligned: bool = False,
) -> Float[Tensor, "M D S1 S2"]:
    """The values of rois (image, x1, y1, x2, y2) in pixels, each in the map that ``levels`` names; of -1: zeros.

    ``scales`` turn pixels into the cells of each map. Images are in 0..B-1, levels below the number of maps, corners
    finite and at most :data:`FARTHEST_CELL` cells away; rois and maps are of one type.

    >>> rois, levels = torch.tensor([[0.0, 0, 0, 3, 1]]), torch.tensor([0])
    >>> align([torch.arange(4.0).view(1, 1, 1, 4)], rois, levels, [1.0], size=(1, 3), sampling_ratio=1)
    tensor([[[[0.5000, 1.5000, 2.5000]]]])
    """
    return torch.ops.detkit.roi_align(maps, rois, levels, scales, size, sampling_ratio, aligned)


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
    return align(maps, windows, levels, [1.0] * len(maps), size=(size, size), sampling_ratio=1)


class _Reading(NamedTuple):
    """How boxes are cut: into ``height`` x ``width`` bins of ``ratio`` points a side, 0 or less: as many as cells."""

    height: int
    width: int
    ratio: int
    aligned: bool

    def by_matrix(self, shape: Sequence[int], channels_last: bool, count: int, *, turned: bool = True) -> bool:
        """Whether the matrix is faster for ``count`` boxes, by estimates of what the values cost, in nanoseconds.

        ``turned``: it needs the channels of a cell side by side, as the gradient of few boxes does not.
        """
        channels, turning = shape[1], 3 * math.prod(shape)
        reads = count * self.height * self.width * (2 * self.ratio) ** 2
        groups = min(-(-shape[0] // _together(shape[2:])), count)
        matrix = _CALLS * groups + reads * (8 + channels / 8) + turning * (turned and not channels_last)
        kernel = reads * channels + turning * channels_last
        return self.ratio > 0 and matrix < kernel

    def boxes_at_once(self) -> int:
        """How many boxes one matrix may hold."""
        return max(_MOST_ENTRIES // max(self.height * self.width * (2 * self.ratio) ** 2, 1), 1)

    def blocks(self, rois: Float[Tensor, "R 5"], scale: float, shape: Sequence[int]) -> Iterator[tuple[slice, Bins]]:
        """The matrices of all rois, a few at a time."""
        boxes, size = torch.cat((rois[:, :1], rois[:, 1:] * scale), dim=1), (self.height, self.width)
        for start in range(0, len(rois), self.boxes_at_once()):
            own = slice(start, start + self.boxes_at_once())
            yield own, Bins(boxes[own], shape, size=size, ratio=self.ratio, aligned=self.aligned)

    def kernel(self, feature: Float[Tensor, "B D _ _"], rois: Tensor, scale: float) -> Float[Tensor, "R D _ _"]:
        return torch.ops.torchvision.roi_align(feature, rois, scale, self.height, self.width, self.ratio, self.aligned)

    def kernel_gradient(self, gradient: Tensor, rois: Tensor, scale: float, shape: Sequence[int]) -> Tensor:
        return torch.ops.torchvision._roi_align_backward(
            gradient.contiguous(), rois, scale, self.height, self.width, *shape, self.ratio, self.aligned
        )


@torch.library.custom_op("detkit::roi_align", mutates_args=())
def _pool(
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    scales: Sequence[float],
    size: Sequence[int],
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    height, width = size
    reading = _Reading(height, width, sampling_ratio, aligned)
    if not _on_processor(rois):
        result = features[0].new_zeros((len(rois), features[0].shape[1], *size))
        for level, (feature, scale) in enumerate(zip(features, scales, strict=True)):
            own = (levels == level)[:, None, None, None]
            result = torch.where(own, reading.kernel(feature, rois, scale), result)
        return result
    result = features[0].new_empty((len(rois), features[0].shape[1], *size))
    result[levels < 0] = 0
    for level, (feature, scale) in enumerate(zip(features, scales, strict=True)):
        rows = (levels == level).nonzero().squeeze(1)
        if not len(rows):
            continue
        if not reading.by_matrix(feature.shape, _is_channels_last(feature), len(rows)):
            result.index_copy_(0, rows, reading.kernel(feature, rois[rows], scale))
            continue
        for own, maps, moved in _groups(rois, rows, feature.detach()):  # embedding_bag prepares no gradient then
            cells = maps.permute(0, 2, 3, 1).flatten(0, 2).contiguous()  # of a view it is ten times as slow
            for some, bins in reading.blocks(moved, scale, (len(maps), *maps.shape[2:])):
                values = bins.read(cells).view(-1, *size, cells.shape[1])
                result.index_copy_(0, own[some], values.permute(0, 3, 1, 2))
    return result


@_pool.register_fake
def _(
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    scales: Sequence[float],
    size: Sequence[int],
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    return features[0].new_empty((rois.shape[0], features[0].shape[1], *size))


def _groups(
    rois: Tensor, rows: Int[Tensor, " R"], maps: Float[Tensor, "B D _ _"]
) -> Iterator[tuple[Int[Tensor, " S"], Float[Tensor, "G D _ _"], Float[Tensor, "S 5"]]]:
    """As many images together as are small: the rows that are read from them, their maps, and the rois in these."""
    together = _together(maps.shape[2:])
    groups = rois[rows, 0].to(torch.int64) // together
    counts = torch.bincount(groups).tolist()
    for group, own in enumerate(rows[groups.argsort(stable=True)].split(counts)):
        if len(own):
            first = group * together
            yield own, maps[first : first + together], rois[own] - (torch.arange(5) < 1).to(rois) * first


def _together(sides: Sequence[int]) -> int:
    """How many images of this size are read by one matrix."""
    return max(_MOST_CELLS // max(math.prod(sides), 1), 1)


def _on_processor(tensor: Tensor) -> bool:
    """A device would have to wait for the number of each map's rois, and so reads all of them from each."""
    return tensor.device.type == "cpu"


def _is_channels_last(feature: Float[Tensor, "B D _ _"]) -> bool:
    """Whether the channels of a cell lie side by side, as they never do in the gradients of a device's kernel."""
    return _on_processor(feature) and feature.is_contiguous(memory_format=torch.channels_last)


@torch.library.custom_op("detkit::roi_align_backward", mutates_args=())
def _unpool(
    gradient: Tensor,
    rois: Tensor,
    levels: Tensor,
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
    shapes: Sequence[int],
    channels_last: Sequence[bool],
) -> list[Tensor]:
    """``shapes``: four numbers for each level, since the features are not kept; ``channels_last``: their order."""
    _, _, height, width = gradient.shape
    reading, results = _Reading(height, width, sampling_ratio, aligned), []
    nowhere = (torch.arange(5, device=rois.device) > 0).to(rois) * -FARTHEST_CELL  # outside of the first image
    for level, (shape, last, scale) in enumerate(zip(_by_four(shapes), channels_last, scales, strict=True)):
        here = levels == level
        rows = here.nonzero().squeeze(1) if _on_processor(gradient) else None
        turned = rows is not None and len(rows) > reading.boxes_at_once()
        if rows is not None and reading.by_matrix(shape, last, len(rows), turned=turned):
            results.append(_empty(gradient, shape, last).zero_())
            for own, maps, moved in _groups(rois, rows, results[-1]):
                _spread(reading, gradient, own, moved, scale, maps)
            continue
        if rows is None or 2 * len(rows) > len(here):  # a copy of most of the gradient would double it
            incoming, boxes = gradient, torch.where(here[:, None], rois, nowhere)
        else:
            incoming, boxes = gradient[rows], rois[rows]
        found = reading.kernel_gradient(incoming, boxes, scale, shape)
        results.append(found.contiguous(memory_format=_order(last)))
        del incoming  # before that of the next level
    return results


def _spread(
    reading: _Reading, gradient: Tensor, rows: Tensor, rois: Tensor, scale: float, maps: Float[Tensor, "G D _ _"]
) -> None:
    """Write the gradient of some rows to that of the maps of a group of images, which is 0 so far."""
    by_cell, by_bin = maps.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)
    blocks = ((rows[some], bins.transposed()) for some, bins in reading.blocks(rois, scale, by_cell.shape[:3]))
    if not by_cell.is_contiguous() and len(rois) <= reading.boxes_at_once():  # one matrix: each cell is written once
        ((own, matrix),) = blocks
        read, area = matrix.read.long(), maps[0, 0].numel()
        image, place = read // area, read % area
        for channels, incoming in zip(maps.split(_CHANNELS, dim=1), by_bin.split(_CHANNELS, dim=3), strict=True):
            channels.flatten(2)[image, :, place] = matrix.gradient(incoming[own].flatten(0, 2).contiguous())
        return
    cells = by_cell if by_cell.is_contiguous() else torch.zeros_like(by_cell, memory_format=torch.contiguous_format)
    for own, matrix in blocks:
        cells.flatten(0, 2).index_add_(0, matrix.read, matrix.gradient(by_bin[own].flatten(0, 2).contiguous()))
    if cells is not by_cell:
        by_cell.copy_(cells)


@_unpool.register_fake
def _(
    gradient: Tensor,
    rois: Tensor,
    levels: Tensor,
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
    shapes: Sequence[int],
    channels_last: Sequence[bool],
) -> list[Tensor]:
    return [_empty(gradient, shape, last) for shape, last in zip(_by_four(shapes), channels_last, strict=True)]


def _by_four(shapes: Sequence[int]) -> list[Sequence[int]]:
    return [shapes[start : start + 4] for start in range(0, len(shapes), 4)]


def _empty(like: Tensor, shape: Sequence[int], channels_last: bool) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=_order(channels_last))


def _order(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _keep(ctx, inputs, output) -> None:
    features, rois, levels, scales, _, sampling_ratio, aligned = inputs
    shapes = [side for feature in features for side in feature.shape]
    ctx.settings = scales, sampling_ratio, aligned, shapes, [_is_channels_last(feature) for feature in features]
    ctx.save_for_backward(rois, levels)


def _backward(ctx, gradient: Tensor):
    gradients = torch.ops.detkit.roi_align_backward(gradient.contiguous(), *ctx.saved_tensors, *ctx.settings)
    return gradients, *[None] * 6


_pool.register_autograd(_backward, setup_context=_keep)
