"""The search behind ThresholdMatcher."""

import torch

from detkit.anchors.assigned import threshold_labels
from detkit.anchors.matrix import overlap_matrix
from detkit.anchors.search.groups import ImageGroup, best_fit, write_labels
from detkit.anchors.search.overlap_index import OverlapIndex
from detkit.structures import Assignment

_ROWS_AT_ONCE = 4096


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
        for some in unsure.split(_ROWS_AT_ONCE):
            image = group.image[pairs.objects[some]]
            own = index.anchors[pairs.anchors[some], None]
            overlap, row = overlap_matrix(group.boxes[image], group.objects[image], own).squeeze(2).max(dim=1)
            write_labels(result, cells[some], row, overlap)
    return True
