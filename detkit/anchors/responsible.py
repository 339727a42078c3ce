"""The matcher of YOLO v1: of the boxes that a cell predicts, the best one is responsible for the cell's object."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detkit._door import door
from detkit.anchors.assigned import ignore_crowds, no_matches
from detkit.anchors.matcher import AnchorBoxes
from detkit.anchors.shape import in_cells, last_claims, read_cells
from detkit.boxes import box_centers, box_iou, paired_box_iou, xyxy_to_cxcywh
from detkit.structures import NEGATIVE, Assignment, Predictions, Targets, take_rows


class ResponsibleMatcher(nn.Module):
    """YOLO v1's matching: the cell that contains an object's center, and its predictor with the highest IoU.

    A cell learns one object: the first of those whose center it contains. Of the anchors in this cell the one whose
    predicted box has the highest IoU with the object is matched; if none overlaps it, the one with the smallest
    distance in (cx, cy, w, h), measured in widths and heights of the anchors, in v1 the image. Ties go to the lower
    anchor. The others are NEGATIVE, or IGNORED if more than half of their cell lies in a crowd. ``quality`` is the IoU
    of the predicted box with the object that is matched, 0 without one: what confidence learns. Padding rows, boxes
    without area or not finite, and centers outside the grid match nothing.

    Darknet draws at random which object a cell learns; here it is the first. Source: Redmon et al. 2016, sections 2 and
    2.2, and the authors' released code. Raises ValueError without predictions, and where shapes disagree.

    >>> from detkit.structures import Anchors, pad_targets
    >>> whole, cell = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 8]]), torch.full((2, 2), 8.0)
    >>> targets = pad_targets([{"boxes": torch.tensor([[1.0, 1, 5, 5]]), "labels": torch.tensor([0])}])
    >>> predictions = Predictions(torch.tensor([[[0.0, 0, 2, 2], [1, 1, 5, 4]]]))
    >>> ResponsibleMatcher()(Anchors(whole, cell, (2,)), targets, predictions)
    Assignment(matched=tensor([[-1,  0]]), quality=tensor([[0.0000, 0.7500]]))
    """

    reads_predictions = True
    reads_cells = True

    @door
    @torch.no_grad()
    def forward(self, anchors: AnchorBoxes, targets: Targets, predictions: Predictions | None = None) -> Assignment:
        """Match ``anchors`` (N, 4) in the cells of a grid that begins at (0, 0); predicted boxes are (B, N, 4) xyxy.

        The sizes of cells are ``anchors.strides``; plain boxes are the cells themselves.
        """
        (boxes, cells, _), targets, predicted = read_cells("ResponsibleMatcher", anchors, targets, predictions)
        truth = targets.boxes
        if boxes.shape[0] == 0:
            return no_matches(truth, boxes)
        solid = (truth[..., 2:] > truth[..., :2]).all(-1) & targets.objects
        here = in_cells(truth, boxes, cells) & solid[..., None]
        numbers = torch.arange(here.shape[1], device=here.device)[:, None]
        own = here & (here.to(torch.uint8).argmax(1, keepdim=True) == numbers)  # the first object of each cell
        place = _fit(truth, predicted, boxes, own).argmax(-1)
        matched = last_claims(torch.where(own.any(-1), place, NEGATIVE), boxes.shape[0])
        quality = paired_box_iou(predicted, take_rows(truth, matched.clamp(min=0))).float()
        quality = torch.where(matched >= 0, quality, 0)
        squares = torch.cat((box_centers(boxes) - cells / 2, box_centers(boxes) + cells / 2), dim=-1)
        return Assignment(ignore_crowds(matched, squares, truth, targets.crowds), quality)


def _fit(
    truth: Float[Tensor, "B T 4"], predicted: Float[Tensor, "B N 4"], anchors: Float[Tensor, "N 4"], own: Tensor
) -> Float[Tensor, "B T N"]:
    """The higher the better: IoU where any of an object's ``own`` anchors overlaps it, else minus the distance."""
    overlaps = torch.where(own, box_iou(truth, predicted).nan_to_num(0), 0)
    sizes = (anchors[:, 2:] - anchors[:, :2]).repeat(1, 2)
    difference = (xyxy_to_cxcywh(predicted)[:, None] - xyxy_to_cxcywh(truth)[:, :, None]) / sizes
    lowest = torch.finfo(difference.dtype).min
    nearness = -difference.square().sum(-1).nan_to_num(-lowest, -lowest)
    fit = torch.where((overlaps > 0).any(-1, keepdim=True), overlaps.to(nearness), nearness)
    return torch.where(own, fit, -math.inf)
