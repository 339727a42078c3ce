"""Objects a few at a time, with the anchors that they may be matched with: never the matrix of all pairs.

On the CPU the objects of a piece are neighbors of about one size, and it has only those anchors that lie among them, so
that 10,000 small objects cost little more than the pairs that matter. On a device, where to look would be a sync, a
piece is some rows of all images, with all anchors. Either way the result is that of the matrix.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from detkit.anchors.matrix import pairs_at_once
from detkit.anchors.search.overlap_index import along_curve
from detkit.boxes import box_centers, points_in_boxes

_OBJECTS_TOGETHER = 64
PAIRS_IN_CACHE = 2**18  # of a core, where several tables of them are held

Places = slice | Int[Tensor, "K"]


class Piece(NamedTuple):
    """Some objects (``rows`` of targets) of some ``images``, and the anchors (``columns``) that may be theirs."""

    images: slice
    rows: Places
    columns: Places

    def of_objects(self, values: Tensor) -> Tensor:
        """Values (B, T, ...) of the objects of this piece."""
        return values[self.images][:, self.rows]

    def of_anchors(self, values: Tensor) -> Tensor:
        """Values (B, N, ...) of the anchors of this piece."""
        return values[self.images][:, self.columns]

    def places(self, columns: Int[Tensor, "*B"]) -> Int[Tensor, "*B"]:
        """Anchors of this piece, counted among all."""
        return columns if isinstance(self.columns, slice) else self.columns[columns]

    def numbers(self, rows: Int[Tensor, "*B"]) -> Int[Tensor, "*B"]:
        """Objects of this piece, counted among all."""
        return rows + self.rows.start if isinstance(self.rows, slice) else self.rows[rows]


def pieces_of(
    boxes: Float[Tensor, "B T 4"],
    objects: Bool[Tensor, "B T"],
    count: int,
    find: Callable[[int, Float[Tensor, "M 4"]], Int[Tensor, "K"]],
) -> Iterator[Piece]:
    """Pieces of the objects, but for those whose boxes are NaN, with the anchors that ``find`` names.

    On the CPU it is called with the number of an image and the boxes of some of its objects, and returns those of
    ``count`` anchors, rising, that any of them may be matched with. Objects of a piece rise as well.

    >>> boxes = torch.tensor([[[0.0, 0, 8, 8], [90, 90, 98, 98]]])
    >>> pieces = pieces_of(boxes, boxes[..., 0] >= 0, 3, lambda image, own: torch.tensor([0, 2]))
    >>> [(piece.rows.tolist(), piece.columns.tolist()) for piece in pieces]
    [([0, 1], [0, 2])]
    """
    most = pairs_at_once(boxes.device, on_cpu=PAIRS_IN_CACHE)
    if boxes.device.type != "cpu":
        step = max(1, most // max(1, len(boxes) * count))
        yield from (Piece(slice(None), slice(i, i + step), slice(None)) for i in range(0, boxes.shape[1], step))
        return
    for image, own in enumerate((objects & ~boxes.isnan().any(-1)).unbind()):
        rows = own.nonzero().squeeze(1)
        if len(rows) > _OBJECTS_TOGETHER:
            rows = rows[along_curve(boxes[image, rows])]
        for some in rows.split(_OBJECTS_TOGETHER) if len(rows) else ():
            columns = find(image, boxes[image, some])
            step = max(1, most // max(1, len(columns)))
            for part in some.sort().values.split(step) if len(columns) else ():
                yield Piece(slice(image, image + 1), part, columns)


def inside_boxes(points: Float[Tensor, "B N 2"], image: int, boxes: Float[Tensor, "M 4"]) -> Int[Tensor, "K"]:
    """The points of an image that may lie inside any of these boxes.

    >>> inside_boxes(torch.tensor([[[4.0, 4], [50, 50]]]), 0, torch.tensor([[0.0, 0, 8, 8]]))
    tensor([0])
    """
    return _in_hull(points[image], boxes).nonzero().squeeze(1)


def near_centers(
    points: Float[Tensor, "B N 2"],
    near: Float[Tensor, "B N 2"],
    image: int,
    boxes: Float[Tensor, "M 4"],
    *,
    or_inside: bool = False,
) -> Int[Tensor, "K"]:
    """The points of an image that may lie less than ``near`` from the center of any of these boxes, in x and in y.

    With ``or_inside`` also those that may lie inside any of them.

    >>> points, near = torch.tensor([[[4.0, 4], [12, 4], [50, 50]]]), torch.full((1, 3, 2), 10.0)
    >>> near_centers(points, near, 0, torch.tensor([[0.0, 0, 8, 8]]))
    tensor([0, 1])
    """
    centers, own = box_centers(boxes), points[image]
    close = ((own - centers.amax(0) < near[image]) & (centers.amin(0) - own < near[image])).all(1)
    return (close | _in_hull(own, boxes) if or_inside else close).nonzero().squeeze(1)


def _in_hull(points: Float[Tensor, "N 2"], boxes: Float[Tensor, "M 4"]) -> Bool[Tensor, "N"]:
    return ((points > boxes[:, :2].amin(0)) & (points < boxes[:, 2:].amax(0))).all(1)


def points_in_crowds(
    points: Float[Tensor, "B N 2"], boxes: Float[Tensor, "B T 4"], crowds: Bool[Tensor, "B T"]
) -> Bool[Tensor, "B N"]:
    """Which points lie inside a box that is one of the ``crowds``.

    >>> points_in_crowds(torch.tensor([[[1.0, 1], [5, 5]]]), torch.tensor([[[0.0, 0, 2, 2]]]), torch.tensor([[True]]))
    tensor([[ True, False]])
    """
    return torch.ops.detkit.points_in_crowds(points, boxes, crowds)


@torch.library.custom_op("detkit::points_in_crowds", mutates_args=())
def _points_in_crowds(points: Tensor, boxes: Tensor, crowds: Tensor) -> Tensor:
    found = torch.zeros(points.shape[:2], dtype=torch.bool, device=points.device)
    for piece in pieces_of(boxes, crowds, points.shape[1], partial(inside_boxes, points)):
        inside = points_in_boxes(piece.of_anchors(points)[:, None], piece.of_objects(boxes)[:, :, None])
        found[piece.images, piece.columns] |= (inside & piece.of_objects(crowds)[..., None]).any(1)
    return found


@_points_in_crowds.register_fake
def _(points: Tensor, boxes: Tensor, crowds: Tensor) -> Tensor:
    return points.new_empty(points.shape[:2], dtype=torch.bool)
