"""The IoU of every object with every anchor, of a batch or of one image, and pieces of the anchors that keep it small.

The matrix of a batch suits a device. On the CPU an image at a time is faster: its own objects, without padding, and
pieces that stay in the cache.
"""

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from detkit.boxes import box_iou
from detkit.boxes.iou_blocks import iou_matrix
from detkit.boxes.measures import BoxSides

_ENTRIES = 2**20  # per piece, which then fits a core's cache
_ENTRIES_ON_DEVICE = 2**24


def pairs_at_once(device: torch.device, *, on_cpu: int) -> int:
    """How many pairs of objects and anchors are looked at together.

    >>> pairs_at_once(torch.device("cpu"), on_cpu=100)
    100
    """
    return on_cpu if device.type == "cpu" else _ENTRIES_ON_DEVICE


def overlap_matrix(
    boxes: Shaped[Tensor, "B T 4"], objects: Bool[Tensor, "B T"], anchors: Shaped[Tensor, "*B N 4"]
) -> Float[Tensor, "B T N"]:
    """The IoU in float32 of every object with every anchor; -1 for rows that are no ``objects`` and for NaN boxes.

    >>> boxes = torch.tensor([[[0.0, 0, 2, 2], [0, 0, 2, 2]]])
    >>> overlap_matrix(boxes, torch.tensor([[True, False]]), torch.tensor([[0.0, 0, 2, 1]]))
    tensor([[[ 0.5000],
             [-1.0000]]])
    """
    objects = objects & ~boxes[..., 0].isnan()
    pairs = objects[..., None] & ~anchors[..., 0].isnan().unsqueeze(-2)
    return torch.where(pairs, box_iou(boxes, anchors).float(), -1)


def matrix_pieces(objects: Bool[Tensor, "B T"], anchors: Shaped[Tensor, "*B N 4"]) -> list[slice]:
    """Slices of the anchors, so short that the matrix of each with all objects of the batch stays small.

    >>> matrix_pieces(torch.ones(8, 128).bool(), torch.zeros(2000, 4))
    [slice(0, 1024, None), slice(1024, 2048, None)]
    """
    return _pieces(anchors.shape[-2], objects.numel(), pairs_at_once(anchors.device, on_cpu=_ENTRIES))


def best_objects(overlaps: Float[Tensor, "M N"]) -> tuple[Float[Tensor, "N"], Int[Tensor, "N"]]:
    """Each anchor's highest IoU with any of M objects, at least 1, and which one, the lowest of equals; read them only.

    >>> best_objects(torch.tensor([[0.5, 0.25]]))
    (tensor([0.5000, 0.2500]), tensor([0, 0]))
    """
    if len(overlaps) > 1:
        return overlaps.max(0)
    return overlaps[0], torch.zeros(1, dtype=torch.int64).expand(overlaps.shape[1])


def best_matches(
    objects: BoxSides, anchors: BoxSides, *, ties: bool = False
) -> tuple[Float[Tensor, "N"], Int[Tensor, "N"], Bool[Tensor, "N"] | None]:
    """Each anchor's highest IoU, in float32, with any of one image's M objects, and which one, the lowest of equals.

    With ``ties`` also whether the anchor has the highest IoU of any object, all that are equal, and it is above 0.
    M is at least 1.

    >>> from detkit.boxes import sides_of
    >>> objects = sides_of(torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 4]]))
    >>> best_matches(objects, sides_of(torch.tensor([[0.0, 0, 2, 3], [0, 0, 1, 1]])), ties=True)
    (tensor([0.7500, 0.2500]), tensor([1, 0]), tensor([ True, False]))
    """
    pieces = _pieces(len(anchors.area), len(objects.area), _ENTRIES)
    if len(pieces) == 1:
        overlaps = iou_matrix(objects, anchors).float()
        return *best_objects(overlaps), _reaching(overlaps, overlaps.amax(1)) if ties else None
    parts = [anchors.map(lambda values, piece=piece: values[piece]) for piece in pieces]
    best, peaks = [], []
    for part in parts:
        overlaps = iou_matrix(objects, part).float()
        best.append(overlaps.max(0))
        peaks.append(overlaps.amax(1))
    overlap, row = (torch.cat(values) for values in zip(*best, strict=True))
    return overlap, row, _tied(objects, parts, peaks) if ties else None


def _pieces(anchors: int, objects: int, most: int) -> list[slice]:
    size = max(1, most // max(1, objects))
    return [slice(start, start + size) for start in range(0, anchors, size)]


def _tied(objects: BoxSides, parts: list[BoxSides], peaks: list[Float[Tensor, "M"]]) -> Bool[Tensor, "N"]:
    """Which anchors have an object's highest IoU; only the parts where its peak is that high are computed again."""
    highest = torch.stack(peaks).amax(0)
    found = []
    for part, peak in zip(parts, peaks, strict=True):
        rows = (peak == highest).nonzero().squeeze(1)
        found.append(_reaching(iou_matrix(objects.take(rows), part).float(), highest[rows]))
    return torch.cat(found)


def _reaching(overlaps: Float[Tensor, "M N"], highest: Float[Tensor, "M"]) -> Bool[Tensor, "N"]:
    hits = overlaps == torch.threshold(highest, 0, torch.nan)[:, None]
    if len(hits) < 2:
        return hits[0] if len(hits) else hits.any(0)
    return hits.view(torch.uint8).amax(0).view(torch.bool)  # ten times faster than any(0)
