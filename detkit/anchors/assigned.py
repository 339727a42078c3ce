"""What an assignment means for each anchor: the class, box and weight it learns, and whether it lies in a crowd."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from detkit.anchors.overlap import Sides, intersection_of, sides_of
from detkit.structures import Assignment, Targets, take_rows

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
