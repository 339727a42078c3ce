"""What an assignment means for each anchor: the class, box and weight it learns, and whether it lies in a crowd."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from detkit.boxes import box_area
from detkit.structures import Assignment, Targets

_CROWD_SHARE = 0.5


class Assigned(NamedTuple):
    """What every anchor learns: class, NEGATIVE or IGNORED; the box of its object; the weight of its object."""

    labels: Int[Tensor, "B N"]
    boxes: Float[Tensor, "B N 4"]
    weights: Float[Tensor, "B N"]


def gather_assigned(assignment: Assignment, targets: Targets) -> Assigned:
    """Look up the label, box and weight that ``assignment`` gives every anchor.

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
    boxes = targets.boxes.gather(1, index[..., None].expand(-1, -1, 4))
    weights = torch.ones_like(assignment.quality)
    if targets.weights is not None:
        weights = torch.where(matched >= 0, targets.weights.gather(1, index).to(weights), weights)
    return Assigned(labels, boxes, weights)


def in_crowd(
    overlaps: Float[Tensor, "B T N"], anchors: Shaped[Tensor, "*B N 4"], targets: Targets
) -> Bool[Tensor, "B N"]:
    """Anchors (N, 4) or (B, N, 4) with more than half their area inside one ignored target; ``overlaps`` is their IoU.

    >>> from detkit.structures import pad_targets
    >>> from detkit.boxes import box_iou
    >>> crowd = {"boxes": torch.tensor([[0.0, 0, 10, 10]]), "labels": torch.tensor([0]), "iscrowd": torch.tensor([1])}
    >>> anchors = torch.tensor([[0.0, 0, 5, 5], [8, 8, 20, 20]])
    >>> targets = pad_targets([crowd])
    >>> in_crowd(box_iou(targets.boxes, anchors), anchors, targets)
    tensor([[ True, False]])
    """
    own = box_area(anchors).unsqueeze(-2)
    shared = overlaps / (1 + overlaps) * (own + box_area(targets.boxes)[..., None])  # intersection, from IoU and areas
    crowds = (targets.valid & targets.ignore)[..., None]
    return (crowds & (shared > _CROWD_SHARE * own)).any(dim=1)
