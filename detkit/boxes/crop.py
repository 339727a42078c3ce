"""Boxes cut out of images and warped to one size: what R-CNN's network looks at."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from detkit._door import door
from detkit._inputs import as_boxes, as_tensor, promote
from detkit._ranges import Count, Finite, Whole


@door
def crop_and_resize(
    images: Shaped[Tensor, "B D H W"],
    boxes: Shaped[Tensor, "B K 4"],
    output_size: Count,
    *,
    context: Whole = 0,
    fill: Finite = 0.0,
    image_sizes: Shaped[Tensor, "B 2"] | None = None,
) -> Float[Tensor, "M D S S"]:
    """Every box warped to a square of ``output_size`` pixels, whatever its shape, bilinearly, without anti-aliasing.

    images: (B, D, H, W); boxes: (B, K, 4) xyxy in their pixels, which gives M = B * K crops, image after image.
    ``context`` pixels of a crop, on each side, show what surrounds the box (R-CNN: 16 of 227): so the box is enlarged
    about its center by output_size / (output_size - 2 * context). What lies outside the image is ``fill``, 0 being the
    mean of normalized images, as are boxes that are not finite; ``image_sizes`` (B, 2) says where each image ends in
    its padded frame, by default at the frame. The gradient reaches images and boxes. The result has the type of
    floating images, else the promoted one. Raises ValueError for other shapes, an ``output_size`` below 1, and a
    context that is negative or leaves nothing of the box. Source: Girshick et al. 2014, appendix A ("tightest square",
    warped).

    >>> image = torch.arange(16.0).reshape(1, 1, 4, 4)
    >>> crop_and_resize(image, torch.tensor([[[0, 0, 2, 2], [2, 2, 6, 6]]]), 2).tolist()
    [[[[0.0, 1.0], [4.0, 5.0]]], [[[12.5, 0.0], [0.0, 0.0]]]]
    """
    function = "crop_and_resize"
    boxes = as_tensor(boxes, function=function, name="boxes", form="XYXY")
    _check(images, boxes, output_size, context, image_sizes, function)
    values = promote(images)
    boxes = as_boxes(boxes, function=function).to(values)
    frame = torch.stack(
        [values.new_full((), side) for side in images.shape[2:]]
    )  # new_tensor would fix them in exports
    ends = frame if image_sizes is None else image_sizes.to(values)[:, None, None]
    steps = (torch.arange(output_size, device=values.device) + 0.5 - context).to(values) / (output_size - 2 * context)
    x1, y1, x2, y2 = (corner[..., None] for corner in boxes.unbind(-1))
    x, inside_x = _reachable(x1 + (x2 - x1) * steps, ends[..., 1])
    y, inside_y = _reachable(y1 + (y2 - y1) * steps, ends[..., 0])
    shape = (*x.shape, output_size)  # (B, K, S, S), rows before columns
    points = torch.stack((x[..., None, :].expand(shape), y[..., :, None].expand(shape)), dim=-1)
    # One long picture for each image: a grid for each box would need a copy of the image for each box.
    grid = (points * 2 / frame.flip(0) - 1).flatten(1, 2)
    read = F.grid_sample(values, grid, mode="bilinear", align_corners=False)
    crops = read.unflatten(2, (boxes.shape[1], output_size)).transpose(1, 2).flatten(0, 1)
    inside = (inside_x[..., None, :] & inside_y[..., :, None]).flatten(0, 1)[:, None]
    crops = torch.where(inside, crops, fill)
    return crops.to(images.dtype) if images.is_floating_point() else crops


def _reachable(places: Float[Tensor, "B K S"], end: Tensor) -> tuple[Tensor, Tensor]:
    """Places held between the middles of the first and last pixel, and which of them lie in the image."""
    inside = (places >= 0) & (places <= end)
    safe = torch.where(inside, places, 0.5)
    return torch.minimum(safe.clamp(min=0.5), (end - 0.5).clamp(min=0.5)), inside


def _check(
    images: Tensor, boxes: Tensor, output_size: int, context: int, image_sizes: Tensor | None, function: str
) -> None:
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise ValueError(f"{function}: images has shape {tuple(images.shape)}; allowed is (B, D, H, W) with pixels")
    if boxes.ndim != 3 or boxes.shape[0] != images.shape[0] or boxes.shape[2] != 4:
        raise ValueError(f"{function}: boxes has shape {tuple(boxes.shape)}; allowed is ({len(images)}, K, 4)")
    if not context * 2 < output_size:
        raise ValueError(f"{function}: context={context} must be less than half of output_size={output_size}")
    if image_sizes is not None and image_sizes.shape != (len(images), 2):
        raise ValueError(f"{function}: image_sizes has shape {tuple(image_sizes.shape)}; allowed is ({len(images)}, 2)")
