"""The matcher of YOLO v2 and v3: an object is learned in its own cell, by the anchor whose shape fits it best."""

from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from detkit._door import door
from detkit._inputs import as_boxes
from detkit._ranges import Fraction
from detkit._threads import on_one_thread
from detkit.anchors.assigned import ignore_crowds, no_matches
from detkit.anchors.candidates import near_centers, pieces_of
from detkit.anchors.matcher import AnchorBoxes, read_boxes, read_predictions
from detkit.anchors.matrix import overlap_matrix
from detkit.boxes import box_centers, paired_box_iou
from detkit.boxes.measures import BoxSides, bounded_sides
from detkit.structures import IGNORED, NEGATIVE, Anchors, ClaimedAssignment, Predictions, Targets, take_rows

_SLACK = 0.99  # rounding must not hide a box


class ShapeMatcher(nn.Module):
    """YOLO v2's and v3's matching: the cell that contains an object's center, and in it the anchor shape that fits it.

    Every object claims one anchor: of those in the cells that contain its center, one cell on each level, the one whose
    shape has the highest IoU with the object's (:func:`~detkit.anchors.shape_iou`); ties go to the lower anchor. Of
    several objects that claim one anchor the last is matched; ``claims`` of the result keeps the anchor of each object,
    so that a loss can learn the classes of all. An anchor without an object is IGNORED if the IoU of its predicted box
    with any object is above ``ignore_iou``, or if more than half of it lies in a crowd; else it is NEGATIVE.
    ``quality`` is the IoU of the predicted box with the object that is matched, 0 without one: what v2's objectness
    learns. Padding rows, boxes without area or not finite, and centers outside the grid match nothing.

    ``ignore_iou`` is .7 in v3's released configuration, .5 in its paper and .6 in v2. Sources: Redmon and Farhadi 2017,
    section 2; Redmon and Farhadi 2018, section 2.1, and the authors' released code. Raises ValueError for an
    ``ignore_iou`` outside [0, 1], without predictions, and where shapes disagree.

    >>> from detkit.structures import pad_targets
    >>> anchors = Anchors(torch.tensor([[0.0, 0, 8, 8], [2, -8, 6, 16]]), torch.tensor([[8.0, 8], [8, 8]]), (2,))
    >>> boxes = torch.tensor([[1.0, -8, 5, 15], [0, 0, 9, 9]])
    >>> targets = pad_targets([{"boxes": boxes, "labels": torch.tensor([0, 1])}])
    >>> matcher, predictions = ShapeMatcher(), Predictions(anchors.boxes[None])
    >>> matcher(anchors, targets, predictions)
    ClaimedAssignment(matched=tensor([[1, 0]]), quality=tensor([[0.7901, 0.5798]]), claims=tensor([[1, 0]]))
    """

    reads_predictions = True
    reads_cells = True

    @door
    def __init__(self, *, ignore_iou: Fraction = 0.7) -> None:
        super().__init__()
        self.ignore_iou = ignore_iou

    @door
    @torch.no_grad()
    def forward(
        self, anchors: AnchorBoxes, targets: Targets, predictions: Predictions | None = None
    ) -> ClaimedAssignment:
        """Match ``anchors`` (N, 4) in the cells of grids that begin at (0, 0); predicted boxes are (B, N, 4) xyxy.

        The sizes of cells are ``anchors.strides``; plain boxes are the cells themselves.
        """
        cells, targets, predicted = read_cells("ShapeMatcher", anchors, targets, predictions)
        rows = targets.boxes, targets.valid, targets.ignore, cells.boxes, cells.strides, predicted
        return ClaimedAssignment(*torch.ops.detkit.match_shapes(*rows, self.ignore_iou))

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"ignore_iou={self.ignore_iou}"


def read_cells(
    function: str, anchors: AnchorBoxes, targets: Targets, predictions: Predictions | None
) -> tuple[Anchors, Targets, Float[Tensor, "B N 4"]]:
    """Anchors with the sizes of their cells, targets, and the predicted boxes, in promoted types.

    Raises ValueError, in the name of ``function``, without predictions and where shapes disagree.

    >>> from detkit.structures import pad_targets
    >>> targets = pad_targets([{"boxes": torch.ones(1, 4), "labels": torch.tensor([0])}])
    >>> cells, boxes = torch.tensor([[0.0, 0, 8, 8]]), torch.ones(1, 1, 4)
    >>> read_cells("example", cells, targets, Predictions(boxes))[0].strides
    tensor([[8., 8.]])
    """
    boxes, targets = read_boxes(function, anchors, targets)
    predicted, _ = read_predictions(function, predictions, "boxes")
    predicted = as_boxes(predicted, function=function, name="predictions.boxes")
    images = targets.valid.shape[0]
    if boxes.ndim != 2 or tuple(predicted.shape) != (images, boxes.shape[0], 4):
        raise ValueError(
            f"{function}: anchors have shape {tuple(boxes.shape)} and predictions.boxes {tuple(predicted.shape)}; "
            f"allowed is (N, 4) and ({images}, N, 4)"
        )
    anchors = Anchors.of(anchors)
    return Anchors(boxes, anchors.strides.to(boxes), anchors.counts), targets, predicted


def claim_shapes(
    boxes: Float[Tensor, "B T 4"],
    objects: Bool[Tensor, "B T"],
    anchors: Float[Tensor, "N 4"],
    cells: Float[Tensor, "N 2"],
) -> Int[Tensor, "B T"]:
    """The anchor that each object claims, NEGATIVE without one: see :class:`ShapeMatcher`. ``cells`` are their sizes.

    >>> anchors, cells = torch.tensor([[0.0, 0, 8, 8], [8, 0, 16, 8]]), torch.full((2, 2), 8.0)
    >>> claim_shapes(torch.tensor([[[6.0, 0, 12, 4]]]), torch.tensor([[True]]), anchors, cells)
    tensor([[1]])
    """
    claims = boxes.new_full(boxes.shape[:2], NEGATIVE, dtype=torch.int64)
    points, shapes = box_centers(anchors), anchors[:, 2:] - anchors[:, :2]
    near = partial(near_centers, points[None].expand(len(boxes), -1, 2), (2 * cells).expand(len(boxes), -1, 2))

    def find(image: int, own: Tensor) -> Tensor:
        """Of the anchors nearby, which are many, those whose cells contain a center."""
        columns = near(image, own)
        return columns[in_cells(own[None], anchors[columns], cells[columns])[0].any(0)]

    for piece in pieces_of(boxes, objects, len(anchors), find):
        own = piece.of_objects(boxes)
        # On the CPU once more, of few: which object is in which cell.
        here = in_cells(own, anchors[piece.columns], cells[piece.columns]) & piece.of_objects(objects)[..., None]
        fit = _overlaps((own[..., 2:] - own[..., :2])[:, :, None], shapes[piece.columns])
        fit = torch.where(here & (fit > 0), fit, 0)  # NaN is not above 0
        place = fit.argmax(-1)  # the first of equal ones
        claimed = fit.gather(2, place[..., None]).squeeze(2) > 0
        claims[piece.images, piece.rows] = torch.where(claimed, piece.places(place), NEGATIVE)
    return claims


def in_cells(
    boxes: Float[Tensor, "B T 4"], anchors: Float[Tensor, "N 4"], cells: Float[Tensor, "N 2"]
) -> Bool[Tensor, "B T N"]:
    """Whether the center of each box lies in the cell of each anchor, in grids of ``cells`` that begin at (0, 0).

    A cell begins at its left and upper border and ends before the others, exactly where the next begins.

    >>> anchors, cells = torch.tensor([[0.0, 0, 8, 8], [8, 0, 16, 8]]), torch.full((2, 2), 8.0)
    >>> in_cells(torch.tensor([[[6.0, 0, 10, 4]]]), anchors, cells)
    tensor([[[False,  True]]])
    """
    x, y = box_centers(boxes)[:, :, None].unbind(-1)
    first = (box_centers(anchors) / cells).floor()
    (left, top), (right, bottom) = (first * cells).unbind(-1), ((first + 1) * cells).unbind(-1)
    return (x >= left) & (x < right) & (y >= top) & (y < bottom)


def _overlaps(sizes: Float[Tensor, "B T 1 2"], shapes: Float[Tensor, "N 2"]) -> Float[Tensor, "B T N"]:
    """:func:`~detkit.anchors.shape_iou` in the type of the boxes, for matrices; 0 or less without area."""
    (w, h), (v, g) = sizes.unbind(-1), shapes.unbind(-1)
    shared = torch.minimum(w, v) * torch.minimum(h, g)
    return torch.where((w > 0) & (h > 0), shared / (w * h + v * g - shared), 0)


def last_claims(claims: Int[Tensor, "B T"], count: int) -> Int[Tensor, "B N"]:
    """Of ``count`` anchors, the last object of each image that claims it, or NEGATIVE.

    >>> last_claims(torch.tensor([[2, 0, 2, -1]]), 3)
    tensor([[ 1, -1,  2]])
    """
    numbers = torch.arange(claims.shape[1], device=claims.device).expand_as(claims)
    owners = claims.new_full((claims.shape[0], count), NEGATIVE)
    return owners.scatter_reduce(1, claims.clamp(min=0), torch.where(claims >= 0, numbers, NEGATIVE), "amax")


def _quality(
    boxes: Float[Tensor, "B T 4"],
    claims: Int[Tensor, "B T"],
    matched: Int[Tensor, "B N"],
    predicted: Float[Tensor, "B N 4"],
) -> Float[Tensor, "B N"]:
    """The IoU of each predicted box with the object that its anchor is matched with, 0 without one."""
    claimed = claims.clamp(min=0)
    numbers = torch.arange(claims.shape[1], device=claims.device)
    overlap = torch.where(
        matched.gather(1, claimed) == numbers, paired_box_iou(take_rows(predicted, claimed), boxes).float(), 0
    )
    return overlap.new_zeros(matched.shape).scatter_reduce(1, claimed, overlap, "amax")


def _overlapped(
    boxes: Float[Tensor, "B T 4"], objects: Bool[Tensor, "B T"], predicted: Float[Tensor, "B N 4"], least: float
) -> Bool[Tensor, "B N"]:
    """Which predicted boxes have an IoU above ``least`` with any object."""
    found = torch.zeros(predicted.shape[:2], dtype=torch.bool, device=predicted.device)
    for piece in pieces_of(boxes, objects, predicted.shape[1], partial(_alike, bounded_sides(predicted), least)):
        given = piece.of_objects(boxes), piece.of_objects(objects), piece.of_anchors(predicted)
        found[piece.images, piece.columns] |= (overlap_matrix(*given) > least).any(1)
    return found


def _alike(predicted: BoxSides, least: float, image: int, boxes: Float[Tensor, "M 4"]) -> Int[Tensor, "K"]:
    """The predicted boxes of an image that meet the hull of some objects, none of which is so much longer or shorter
    that the IoU could not be above ``least``."""
    seen, own = predicted.map(lambda values: values[image]), bounded_sides(boxes)
    length, lengths = (torch.maximum(sides.x2 - sides.x1, sides.y2 - sides.y1) for sides in (seen, own))
    meets = (
        (seen.x1 < own.x2.amax()) & (seen.x2 > own.x1.amin()) & (seen.y1 < own.y2.amax()) & (seen.y2 > own.y1.amin())
    )
    like = (length >= _SLACK * least * lengths.amin()) & (_SLACK * least * length <= lengths.amax())
    return (meets & like).nonzero().squeeze(1)


@torch.library.custom_op("detkit::match_shapes", mutates_args=())
@on_one_thread
def _match(
    boxes: Tensor, valid: Tensor, ignore: Tensor, anchors: Tensor, strides: Tensor, predicted: Tensor, ignore_iou: float
) -> tuple[Tensor, Tensor, Tensor]:
    objects, count = valid & ~ignore, anchors.shape[0]
    if count == 0:
        matched, quality = no_matches(boxes, anchors)
        return matched, quality, torch.full_like(valid, NEGATIVE, dtype=torch.int64)
    claims = claim_shapes(boxes, objects, anchors, strides)
    matched = last_claims(claims, count)
    seen = _overlapped(boxes, objects, predicted, ignore_iou)
    quality = _quality(boxes, claims, matched, predicted)
    matched = torch.where((matched < 0) & seen, IGNORED, matched)
    return ignore_crowds(matched, anchors, boxes, valid & ignore), quality, claims


@_match.register_fake
def _(boxes: Tensor, valid: Tensor, ignore: Tensor, anchors: Tensor, *rule: object) -> tuple[Tensor, ...]:
    return *no_matches(boxes, anchors), torch.full_like(valid, NEGATIVE, dtype=torch.int64)
