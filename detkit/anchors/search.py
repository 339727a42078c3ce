"""The overlapping pairs of a whole batch, a few images at a time, and which object each anchor fits best."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from detkit._ranking import from_rising_bits, rising_bits
from detkit.anchors.overlap import Sides, sides_of
from detkit.boxes import box_iou
from detkit.structures import IGNORED, NEGATIVE, Assignment

_OBJECTS_TOGETHER = 512
_SMALLEST_SEARCH = 2**17  # objects times anchors; below, the matrix costs less than sorting the anchors
_MATRIX = {"cpu": 2**20}  # entries of a piece of the matrix
_MATRIX_ON_DEVICE = 2**24


class ImageGroup(NamedTuple):
    """Consecutive images and their objects: M of them, each with its image (counted in the group) and its row."""

    images: slice
    image: Int[Tensor, "M"]
    row: Int[Tensor, "M"]
    sides: Sides


class Fit(NamedTuple):
    """For each pair: the object that its anchor fits best, and their IoU."""

    row: Int[Tensor, "P"]
    overlap: Float[Tensor, "P"]


def worth_searching(objects: Bool[Tensor, "B T"], anchors: Shaped[Tensor, "*B N 4"]) -> bool:
    """True where many objects meet many anchors that all images share, on a CPU."""
    shared = anchors.ndim == 2 and anchors.device.type == "cpu"
    return shared and objects.numel() * len(anchors) >= _SMALLEST_SEARCH


def image_groups(boxes: Shaped[Tensor, "B T 4"], objects: Bool[Tensor, "B T"]) -> Iterator[ImageGroup]:
    """Images in groups of some hundred objects; those without objects are left out where they would stand alone."""
    start, total, counts = 0, 0, objects.sum(1).tolist()
    for end, count in enumerate(counts, 1):
        total += count
        if total >= _OBJECTS_TOGETHER or (end == len(counts) and total):
            images = slice(start, end)
            image, row = objects[images].nonzero().unbind(1)
            yield ImageGroup(images, image, row, sides_of(boxes[images][image, row]))
            start, total = end, 0


def best_fit(cells: Int[Tensor, "P"], rows: Int[Tensor, "P"], overlaps: Float[Tensor, "P"], table: Tensor) -> Fit:
    """Of all pairs that share a cell of ``table`` the one with the highest IoU, then the lowest row.

    ``table`` (cells) int64 holds negative numbers; it is written to in the ``cells`` that occur.
    """
    keys = pair_keys(overlaps, rows)
    table.scatter_reduce_(0, cells, keys, "amax")
    won = table[cells]
    return Fit(0xFFFFFFFF - (won & 0xFFFFFFFF), from_rising_bits(won >> 32))


def pair_keys(overlaps: Float[Tensor, "*P"], indices: Int[Tensor, "*P"]) -> Int[Tensor, "*P"]:
    """Integers that order pairs by overlap, at least 0, then by lower index."""
    return (rising_bits(overlaps) << 32) | (0xFFFFFFFF - indices)


def threshold_labels(
    row: Int[Tensor, "*B"], overlap: Float[Tensor, "*B"], positive: float, negative: float
) -> Int[Tensor, "*B"]:
    """The row where ``overlap`` is at least ``positive``, else NEGATIVE, or IGNORED from ``negative`` on."""
    rest = torch.where(overlap >= negative, IGNORED, NEGATIVE)
    return torch.where(overlap >= positive, row, rest)


def write_labels(
    matched: Int[Tensor, "cells"],
    quality: Float[Tensor, "cells"],
    cells: Int[Tensor, "P"],
    labels: Int[Tensor, "P"],
    overlaps: Float[Tensor, "P"],
) -> None:
    """Set ``cells`` of a flat assignment; where there is no match, the quality is 0."""
    matched[cells] = labels
    quality[cells] = torch.where(labels >= 0, overlaps, 0)


def no_matches(boxes: Shaped[Tensor, "B T 4"], anchors: Shaped[Tensor, "*B N 4"]) -> Assignment:
    """An assignment in which every anchor is NEGATIVE."""
    shape = (boxes.shape[0], anchors.shape[-2])
    return Assignment(boxes.new_full(shape, NEGATIVE, dtype=torch.int64), boxes.new_zeros(shape, dtype=torch.float32))


def matrix_pieces(objects: Bool[Tensor, "B T"], anchors: Shaped[Tensor, "*B N 4"]) -> list[slice]:
    """Slices of the anchors whose matrix with all objects stays small."""
    most = _MATRIX.get(anchors.device.type, _MATRIX_ON_DEVICE)
    count, size = anchors.shape[-2], max(1, most // max(1, objects.numel()))
    return [slice(start, start + size) for start in range(0, count, size)]


def masked_overlaps(
    boxes: Shaped[Tensor, "B T 4"], objects: Bool[Tensor, "B T"], anchors: Shaped[Tensor, "*B N 4"]
) -> Float[Tensor, "B T N"]:
    """IoU in float32 of objects and anchors, -1 in rows that are no objects and where one is NaN."""
    objects = objects & ~boxes[..., 0].isnan()
    pairs = objects[..., None] & ~anchors[..., 0].isnan().unsqueeze(-2)
    return torch.where(pairs, box_iou(boxes, anchors).float().abs(), -1)  # abs: the bits of -0.0 sort high
