"""The search behind ThresholdMatcher."""

import torch
from jaxtyping import Int
from torch import Tensor

from detkit.anchors.assigned import threshold_labels
from detkit.anchors.matrix import best_matches
from detkit.anchors.search.groups import ImageGroup, best_fit, write_labels
from detkit.anchors.search.overlap_index import OverlapIndex
from detkit.boxes.measures import bounded_sides
from detkit.structures import Assignment


def search_threshold(
    index: OverlapIndex,
    group: ImageGroup,
    result: Assignment,
    *,
    positive_iou: float,
    negative_iou: float,
    low_quality: bool,
) -> bool:
    """Write the matches of a group of images to ``result``; False, and nothing written, if there are too many pairs.

    The pairs that matter are those with IoU >= ``negative_iou``, and the best of each object.
    """
    least = torch.full(group.row.shape, negative_iou)
    if low_quality:
        least = least.minimum(index.reachable(group.sides))
    pairs = index.pairs(group.sides, least)
    if pairs is None:
        return False
    cells = group.image[pairs.objects] * len(index.anchors) + pairs.anchors
    overlap, row = best_fit(cells, group.row[pairs.objects], pairs.overlaps, result.matched.view(-1))
    write_labels(result, cells, threshold_labels(overlap, row, positive_iou, negative_iou), overlap)
    if low_quality:
        highest = pairs.overlaps.new_zeros(len(least)).scatter_reduce_(0, pairs.objects, pairs.overlaps, "amax")
        forced = (pairs.overlaps == highest[pairs.objects]).nonzero().squeeze(1)
        known = overlap[forced] >= negative_iou  # no pair of its anchor with a higher IoU is missing
        sure, unsure = forced[known], forced[~known]
        write_labels(result, cells[sure], row[sure], overlap[sure])
        _force(index, group, result, cells[unsure].unique())
    return True


def _force(index: OverlapIndex, group: ImageGroup, result: Assignment, cells: Int[Tensor, "C"]) -> None:
    """Write to each of these ``cells``, in order, the object of its image that its anchor overlaps most."""
    count = len(index.anchors)
    images, counts = (cells // count).unique_consecutive(return_counts=True)
    for image, own in zip(images.tolist(), cells.split(counts.tolist()), strict=True):
        objects = group.image == image
        anchors = bounded_sides(index.anchors[own % count])
        overlap, row, _ = best_matches(group.sides.map(lambda values, rows=objects: values[rows]), anchors)
        write_labels(result, own, group.row[objects][row], overlap)
