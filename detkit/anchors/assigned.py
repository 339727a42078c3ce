"""What an assignment means for each anchor: the class, box and weight it learns, and whether it lies in a crowd."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from detkit.anchors.search.overlap_index import Sides, intersection_of, sides_of
from detkit.structures import IGNORED, NEGATIVE, Assignment, Targets, take_rows

_CROWD_SHARE = 0.5


class Assigned(NamedTuple):
    """What every anchor learns: class, NEGATIVE or IGNORED; box and weight of its object; how good the match is."""

    labels: Int[Tensor, "B N"]
    boxes: Float[Tensor, "B N 4"]
    weights: Float[Tensor, "B N"]
    quality: Float[Tensor, "B N"]


def gather_assigned(assignment: Assignment, targets: Targets) -> Assigned:
    """Look up the label, box and weight that ``assignment`` gives every anchor; its quality comes along.

    Where an anchor is NEGATIVE or IGNORED, so is its label; its box is some box of the image and its weight 1: losses
    mask them out.

    >>> from detkit.structures import pad_targets
    >>> targets = pad_targets([{"boxes": torch.tensor([[0.0, 0, 10, 9]]), "labels": torch.tensor([7])}])
    >>> gather_assigned(Assignment(torch.tensor([[0, -1, -2]]), torch.ones(1, 3)), targets).labels
    tensor([[ 7, -1, -2]])
    """
    matched = assignment.matched
    index = matched.clamp(min=0)
    labels = torch.where(matched >= 0, targets.labels.gather(1, index), matched)
    boxes = take_rows(targets.boxes, index)
    weights = torch.ones_like(assignment.quality)
    if targets.weights is not None:
        weights = torch.where(matched >= 0, targets.weights.gather(1, index).to(weights), weights)
    return Assigned(labels, boxes, weights, assignment.quality)


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
    """The row where its overlap is at least ``positive_iou``, else IGNORED down to ``negative_iou``, else NEGATIVE.

    >>> threshold_labels(torch.tensor([0.5, 0.4, 0.3]), torch.tensor([7, 8, 9]), 0.5, 0.4)
    tensor([ 7, -2, -1])
    """
    rest = torch.where(overlaps >= negative_iou, IGNORED, NEGATIVE)
    return torch.where(overlaps >= positive_iou, rows, rest)


def matched_overlaps(overlaps: Float[Tensor, "B T N"], matched: Int[Tensor, "B N"]) -> Float[Tensor, "B N"]:
    """Of the IoUs of all objects and anchors, that of each anchor with the object it is matched with; 0 without one.

    >>> matched_overlaps(torch.tensor([[[0.5, 0.25], [0.75, 0.125]]]), torch.tensor([[1, -1]]))
    tensor([[0.7500, 0.0000]])
    """
    own = overlaps.gather(1, matched.clamp(min=0)[:, None]).squeeze(1)
    return torch.where(matched >= 0, own, 0)


def ignore_crowds(
    matched: Int[Tensor, "B N"],
    anchors: Shaped[Tensor, "*B N 4"],
    boxes: Shaped[Tensor, "B T 4"],
    crowds: Bool[Tensor, "B T"],
) -> Int[Tensor, "B N"]:
    """Write IGNORED over NEGATIVE in ``matched`` where an anchor lies in a crowd (:func:`in_crowd`); returns it.

    >>> anchors, crowd = torch.tensor([[0.0, 0, 5, 5], [8, 8, 20, 20]]), torch.tensor([[[0.0, 0, 10, 10]]])
    >>> ignore_crowds(torch.tensor([[-1, -1]]), anchors, crowd, torch.tensor([[True]]))
    tensor([[-2, -1]])
    """
    return matched.masked_fill_(in_crowd(anchors, boxes, crowds) & (matched == NEGATIVE), IGNORED)


def in_crowd(
    anchors: Shaped[Tensor, "*B N 4"], boxes: Shaped[Tensor, "B T 4"], crowds: Bool[Tensor, "B T"]
) -> Bool[Tensor, "B N"]:
    """Anchors with more than half their area in one of the boxes that are ``crowds``.

    anchors (N, 4) or (B, N, 4) and ``boxes`` (B, T, 4) are of a floating type. Area and intersection are compared, so
    exactly one half is not enough.

    >>> anchors = torch.tensor([[0.0, 0, 5, 5], [8, 8, 20, 20]])
    >>> in_crowd(anchors, torch.tensor([[[0.0, 0, 10, 10]]]), torch.tensor([[True]]))
    tensor([[ True, False]])
    """
    own, regions = (
        Sides(*(values.unsqueeze(d) for values in sides_of(rows))) for rows, d in ((anchors, -2), (boxes, -1))
    )
    inside = boxes.new_zeros((boxes.shape[0], anchors.shape[-2]), dtype=torch.bool)
    # A host can look which rows are crowds, and take them one by one; a device would have to wait for the answer.
    host = crowds.device.type == "cpu" and not torch.compiler.is_compiling()
    pieces = [slice(row, row + 1) for row in crowds.any(0).nonzero().squeeze(1).tolist()] if host else [slice(None)]
    for rows in pieces:
        shared = intersection_of(Sides(*(values[:, rows] for values in regions)), own)
        inside = inside | ((shared > _CROWD_SHARE * own.area) & crowds[:, rows, None]).any(1)
    return inside
