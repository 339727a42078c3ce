"""The IoU of every object with every anchor of a batch, and pieces of the anchors that keep it small."""

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from detkit.boxes import box_iou

_ENTRIES = {"cpu": 2**20}  # per piece, which then fits a core's cache
_ENTRIES_ON_DEVICE = 2**24


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
    most = _ENTRIES.get(anchors.device.type, _ENTRIES_ON_DEVICE)
    count, size = anchors.shape[-2], max(1, most // max(1, objects.numel()))
    return [slice(start, start + size) for start in range(0, count, size)]
