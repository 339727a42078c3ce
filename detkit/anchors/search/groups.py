"""Searching a whole batch a few images at a time, and the object that each anchor overlaps most."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from detkit.anchors.assigned import no_matches
from detkit.anchors.claims import pair_keys, pairs_of
from detkit.anchors.search.overlap_index import OverlapIndex, overlap_index
from detkit.boxes.measures import BoxSides, bounded_sides
from detkit.structures import Assignment

_OBJECTS_TOGETHER = 512
_SMALLEST_SEARCH = 2**20  # objects times anchors; below, the matrix costs less than sorting the anchors


class ImageGroup(NamedTuple):
    """Consecutive images and their M objects, each with its image, counted within the group, and its row."""

    images: slice
    boxes: Float[Tensor, "B T 4"]
    objects: Bool[Tensor, "B T"]
    image: Int[Tensor, "M"]
    row: Int[Tensor, "M"]
    sides: BoxSides


Search = Callable[[OverlapIndex, ImageGroup, Assignment], bool]
Compare = Callable[[Tensor, Tensor, Tensor], Assignment]


def worth_searching(objects: Bool[Tensor, "B T"], anchors: Shaped[Tensor, "*B N 4"]) -> bool:
    """True for many objects and many anchors, shared by all images, on a CPU."""
    shared = anchors.ndim == 2 and anchors.device.type == "cpu"
    return shared and objects.numel() * len(anchors) >= _SMALLEST_SEARCH


def search_batch(
    boxes: Float[Tensor, "B T 4"],
    objects: Bool[Tensor, "B T"],
    anchors: Float[Tensor, "N 4"],
    *,
    search: Search,
    compare: Compare,
) -> Assignment:
    """The matches that ``search`` writes for each group of images, or ``compare`` returns if it finds too many
    pairs."""
    result, index = no_matches(boxes, anchors), overlap_index(anchors)
    for group in image_groups(boxes, objects):
        part = Assignment(*(rows[group.images] for rows in result))
        if not search(index, group, part):
            for rows, found in zip(part, compare(group.boxes, group.objects, anchors), strict=True):
                rows.copy_(found)
    return result


def image_groups(boxes: Float[Tensor, "B T 4"], objects: Bool[Tensor, "B T"]) -> Iterator[ImageGroup]:
    """Images in groups of some hundred objects; a group of images without objects is left out."""
    start, total, counts = 0, 0, objects.sum(1).tolist()
    for end, count in enumerate(counts, 1):
        total += count
        if total >= _OBJECTS_TOGETHER or (end == len(counts) and total):
            images = slice(start, end)
            image, row = objects[images].nonzero().unbind(1)
            sides = bounded_sides(boxes[images][image, row])
            yield ImageGroup(images, boxes[images], objects[images], image, row, sides)
            start, total = end, 0


def best_fit(
    cells: Int[Tensor, "P"], rows: Int[Tensor, "P"], overlaps: Float[Tensor, "P"], table: Int[Tensor, "cells"]
) -> tuple[Float[Tensor, "P"], Int[Tensor, "P"]]:
    """For each pair the highest IoU among all pairs of its cell, and the row of that pair, the lowest on a tie.

    ``table`` int64, of negative numbers, is scratch: it is overwritten in these ``cells``.
    """
    table.scatter_reduce_(0, cells, pair_keys(overlaps, rows), "amax")
    return pairs_of(table[cells])


def write_labels(result: Assignment, cells: Int[Tensor, "P"], labels: Int[Tensor, "P"], overlaps: Tensor) -> None:
    """Write labels, and overlaps where they are a match, to ``cells`` of an assignment, counted through all images."""
    matched, quality = (rows.view(-1) for rows in result)
    matched[cells] = labels
    quality[cells] = torch.where(labels >= 0, overlaps, 0)
