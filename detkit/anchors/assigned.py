"""What an assignment means for each anchor: the class, box and weight it learns, and whether it is ignored."""

from importlib import import_module
from types import NotImplementedType
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from detkit._door import door
from detkit.boxes.measures import (
    BoxSides,
    bounded_sides,
    coordinate_limit,
    intersection_and_union,
    smallest_union,
)
from detkit.kernels.switch import takes_over
from detkit.structures import IGNORED, NEGATIVE, Assignment, ClaimedAssignment, Targets, take_rows
from detkit.structures.labels import check_targets

_CROWD_SHARE = 0.5
_PAIRS_AT_ONCE = 2**18  # on the CPU: few enough for the cache, enough that calls cost little


class Assigned(NamedTuple):
    """What each anchor learns: a class, NEGATIVE or IGNORED; the box and weight of its object; quality of the match.

    ``claims`` holds, if the matcher says it, the anchor and the class of each object, or NEGATIVE: an anchor that
    several objects claim may learn the classes of all.
    """

    labels: Int[Tensor, "B N"]
    boxes: Float[Tensor, "B N 4"]
    weights: Float[Tensor, "B N"]
    quality: Float[Tensor, "B N"]
    claims: Int[Tensor, "B T 2"] | None = None


@door
def gather_assigned(assignment: Assignment | ClaimedAssignment, targets: Targets) -> Assigned:
    """Gather the label, box and weight of the object that each anchor is matched with; quality is passed on.

    A NEGATIVE or IGNORED anchor has that as its label, any box of the image and weight 1: losses mask it out.

    >>> from detkit.structures import pad_targets
    >>> targets = pad_targets([{"boxes": torch.tensor([[0.0, 0, 10, 9]]), "labels": torch.tensor([7])}])
    >>> gather_assigned(Assignment(torch.tensor([[0, -1, -2]]), torch.ones(1, 3)), targets).labels
    tensor([[ 7, -1, -2]])
    """
    check_targets(targets, function="gather_assigned")
    matched = assignment.matched
    index = matched.clamp(min=0)
    labels = torch.where(matched >= 0, targets.labels.gather(1, index), matched)
    boxes = take_rows(targets.boxes, index)
    weights = torch.ones_like(assignment.quality)
    if targets.weights is not None:
        weights = torch.where(matched >= 0, targets.weights.gather(1, index).to(weights), weights)
    return Assigned(labels, boxes, weights, assignment.quality, _claims(assignment, targets))


def _claims(assignment: Assignment | ClaimedAssignment, targets: Targets) -> Int[Tensor, "B T 2"] | None:
    if isinstance(assignment, ClaimedAssignment):
        return torch.stack((assignment.claims, targets.labels), dim=-1)
    return None


def no_matches(boxes: Shaped[Tensor, "B T 4"], anchors: Shaped[Tensor, "*B N 4"]) -> Assignment:
    """An assignment in which every anchor is NEGATIVE.

    >>> no_matches(torch.zeros(1, 4, 4), torch.zeros(3, 4))
    Assignment(matched=tensor([[-1, -1, -1]]), quality=tensor([[0., 0., 0.]]))
    """
    shape = (boxes.shape[0], anchors.shape[-2])
    return Assignment(boxes.new_full(shape, NEGATIVE, dtype=torch.int64), boxes.new_zeros(shape, dtype=torch.float32))


def threshold_labels(
    overlaps: Float[Tensor, "*B"], rows: Int[Tensor, "*B"], positive_iou: float, negative_iou: float
) -> Int[Tensor, "*B"]:
    """The row where the IoU is at least ``positive_iou``, else IGNORED down to ``negative_iou``, else NEGATIVE.

    >>> threshold_labels(torch.tensor([0.5, 0.4, 0.3]), torch.tensor([7, 8, 9]), 0.5, 0.4)
    tensor([ 7, -2, -1])
    """
    if negative_iou == positive_iou:
        return rows.masked_fill((overlaps >= positive_iou).logical_not_(), NEGATIVE)
    unsure = rows.masked_fill((overlaps >= positive_iou).logical_not_(), IGNORED)
    return unsure.masked_fill_((overlaps >= negative_iou).logical_not_(), NEGATIVE)


def matched_overlaps(overlaps: Float[Tensor, "B T N"], matched: Int[Tensor, "B N"]) -> Float[Tensor, "B N"]:
    """The IoU of each anchor with the object it is matched with, 0 without one; ``overlaps`` are those of all pairs.

    >>> matched_overlaps(torch.tensor([[[0.5, 0.25], [0.75, 0.125]]]), torch.tensor([[1, -1]]))
    tensor([[0.7500, 0.0000]])
    """
    own = overlaps.gather(1, matched.clamp(min=0)[:, None]).squeeze(1)
    return own.masked_fill(matched < 0, 0)


def values_of_labels(values: Float[Tensor, "B N C"], labels: Int[Tensor, "B T"]) -> Float[Tensor, "B T N"]:
    """What each anchor or query predicts for the class of each object; a label out of range counts as the nearest.

    >>> values_of_labels(torch.tensor([[[0.1, 0.2], [0.3, 0.4]]]), torch.tensor([[1]]))
    tensor([[[0.2000, 0.4000]]])
    """
    image = torch.arange(labels.shape[0], device=labels.device)[:, None]
    return values[image, :, labels.clamp(0, values.shape[2] - 1)]


def ignore_crowds(
    matched: Int[Tensor, "B N"],
    anchors: Shaped[Tensor, "*B N 4"],
    boxes: Shaped[Tensor, "B T 4"],
    crowds: Bool[Tensor, "B T"],
) -> Int[Tensor, "B N"]:
    """Replace NEGATIVE by IGNORED in ``matched``, in place, for anchors in a crowd (:func:`in_crowd`).

    >>> anchors, crowd = torch.tensor([[0.0, 0, 5, 5], [8, 8, 20, 20]]), torch.tensor([[[0.0, 0, 10, 10]]])
    >>> ignore_crowds(torch.tensor([[-1, -1]]), anchors, crowd, torch.tensor([[True]]))
    tensor([[-2, -1]])
    """
    return matched.masked_fill_(in_crowd(anchors, boxes, crowds) & (matched == NEGATIVE), IGNORED)


def in_crowd(
    anchors: Shaped[Tensor, "*B N 4"], boxes: Shaped[Tensor, "B T 4"], crowds: Bool[Tensor, "B T"]
) -> Bool[Tensor, "B N"]:
    """Which anchors have more than half their area in one of the boxes that are ``crowds``; exactly half is not enough.

    anchors (N, 4) or (B, N, 4) and ``boxes`` (B, T, 4) are of one floating type, float32 or float64.

    >>> anchors = torch.tensor([[0.0, 0, 5, 5], [8, 8, 20, 20]])
    >>> in_crowd(anchors, torch.tensor([[[0.0, 0, 10, 10]]]), torch.tensor([[True]]))
    tensor([[ True, False]])
    """
    return torch.ops.detkit.in_crowd(anchors, boxes, crowds)


def _in_crowd(anchors: Tensor, boxes: Tensor, crowds: Tensor) -> Tensor:
    own = bounded_sides(anchors).map(lambda values: values.unsqueeze(-2))
    regions = bounded_sides(boxes).map(lambda values: values.unsqueeze(-1))
    inside = boxes.new_zeros((boxes.shape[0], anchors.shape[-2]), dtype=torch.bool)
    pieces: list[Tensor | slice] = [slice(None)]
    # A host can look up which rows are crowds and go through them; on a device that would be a sync.
    if crowds.device.type == "cpu":
        rows = crowds.any(0).nonzero().squeeze(1)
        pieces = [*rows.split(max(1, _PAIRS_AT_ONCE // max(1, inside.numel())))] if len(rows) else []
    for rows in pieces:
        region = BoxSides(*(values[:, rows] for values in regions))
        shared, _ = intersection_and_union(region, own)
        inside = inside | ((shared > _CROWD_SHARE * own.area) & crowds[:, rows, None]).any(1)
    return inside


def _in_crowd_on_device(anchors: Tensor, boxes: Tensor, crowds: Tensor) -> Tensor | NotImplementedType:
    """As :func:`_in_crowd`, by a kernel that never holds all pairs: matching, where nothing is an object."""
    if boxes.dtype != torch.float32 or anchors.dtype != torch.float32:
        return NotImplemented
    kernel = import_module("detkit.kernels.threshold")
    rule = kernel.Rule(1.0, 1.0, False, coordinate_limit(boxes.dtype), smallest_union(boxes.dtype))
    return kernel.match(boxes, torch.zeros_like(crowds), crowds, anchors, rule)[0] == IGNORED


_operator = torch.library.custom_op("detkit::in_crowd", _in_crowd, mutates_args=())
takes_over(_operator, _in_crowd, lambda: _in_crowd_on_device)


@_operator.register_fake
def _(anchors: Tensor, boxes: Tensor, crowds: Tensor) -> Tensor:
    return boxes.new_empty((boxes.shape[0], anchors.shape[-2]), dtype=torch.bool)
