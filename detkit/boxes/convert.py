"""Box formats, areas, centers, and keeping boxes inside an image. Everywhere else in the library a box is xyxy."""

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from detkit._door import door
from detkit._inputs import as_boxes, as_tensor, check_broadcast, promote
from detkit._ranges import NotNegative


@door
def xyxy_to_cxcywh(boxes: Shaped[Tensor, "... 4"]) -> Float[Tensor, "... 4"]:
    """Corners (x1, y1, x2, y2) to center and size (cx, cy, w, h).

    >>> xyxy_to_cxcywh(torch.tensor([10.0, 20, 30, 60]))
    tensor([20., 40., 20., 40.])
    """
    x1, y1, x2, y2 = as_boxes(boxes, function="xyxy_to_cxcywh").unbind(-1)
    return torch.stack(((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1), dim=-1)


@door
def cxcywh_to_xyxy(boxes: Shaped[Tensor, "... 4"]) -> Float[Tensor, "... 4"]:
    """Center and size (cx, cy, w, h) to corners (x1, y1, x2, y2).

    >>> cxcywh_to_xyxy(torch.tensor([20.0, 40, 20, 40]))
    tensor([10., 20., 30., 60.])
    """
    cx, cy, w, h = as_boxes(boxes, function="cxcywh_to_xyxy", form="CXCYWH").unbind(-1)
    return torch.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), dim=-1)


@door
def xyxy_to_xywh(boxes: Shaped[Tensor, "... 4"]) -> Float[Tensor, "... 4"]:
    """Corners (x1, y1, x2, y2) to COCO's top-left corner and size (x, y, w, h).

    >>> xyxy_to_xywh(torch.tensor([10.0, 20, 30, 60]))
    tensor([10., 20., 20., 40.])
    """
    x1, y1, x2, y2 = as_boxes(boxes, function="xyxy_to_xywh").unbind(-1)
    return torch.stack((x1, y1, x2 - x1, y2 - y1), dim=-1)


@door
def xywh_to_xyxy(boxes: Shaped[Tensor, "... 4"]) -> Float[Tensor, "... 4"]:
    """COCO's top-left corner and size (x, y, w, h) to corners (x1, y1, x2, y2).

    >>> xywh_to_xyxy(torch.tensor([10.0, 20, 20, 40]))
    tensor([10., 20., 30., 60.])
    """
    x, y, w, h = as_boxes(boxes, function="xywh_to_xyxy", form="XYWH").unbind(-1)
    return torch.stack((x, y, x + w, y + h), dim=-1)


@door
def pixels_to_fractions(boxes: Shaped[Tensor, "*B N 4"], sizes: Shaped[Tensor, "*B 2"]) -> Float[Tensor, "*B N 4"]:
    """Boxes (..., N, 4) in pixels as fractions of their images, whose ``sizes`` (..., 2) are (height, width).

    For corners and for center and size alike. Raises ValueError where shapes disagree.

    >>> pixels_to_fractions(torch.tensor([[10.0, 20, 30, 60]]), torch.tensor([80, 40]))
    tensor([[0.2500, 0.2500, 0.7500, 0.7500]])
    """
    boxes, sides = _with_sides("pixels_to_fractions", boxes, sizes)
    return boxes / sides


@door
def fractions_to_pixels(boxes: Shaped[Tensor, "*B N 4"], sizes: Shaped[Tensor, "*B 2"]) -> Float[Tensor, "*B N 4"]:
    """The inverse of :func:`pixels_to_fractions`.

    >>> fractions_to_pixels(torch.tensor([[0.25, 0.25, 0.75, 0.75]]), torch.tensor([80, 40]))
    tensor([[10., 20., 30., 60.]])
    """
    boxes, sides = _with_sides("fractions_to_pixels", boxes, sizes)
    return boxes * sides


@door
def box_area(boxes: Shaped[Tensor, "... 4"]) -> Float[Tensor, "..."]:
    """Area of each xyxy box in square pixels; 0 for an inverted box, whichever side is inverted.

    >>> box_area(torch.tensor([[0, 0, 50_000, 50_000]], dtype=torch.int32))
    tensor([2.5000e+09], dtype=torch.float64)
    """
    x1, y1, x2, y2 = as_boxes(boxes, function="box_area").unbind(-1)
    return (x2 - x1).relu() * (y2 - y1).relu()


@door
def box_centers(boxes: Shaped[Tensor, "... 4"]) -> Float[Tensor, "... 2"]:
    """Center (x, y) of each xyxy box.

    >>> box_centers(torch.tensor([[0.0, 0, 10, 4]]))
    tensor([[5., 2.]])
    """
    boxes = as_boxes(boxes, function="box_centers")
    return boxes[..., :2] / 2 + boxes[..., 2:] / 2  # halved first: the sum of huge coordinates would overflow


@door
def points_in_boxes(points: Shaped[Tensor, "*#B 2"], boxes: Shaped[Tensor, "*#B 4"]) -> Bool[Tensor, "*B"]:
    """Whether each point (x, y) lies inside its box, not on its border; leading dimensions broadcast.

    points (..., 2) and xyxy boxes (..., 4). NaN lies nowhere, and nothing inside an inverted box. Raises ValueError
    where shapes disagree.

    >>> points_in_boxes(torch.tensor([[5.0, 2], [5, 4]]), torch.tensor([0.0, 0, 10, 4]))
    tensor([ True, False])
    """
    boxes = as_boxes(boxes, function="points_in_boxes")
    if points.ndim == 0 or points.shape[-1] != 2:
        raise ValueError(f"points_in_boxes: points have shape {tuple(points.shape)}; allowed is (..., 2)")
    check_broadcast("points_in_boxes", "a box for each point", points=points.shape[:-1], boxes=boxes.shape[:-1])
    return ((points > boxes[..., :2]) & (points < boxes[..., 2:])).all(-1)


@door
def clip_boxes_to_image(
    boxes: Shaped[Tensor, "... 4"], size: tuple[NotNegative, NotNegative] | Shaped[Tensor, "*#batch 2"]
) -> Float[Tensor, "... 4"]:
    """Move corners that lie outside the image to its border; a box wholly outside becomes empty, never inverted.

    size: (height, width), or a tensor (..., 2) with one size per image that broadcasts over the boxes: (B, 1, 2) or
    (B, 2) for boxes (B, N, 4).

    >>> clip_boxes_to_image(torch.tensor([[-5.0, 2, 30, 9]]), (8, 20))
    tensor([[ 0.,  2., 20.,  8.]])
    """
    boxes = as_boxes(boxes, function="clip_boxes_to_image")
    if (size.shape[-1:] if isinstance(size, Tensor) else (len(size),)) != (2,):
        shape = tuple(size.shape) if isinstance(size, Tensor) else size
        raise ValueError(f"clip_boxes_to_image: size is {shape}; allowed is (height, width), or a tensor (..., 2)")
    if isinstance(size, Tensor):
        height, width = size.to(boxes).unbind(-1)
        if 0 < height.ndim < boxes.ndim - 1:
            height, width = (side.reshape(side.shape + (1,) * (boxes.ndim - 1 - side.ndim)) for side in (height, width))
    else:
        height, width = (boxes.new_full((), side) for side in size)
    zero = boxes.new_zeros(())
    x1, y1, x2, y2 = boxes.unbind(-1)
    limits = (width, height, width, height)
    return torch.stack([c.clamp(zero, limit) for c, limit in zip((x1, y1, x2, y2), limits, strict=True)], dim=-1)


@door
def remove_small_boxes(boxes: Shaped[Tensor, "N 4"], min_size: NotNegative) -> Int[Tensor, "K"]:
    """Indices of the boxes whose width and height are both at least ``min_size`` pixels, in their order.

    Raises ValueError for a negative or NaN ``min_size``.

    >>> remove_small_boxes(torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 1]]), min_size=2)
    tensor([0])
    """
    boxes = as_boxes(boxes, function="remove_small_boxes")
    if boxes.ndim != 2:
        raise ValueError(f"remove_small_boxes: boxes has shape {tuple(boxes.shape)}; allowed is (N, 4)")
    x1, y1, x2, y2 = boxes.unbind(-1)
    large: Bool[Tensor, "N"] = (x2 - x1 >= min_size) & (y2 - y1 >= min_size)
    return large.nonzero().squeeze(1)


def _with_sides(function: str, boxes: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """The promoted boxes, and width, height, width, height (..., 1, 4) of their images."""
    boxes = promote(as_tensor(boxes, function=function, name="boxes"))  # padding of targets may hold anything
    if boxes.ndim < 2 or boxes.shape[-1] != 4 or sizes.shape != (*boxes.shape[:-2], 2):
        raise ValueError(
            f"{function}: boxes {tuple(boxes.shape)}, sizes {tuple(sizes.shape)}; allowed is (..., N, 4) and (..., 2)"
        )
    return boxes, torch.cat((sizes, sizes), dim=-1).flip(-1).to(boxes)[..., None, :]
