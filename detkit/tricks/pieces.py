"""A piece of one image on the canvas of another: its pixels, and its target by the table of fields.

Pieces are cut at whole pixels of the source and fill whole pixels of the canvas, so boxes follow exactly, and only what
is in view is ever resized.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torchvision.transforms.v2 import functional as v2

from detkit._inputs import promote
from detkit.structures import FIELDS, VOID
from detkit.structures.rows import keep_rows

Rectangle = tuple[int, int, int, int]
"""Top, left, bottom, right in whole pixels; the last two are the first outside."""


class Piece(NamedTuple):
    """Which part of an image is shown, and where."""

    source: Rectangle
    place: Rectangle


class View(NamedTuple):
    """Which objects stay: those with ``min_visible`` of the area of their box in view, and sides of ``min_size``.

    Crowds stay as long as anything of their box is in view, since nothing may be learned there.
    """

    min_visible: float
    min_size: float


def draw_piece(canvas: Shaped[Tensor, "D H W"], image: Shaped[Tensor, "D _ _"], piece: Piece) -> None:
    """Resize the piece into its place on the ``canvas``, bilinear and without aliases.

    >>> canvas = torch.zeros(1, 1, 4)
    >>> draw_piece(canvas, torch.tensor([[[5.0, 6, 7]]]), Piece((0, 1, 1, 3), (0, 2, 1, 4)))
    >>> canvas
    tensor([[[0., 0., 6., 7.]]])
    """
    top, left, bottom, right = piece.place
    _cut(canvas, piece.place).copy_(resized(_cut(image, piece.source), (bottom - top, right - left)))


def resized(image: Shaped[Tensor, "D _ _"], size: tuple[int, int]) -> Shaped[Tensor, "D _ _"]:
    """The image at ``size`` (height, width), bilinear and without aliases, in its type.

    Integers are rounded; bool, which has no gray, becomes float32.

    >>> resized(torch.tensor([[[True, False, False, False]]]), (1, 2))
    tensor([[[0.4286, 0.0000]]])
    """
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    # torch gives uint8 of one column wrong values, torchvision cuts other integers off, and makes all but 0 True.
    if image.dtype.is_floating_point or (image.dtype == torch.uint8 and size[1] > 1):
        return v2.resize(image, [*size], antialias=True)
    part = v2.resize(image.to(torch.float32), [*size], antialias=True)
    return part if image.dtype == torch.bool else part.round_().to(image.dtype)


def place_target(
    target: dict[str, Any], piece: Piece, size: tuple[int, int], *, keys: Iterable[str], view: View
) -> dict[str, Any]:
    """What the target says of the piece, in pixels of a canvas of ``size`` (height, width); objects out of view go.

    With masks, an object without a pixel in view goes, too. ``keys`` are the entries with a row for each object.

    >>> target = {"boxes": torch.tensor([[0.0, 0, 4, 4], [6, 6, 8, 8]]), "labels": torch.tensor([1, 2])}
    >>> piece = Piece((0, 0, 4, 4), (2, 2, 10, 10))
    >>> place_target(target, piece, (10, 10), keys=["boxes", "labels"], view=View(0.1, 1.0))
    {'boxes': tensor([[ 2.,  2., 10., 10.]]), 'labels': tensor([1])}
    """
    keys = [*keys]
    before, whole = promote(target["boxes"]), _onto(target["boxes"], piece)
    boxes, crowd = _clipped(whole, piece.place), crowds(target)
    keep = in_view(whole, boxes, view, crowd=crowd)
    placed = keep_rows(target, keep, keys)
    for key in placed.keys() & FIELDS.keys():
        moves, values = FIELDS[key].moves, placed[key]
        if moves == "boxes":
            placed[key] = boxes[keep]
        elif moves == "points":
            placed[key] = _placed_points(values, piece)
        elif moves in ("masks", "map"):
            placed[key] = _placed_pixels(values, piece, size, fill=VOID if moves == "map" else 0)
        elif moves == "areas":
            placed[key] = promote(values) * (_area(boxes) / _area(before))[keep]
    if "masks" not in placed:
        return placed
    seen = placed["masks"].flatten(1).any(1).bool() | crowd[keep]
    placed = placed if bool(seen.all()) else keep_rows(placed, seen, keys)
    return placed | mask_areas(placed)


def in_view(
    whole: Float[Tensor, "T 4"], boxes: Float[Tensor, "T 4"], view: View, *, crowd: Bool[Tensor, " T"]
) -> Bool[Tensor, " T"]:
    """Which of the ``whole`` objects stay when ``boxes`` are what is left of their boxes.

    >>> whole, left = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[0.0, 0, 10, 4]])
    >>> [in_view(whole, left, View(share, 1.0), crowd=torch.tensor([False])).item() for share in (0.4, 0.5)]
    [True, False]
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    enough = (sides >= view.min_size).all(1) & (_area(boxes) >= view.min_visible * _area(whole))
    return (sides > 0).all(1) & (enough | crowd)


def crowds(target: dict[str, Any]) -> Bool[Tensor, " T"]:
    """Which rows are regions of many objects.

    >>> crowds({"boxes": torch.zeros(2, 4), "iscrowd": torch.tensor([1, 0])})
    tensor([ True, False])
    """
    boxes = target["boxes"]
    return target["iscrowd"].bool() if "iscrowd" in target else boxes.new_zeros(len(boxes), dtype=torch.bool)


def mask_areas(target: dict[str, Any]) -> dict[str, Any]:
    """The target's entries that hold areas, as its masks have them.

    >>> mask_areas({"area": torch.tensor([9]), "masks": torch.ones(1, 2, 3)})
    {'area': tensor([6.])}
    """
    keys = [key for key in target if key in FIELDS and FIELDS[key].moves == "areas"]
    return {key: target["masks"].bool().flatten(1).sum(1).to(torch.float32) for key in keys}


def nearest_pixels(length: int, start: int, stop: int, device: torch.device) -> Int[Tensor, " length"]:
    """The source pixel under the center of each of ``length`` pixels that show those from ``start`` to ``stop``.

    In whole numbers, so that every device says the same.

    >>> nearest_pixels(4, 10, 12, torch.device("cpu"))
    tensor([10, 10, 11, 11])
    """
    return start + (2 * torch.arange(length, device=device) + 1) * (stop - start) // (2 * length)


def _cut(pixels: Tensor, rectangle: Rectangle) -> Tensor:
    top, left, bottom, right = rectangle
    return pixels[..., top:bottom, left:right]


def _onto(boxes: Shaped[Tensor, "T 4"], piece: Piece) -> Float[Tensor, "T 4"]:
    """Boxes in pixels of the source in those of the canvas."""
    (top, left, bottom, right), place = piece
    fx, fy = (place[3] - place[1]) / (right - left), (place[2] - place[0]) / (bottom - top)
    boxes = promote(boxes)
    start, factors = boxes.new_tensor((left, top, left, top)), boxes.new_tensor((fx, fy, fx, fy))
    return (boxes - start) * factors + boxes.new_tensor((place[1], place[0], place[1], place[0]))


def _clipped(boxes: Float[Tensor, "T 4"], rectangle: Rectangle) -> Float[Tensor, "T 4"]:
    top, left, bottom, right = rectangle
    low, high = boxes.new_tensor((left, top, left, top)), boxes.new_tensor((right, bottom, right, bottom))
    return torch.minimum(torch.maximum(boxes, low), high)


def _area(boxes: Float[Tensor, "T 4"]) -> Float[Tensor, " T"]:
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)


def _placed_points(points: Shaped[Tensor, "T P 3"], piece: Piece) -> Float[Tensor, "T P 3"]:
    top, left, bottom, right = piece.place
    places = _onto(points[..., [0, 1, 0, 1]].flatten(0, 1), piece)[:, :2].reshape(*points.shape[:2], 2)
    low, high = places.new_tensor((left, top)), places.new_tensor((right, bottom))
    inside = (points[..., 2:] > 0) & ((places >= low) & (places <= high)).all(-1, keepdim=True)
    return torch.where(inside, torch.cat((places, promote(points[..., 2:])), dim=-1), 0)


def _placed_pixels(values: Tensor, piece: Piece, size: tuple[int, int], *, fill: int) -> Tensor:
    """Masks or a segmentation on a canvas that is ``fill`` around them."""
    (top, left, bottom, right), place = piece
    canvas = values.new_full((*values.shape[:-2], *size), fill)
    if canvas.numel():
        rows = nearest_pixels(place[2] - place[0], top, bottom, values.device)
        columns = nearest_pixels(place[3] - place[1], left, right, values.device)
        _cut(canvas, piece.place).copy_(values[..., rows[:, None], columns])
    return canvas
