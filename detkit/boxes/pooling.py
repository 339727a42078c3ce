"""Feature maps read inside boxes: RoIPool and spatial pyramids on torchvision's kernels, RoIAlign mostly on ours.

Boxes come in any of three forms: (K, 5) rows of image index and xyxy, as torchvision takes them; a list of (N, 4), one
entry for each image; or padded (B, K, 4), which gives B * K results. Nothing is read for a box that is not finite: its
result is 0.
"""

from collections.abc import Sequence
from numbers import Integral
from typing import Annotated

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from detkit._door import door
from detkit._inputs import as_boxes, as_tensor, first_bad, full_checks, is_transformed, promote
from detkit._ranges import Count, Positive, Range
from detkit._sent import sent_numbers
from detkit.boxes.align import FARTHEST_CELL, align

BoxesOfImages = Tensor | Sequence[Tensor]


@door
def roi_pool(
    features: Shaped[Tensor, "B D H W"],
    boxes: BoxesOfImages,
    output_size: Count | tuple[Count, Count],
    spatial_scale: Positive = 1.0,
) -> Float[Tensor, "M D S1 S2"]:
    """The largest value in each of ``output_size`` (height, width) bins of every box.

    features: (B, D, H, W); boxes: (K, 5), a list of (N, 4) or (B, K, 4), in pixels that ``spatial_scale`` turns into
    cells. Corners are rounded to cells, and both are part of the box; an empty bin is 0. The result has the type of
    floating features, else the promoted one. Raises ValueError for other shapes, an output size below 1, a scale that
    is not positive, and (on the CPU; elsewhere the result is 0) an image index that is not in the batch.
    Source: Girshick 2015, "Fast R-CNN", section 2.1.

    >>> features = torch.arange(16.0).reshape(1, 1, 4, 4)
    >>> roi_pool(features, [torch.tensor([[0.0, 0, 20, 20], [0, 10, 30, 30]])], 2, spatial_scale=0.1).tolist()
    [[[[5.0, 6.0], [9.0, 10.0]]], [[[9.0, 11.0], [13.0, 15.0]]]]
    """
    function = "roi_pool"
    size = _output_size(output_size)
    maps, rois, usable = _rois(features, boxes, function)
    limit = rois.new_full((), FARTHEST_CELL / spatial_scale)
    pooled, _ = torch.ops.torchvision.roi_pool(maps, _near(rois, -limit, limit), spatial_scale, *size)
    return _masked(pooled, usable, features)


@door
def roi_align(
    features: Shaped[Tensor, "B D H W"],
    boxes: BoxesOfImages,
    output_size: Count | tuple[Count, Count],
    spatial_scale: Positive = 1.0,
    sampling_ratio: Annotated[int, Range(-1)] = -1,
    aligned: bool = False,
) -> Float[Tensor, "M D S1 S2"]:
    """The mean of points, read bilinearly, in each of ``output_size`` (height, width) bins of every box.

    features: (B, D, H, W); boxes: (K, 5), a list of (N, 4) or (B, K, 4), in pixels that ``spatial_scale`` turns into
    cells. ``sampling_ratio`` points are read in each direction of a bin, -1: as many as it covers cells. ``aligned``
    moves boxes by half a cell, so that the value of a cell stands at its middle; an inverted box is then read
    backwards, or is 0 with as many points as cells. The result has the type of floating features, else the promoted
    one. With -1, corners farther outside than the map is large are moved to there: the number of points of such a box
    has no bound. Raises ValueError as :func:`roi_pool` does.
    Source: He et al. 2017, "Mask R-CNN", section 3.

    >>> roi_align(torch.arange(4.0).reshape(1, 1, 1, 4), torch.tensor([[0.0, 0, 0, 3, 1]]), (1, 3)).tolist()
    [[[[0.5, 1.5, 2.5]]]]
    """
    function = "roi_align"
    size = _output_size(output_size)
    maps, rois, usable = _rois(features, boxes, function)
    if sampling_ratio > 0:
        limit = rois.new_full((), FARTHEST_CELL / spatial_scale)
        low, high = -limit, limit
    else:
        extent = _sides(rois, maps).repeat(2) / spatial_scale
        low, high = -extent, 2 * extent
    near = _near(rois, low, high)
    if sampling_ratio < 1 and aligned:  # the kernel counts the cells of an inverted box, and raises
        near = torch.cat((near[:, :3], torch.maximum(near[:, 3:], near[:, 1:3])), dim=1)
    traced = torch.compiler.is_compiling()
    if sampling_ratio < 1 or (not traced and (maps.device.type != "cpu" or is_transformed())):
        pooled = torch.ops.torchvision.roi_align(maps, near, spatial_scale, *size, sampling_ratio, aligned)
    else:
        levels = torch.zeros_like(usable, dtype=torch.int64)
        pooled = align([maps], near, levels, [spatial_scale], size=size, sampling_ratio=sampling_ratio, aligned=aligned)
    return _masked(pooled, usable, features)


@door
def spatial_pyramid_pool(
    features: Shaped[Tensor, "B D H W"],
    boxes: BoxesOfImages | None = None,
    levels: Sequence[Count] = (1, 3, 6),
    *,
    transpose_xy: bool = False,
) -> Float[Tensor, "M F"]:
    """The largest values in grids of l x l bins, for each l of ``levels``, as one vector whatever the size of the box.

    features: (B, D, H, W); boxes: None for whole maps, which gives (B, F), or windows in *cells*, (K, 5), a list of
    (N, 4) or (B, K, 4), as :func:`project_to_cells` makes them: from x1 rounded down to x2 rounded up, not included, at
    least one cell inside the map. F is D * sum of l * l: 11,776 for 256 channels; level after level, of each the
    channels one after another. Bins are those of adaptive max pooling. ``transpose_xy`` reads x as rows and y as
    columns, as the code of the course does. Raises ValueError as :func:`roi_pool` does.
    Source: He et al. 2014, "Spatial Pyramid Pooling", section 2.2; there {1, 2, 3, 6}.

    >>> spatial_pyramid_pool(torch.zeros(2, 256, 13, 13)).shape
    torch.Size([2, 11776])
    >>> spatial_pyramid_pool(torch.arange(6.0).reshape(1, 1, 2, 3), torch.tensor([[0, 0, 0, 2, 2]]), (1, 2))
    tensor([[4., 0., 1., 3., 4.]])
    """
    function = "spatial_pyramid_pool"
    if not levels:
        raise ValueError(f"{function}: levels={tuple(levels)} must be at least one number")
    _check_features(features, function)
    if boxes is None:
        sides = _sides(features.new_empty(0, dtype=torch.float32), features)
        boxes = torch.cat((torch.zeros_like(sides), sides)).expand(len(features), 1, 4)
    maps, rois, usable = _rois(features, boxes, function)
    windows = _windows(rois[:, 1:], _sides(rois, maps), transpose_xy)
    # Each bin is a box of its own, of one bin: bins of several are cut in floating point, where 7 / 7 may be above 1.
    bins = torch.cat([_bins(windows, level) for level in levels], dim=1)
    images = rois[:, :1, None].expand(-1, bins.shape[1], 1)
    flat = torch.cat((images, bins.to(rois)), dim=2).flatten(0, 1)
    values, _ = torch.ops.torchvision.roi_pool(maps, flat, 1.0, 1, 1)
    split = values.reshape(len(rois), bins.shape[1], maps.shape[1]).split([level * level for level in levels], dim=1)
    pooled = torch.cat([level.transpose(1, 2).flatten(1) for level in split], dim=1)
    return _masked(pooled, usable, features)


@door
def project_to_cells(
    boxes: Shaped[Tensor, "... 4"],
    size: tuple[Positive, Positive] | Shaped[Tensor, "*#batch 2"],
    *,
    input_size: Count = 224,
    stride: Count = 16,
    cells: Count = 13,
) -> Int[Tensor, "... 4"]:
    """The cells of a ``cells`` x ``cells`` map that see a box: x1, y1, and x2, y2 that are not included.

    boxes: (..., 4) xyxy in pixels of an image of ``size`` (height, width), or a tensor (..., 2) with one size for each
    box that broadcasts. The image is taken to be resized to ``input_size`` x ``input_size`` for a network of this
    ``stride``: 224, 16 and 13 are the fifth layer of AlexNet and of ZF. Every result holds at least one cell.
    Raises ValueError for another shape, and a size or setting that is not positive.
    Source: the course code of neural codes; in the spirit of He et al. 2014, appendix A.

    >>> project_to_cells(torch.tensor([[0, 0, 640, 480], [100, 50, 300, 200]]), (480, 640)).tolist()
    [[0, 0, 13, 13], [1, 1, 7, 6]]
    """
    function = "project_to_cells"
    boxes = as_boxes(boxes, function=function)
    height_width = size.to(boxes) if isinstance(size, Tensor) else sent_numbers(size, boxes.device, dtype=boxes.dtype)
    if height_width.ndim == 0 or height_width.shape[-1] != 2:
        raise ValueError(f"{function}: size is {size}; allowed is (height, width), or a tensor (..., 2)")
    width_height = height_width.flip(-1)
    scaled = boxes * input_size / torch.cat((width_height, width_height), dim=-1)
    start = _nearest_cell(scaled[..., :2].floor() + 1, stride, cells) - 1
    stop = _nearest_cell(scaled[..., 2:].ceil() + 1, stride, cells)
    return torch.cat((start, torch.maximum(stop, start + 1)), dim=-1)


def _nearest_cell(pixels: Tensor, stride: int, cells: int) -> Int[Tensor, "... 2"]:
    """Cells counted from 1."""
    return ((pixels + stride / 2) / stride).floor().clamp(1, cells).nan_to_num(1).to(torch.int64)


def _windows(boxes: Tensor, limit: Float[Tensor, "2"], transpose_xy: bool) -> Int[Tensor, "M 4"]:
    """First cell and the cell behind the last, x and y, of each box."""
    boxes = boxes[:, [1, 0, 3, 2]] if transpose_xy else boxes
    start = boxes[:, :2].floor().clamp(boxes.new_zeros(()), limit - 1).to(torch.int64)
    stop = boxes[:, 2:].ceil().minimum(limit).to(torch.int64)
    return torch.cat((start, torch.maximum(stop, start + 1)), dim=1)


def _sides(like: Tensor, maps: Tensor) -> Float[Tensor, "2"]:
    """Width and height of the maps; not by new_tensor, which would fix them in exported code."""
    return torch.stack((like.new_full((), maps.shape[3]), like.new_full((), maps.shape[2])))


def _bins(windows: Int[Tensor, "M 4"], level: int) -> Int[Tensor, "M L 4"]:
    """Adaptive pooling's bins of each window, row after row, as boxes that hold their last cell."""
    start, sides = windows[:, None, :2], (windows[:, 2:] - windows[:, :2])[:, None]
    steps = torch.arange(level, device=windows.device)[:, None]
    first = start + steps * sides // level
    last = start - (-(steps + 1) * sides // level) - 1
    x = torch.stack((first[..., 0], last[..., 0]), dim=-1)[:, None].expand(-1, level, -1, -1)
    y = torch.stack((first[..., 1], last[..., 1]), dim=-1)[:, :, None].expand(-1, -1, level, -1)
    return torch.stack((x, y), dim=-1).flatten(3).flatten(1, 2)


def _rois(features: Tensor, boxes: BoxesOfImages, function: str) -> tuple[Tensor, Tensor, Tensor]:
    """The promoted maps, rows (M, 5) that the kernels may read, and which rows had been such."""
    _check_features(features, function)
    maps = promote(features)
    images, corners = _by_row(boxes, len(features), function)
    corners = corners.to(maps)
    known = (images >= 0) & (images < len(features))
    if full_checks() or (corners.device.type == "cpu" and not torch.compiler.is_compiling()):
        _check_images(images, known, len(features), function)
    usable = known & torch.isfinite(corners).all(1)
    rois = torch.cat((images.to(maps)[:, None], corners), dim=1)
    return maps, torch.where(usable[:, None], rois, 0), usable


def _by_row(boxes: BoxesOfImages, batch: int, function: str) -> tuple[Shaped[Tensor, " M"], Float[Tensor, "M 4"]]:
    """The image and the corners of each box."""
    if not isinstance(boxes, Tensor):
        rows = [_rows_of_image(own, i, function) for i, own in enumerate(boxes)]
        if len(rows) != batch:
            raise ValueError(f"{function}: boxes has {len(rows)} entries; allowed is one for each of {batch} images")
        if not rows:
            return torch.zeros(0), torch.zeros(0, 4)
        images = [own.new_full((len(own),), i) for i, own in enumerate(rows)]
        return torch.cat(images), torch.cat(rows)
    boxes = as_tensor(boxes, function=function, name="boxes", form="XYXY")
    if boxes.ndim == 2 and boxes.shape[1] == 5:
        return promote(boxes)[:, 0], as_boxes(boxes[:, 1:], function=function)
    if boxes.ndim == 3 and boxes.shape[0] == batch and boxes.shape[2] == 4:
        images = torch.arange(batch, device=boxes.device).repeat_interleave(boxes.shape[1])
        return images, as_boxes(boxes.flatten(0, 1), function=function)
    if boxes.ndim <= 2 and boxes.shape[0] == 0:
        return boxes.new_zeros(0), boxes.new_zeros(0, 4)
    raise ValueError(
        f"{function}: boxes has shape {tuple(boxes.shape)}; allowed is (K, 5), ({batch}, K, 4) or a list of (N, 4)"
    )


def _rows_of_image(boxes: Tensor, image: int, function: str) -> Tensor:
    boxes = as_boxes(boxes, function=function, name=f"boxes[{image}]")
    if boxes.ndim != 2:
        raise ValueError(f"{function}: boxes[{image}] has shape {tuple(boxes.shape)}; allowed is (N, 4)")
    return boxes


def _check_images(images: Tensor, known: Tensor, batch: int, function: str) -> None:
    if not known.all():
        (row,), count = first_bad(~known)
        raise ValueError(
            f"{function}: boxes[{row}] is of image {images[row].item():g}; allowed is 0..{batch - 1}; {count} outside"
        )


def _check_features(features: Tensor, function: str) -> None:
    if features.ndim != 4 or 0 in features.shape[1:]:
        raise ValueError(f"{function}: features has shape {tuple(features.shape)}; allowed is (B, D, H, W) with values")


def _output_size(size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, Integral) else size  # pyright: ignore[reportGeneralTypeIssues]
    return int(height), int(width)


def _near(rois: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Rows with their corners held to where a kernel's arithmetic is safe."""
    return torch.cat((rois[:, :1], rois[:, 1:].clamp(low, high)), dim=1)


def _masked(pooled: Tensor, usable: Tensor, features: Tensor) -> Tensor:
    pooled = torch.where(usable.reshape(-1, *(1,) * (pooled.ndim - 1)), pooled, 0)
    return pooled.to(features.dtype) if features.is_floating_point() else pooled
