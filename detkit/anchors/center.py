"""The matcher of FCOS: a point near an object's center learns it, on the level that suits the object's size."""

import math
from functools import partial
from typing import Annotated

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from detkit._door import door
from detkit._ranges import Ascending, Positive, Range
from detkit._threads import on_one_thread
from detkit.anchors.assigned import no_matches
from detkit.anchors.candidates import near_centers, pieces_of
from detkit.anchors.matcher import AnchorBoxes, match_batch, read_boxes, traced_matches
from detkit.structures import NEGATIVE, Assignment, Predictions, Targets, take_rows


def smallest_objects(
    boxes: Float[Tensor, "B T 4"],
    objects: Bool[Tensor, "B T"],
    points: Float[Tensor, "N 2"],
    near: Float[Tensor, "N"],
    low: Float[Tensor, "N"],
    high: Float[Tensor, "N"],
) -> tuple[Float[Tensor, "B N"], Int[Tensor, "B N"]]:
    """The rule of :class:`CenterMatcher`: the area and the row of the smallest object that contains and suits a point.

    It suits where the object's center is less than ``near`` pixels away in x and in y, and the largest distance to its
    four sides lies between ``low`` and ``high`` pixels. The area is infinite where none does.

    >>> near, low, high = torch.tensor([[12.0], [32], [64]])
    >>> box, point = torch.tensor([[[0.0, 0, 40, 34]]]), torch.tensor([[20.0, 17]])
    >>> smallest_objects(box, torch.tensor([[True]]), point, near, low, high)[0]
    tensor([[inf]])
    >>> smallest_objects(box, torch.tensor([[True]]), point + 13, near * 2, low, high)[0]
    tensor([[1360.]])
    """
    sides = _distances(points, boxes[:, :, None])  # (B, T, N, 4)
    inside = sides.amin(-1) > 0
    offset = (sides[..., :2] - sides[..., 2:]).abs().amax(-1) / 2  # of the point from the center of the box
    reach = sides.amax(-1)
    suits = objects[..., None] & inside & (offset < near) & (reach > low) & (reach < high)
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    return torch.where(suits, areas[..., None], math.inf).min(dim=1)


def _distances(points: Float[Tensor, "*#B 2"], boxes: Float[Tensor, "*#B 4"]) -> Float[Tensor, "*B 4"]:
    """From each point to the left, top, right and bottom of its box, negative outside; leading dimensions broadcast."""
    return torch.cat((points - boxes[..., :2], boxes[..., 2:] - points), dim=-1)


_Far = Annotated[float, Range(0, open=True, infinite=True)]


class CenterMatcher(nn.Module):
    """FCOS's matching of points with the objects that contain them.

    Anchors are squares as wide as the stride of their level, and only their center, the point, is matched. A point may
    learn an object if it lies strictly inside its box, less than ``radius`` strides from the box's center in x and in
    y, and if the largest of its distances to the four sides lies strictly between ``reach[0]`` and ``reach[1]``
    strides. The narrowest anchors have the lower bound 0, the widest no upper bound. Of several objects the smallest is
    chosen, then the lower one. Points without an object are NEGATIVE, or IGNORED if more than half the anchor's area
    lies in a crowd. Padding rows and boxes that are not finite match nothing. ``quality`` is the centerness of the
    match, 0 without one.

    Source: Tian et al. 2020, "FCOS: A Simple and Strong Anchor-free Object Detector", section 2; bounds relative to
    the stride as in torchvision. Raises ValueError for a radius or a reach that is not positive or not rising, for
    targets without a single row, and for anchors that are not (N, 4).

    >>> from detkit.structures import pad_targets
    >>> anchors = torch.tensor([[0.0, 0, 8, 8], [8, 8, 16, 16], [40, 40, 48, 48]])
    >>> targets = pad_targets([{"boxes": torch.tensor([[0.0, 0, 34, 34]]), "labels": torch.tensor([7])}])
    >>> CenterMatcher()(anchors, targets).matched
    tensor([[-1,  0, -1]])
    """

    reads_predictions = False

    @door
    def __init__(
        self,
        *,
        radius: Positive = 1.5,
        reach: Annotated[tuple[_Far, _Far], Ascending(strictly=True)] = (4.0, 8.0),
    ) -> None:
        super().__init__()
        self.radius, self.reach = radius, reach

    @door
    @torch.no_grad()
    def forward(self, anchors: AnchorBoxes, targets: Targets, predictions: Predictions | None = None) -> Assignment:
        """Match ``anchors`` (N, 4) xyxy, shared by all images, with the objects of B images; predictions are not read.

        Strides are the widths of the boxes, also of :class:`~detkit.structures.Anchors`.
        """
        boxes, targets = read_boxes("CenterMatcher", anchors, targets)
        if boxes.ndim != 2:
            raise ValueError(f"CenterMatcher: anchors have shape {tuple(boxes.shape)}; allowed is (N, 4)")
        rows = targets.boxes, targets.valid, targets.ignore, boxes
        rule = (self.radius, *self.reach)
        return Assignment(*torch.ops.detkit.match_center(*rows, *rule))

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"radius={self.radius}, reach={self.reach}"


@door
def centerness(distances: Float[Tensor, "*B 4"]) -> Float[Tensor, "*B"]:
    """How central a point lies between the sides of a box: 1 in the middle, 0 on a side or outside.

    ``distances`` (..., 4) to left, top, right and bottom, in any unit. Source: Tian et al. 2019, equation 3.

    >>> centerness(torch.tensor([[2.0, 3.0, 2.0, 3.0], [1.0, 3.0, 4.0, 3.0], [-1.0, 3.0, 4.0, 3.0]]))
    tensor([1.0000, 0.5000, 0.0000])
    """
    sides, opposite = distances[..., :2], distances[..., 2:]
    near, far = sides.minimum(opposite), sides.maximum(opposite)
    inside = (near > 0).all(-1)
    ratio = near / torch.where(far > 0, far, 1)
    return torch.where(inside, ratio.clamp(min=0).prod(-1), 0).sqrt()


@torch.library.custom_op("detkit::match_center", mutates_args=())
@on_one_thread
def _match(
    boxes: Tensor, valid: Tensor, ignore: Tensor, anchors: Tensor, radius: float, least: float, most: float
) -> tuple[Tensor, Tensor]:
    compare = partial(_compare, radius=radius, reach=(least, most))
    return match_batch(boxes, valid, ignore, anchors, compare=compare)


_match.register_fake(traced_matches)


def _compare(
    boxes: Float[Tensor, "B T 4"],
    objects: Bool[Tensor, "B T"],
    anchors: Float[Tensor, "N 4"],
    *,
    radius: float,
    reach: tuple[float, float],
) -> Assignment:
    """The rule on pieces of the objects, with bounds in pixels."""
    strides = anchors[:, 2] - anchors[:, 0]  # NaN where an anchor is not finite: it must not be the narrowest or widest
    low = torch.where(strides == strides.nan_to_num(math.inf).amin(), 0, strides * reach[0])
    high = torch.where(strides == strides.nan_to_num(-math.inf).amax(), math.inf, strides * reach[1])
    points, near = (anchors[:, :2] + anchors[:, 2:]) / 2, radius * strides
    area, row = boxes.new_full((len(boxes), len(points)), math.inf), no_matches(boxes, anchors).matched
    for piece in pieces_of(boxes, objects, len(points), partial(_around, points, near)):
        bounds = (values[piece.columns] for values in (points, near, low, high))
        value, place = smallest_objects(piece.of_objects(boxes), piece.of_objects(objects), *bounds)
        number, least, first = piece.numbers(place), piece.of_anchors(area), piece.of_anchors(row)
        better = (value < least) | ((value == least) & (number < first))
        area[piece.images, piece.columns] = torch.where(better, value, least)
        row[piece.images, piece.columns] = torch.where(better, number, first)
    found, row = area < math.inf, row.clamp(min=0)
    quality = centerness(_distances(points, take_rows(boxes, row))).float()
    return Assignment(torch.where(found, row, NEGATIVE), torch.where(found, quality, 0))


def _around(
    points: Float[Tensor, "N 2"], near: Float[Tensor, "N"], image: int, boxes: Float[Tensor, "M 4"]
) -> Int[Tensor, "K"]:
    """The points that may lie near the centers of these boxes; a little farther, as the rule rounds otherwise."""
    slack = 1e-4 * (boxes.abs().amax() + points.abs())
    return near_centers(points[None], (near[:, None] + slack)[None], 0, boxes)
