"""Keypoint R-CNN's loss: a softmax over the cells of a heatmap, whose target is the cell that holds the keypoint."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from detkit._door import door
from detkit._inputs import as_boxes, promote
from detkit._ranges import Count
from detkit.structures import take_rows


class KeypointTargets(NamedTuple):
    """For each keypoint of each box, its cell, counted row by row from 0, and whether it is usable; else cell is 0."""

    cells: Int[Tensor, "*B P"]
    usable: Bool[Tensor, "*B P"]


@door
def keypoint_loss(
    logits: Float[Tensor, "M P S S"], cells: Int[Tensor, "M P"], usable: Bool[Tensor, "M P"]
) -> Float[Tensor, "M P"]:
    """Cross-entropy of each heatmap, with a softmax over its S * S positions, one of which is the target.

    logits are (M, P, S, S), ``cells`` (M, P) in 0..S*S-1; where ``usable`` (M, P) is False the loss and its gradient
    are 0, whatever the logits. Unreduced; half precision is promoted. Raises ValueError if shapes disagree.
    Source: He et al. 2017, section 5.

    >>> heatmaps, usable = torch.zeros(1, 2, 2, 2), torch.tensor([[True, False]])
    >>> keypoint_loss(heatmaps, torch.tensor([[3, 0]]), usable)
    tensor([[1.3863, 0.0000]])
    """
    if logits.ndim != 4 or not logits.shape[:2] == cells.shape == usable.shape:
        raise ValueError(
            f"keypoint_loss: logits {tuple(logits.shape)}, cells {tuple(cells.shape)}, usable {tuple(usable.shape)}; "
            "allowed is (M, P, S, S), (M, P), (M, P)"
        )
    flat = torch.where(usable[..., None], promote(logits).flatten(2), 0).flatten(0, 1)
    costs = F.cross_entropy(flat, torch.where(usable, cells, 0).flatten(), reduction="none")
    return torch.where(usable, costs.reshape(cells.shape), 0)


@door
@torch.no_grad()
def keypoint_targets(
    keypoints: Shaped[Tensor, "B T P 3"], boxes: Shaped[Tensor, "B K 4"], matched: Int[Tensor, "B K"], resolution: Count
) -> KeypointTargets:
    """The cell of each box's heatmap, ``resolution`` x ``resolution``, that each keypoint of its object falls into.

    keypoints (B, T, P, 3) are x, y, visibility, in the pixels of ``boxes`` (B, K, 4); ``matched`` (B, K) is the object
    of each box: a negative one gives meaningless cells. Column and row are floor((x - x1) * S / (x2 - x1)), or S - 1 on
    the right and lower border. A keypoint is usable if it is visible (above 0) and inside the box, and never in an
    inverted box. Returns cells and usable, both (B, K, P). Raises ValueError if shapes disagree.

    >>> keypoints = torch.tensor([[[[5.0, 2, 1], [10, 10, 2], [11, 5, 1]]]])
    >>> keypoint_targets(keypoints, torch.tensor([[[0.0, 0, 10, 10]]]), torch.tensor([[0]]), 4)
    KeypointTargets(cells=tensor([[[ 2, 15,  0]]]), usable=tensor([[[ True,  True, False]]]))
    """
    if keypoints.ndim != 4 or keypoints.shape[3] != 3 or boxes.ndim != 3 or matched.shape != boxes.shape[:2]:
        raise ValueError(
            f"keypoint_targets: keypoints {tuple(keypoints.shape)}, boxes {tuple(boxes.shape)}, matched "
            f"{tuple(matched.shape)}; allowed is (B, T, P, 3), (B, K, 4), (B, K)"
        )
    boxes, points = as_boxes(boxes, function="keypoint_targets"), promote(keypoints)
    x, y, visibility = take_rows(points, matched.clamp(min=0)).unbind(3)
    low_x, low_y, high_x, high_y = boxes[..., None].unbind(2)
    column, in_x = _cell(x, low_x, high_x, resolution)
    row, in_y = _cell(y, low_y, high_y, resolution)
    usable = in_x & in_y & (visibility > 0)
    return KeypointTargets(torch.where(usable, row * resolution + column, 0), usable)


def _cell(
    place: Float[Tensor, "B K P"], low: Float[Tensor, "B K 1"], high: Float[Tensor, "B K 1"], cells: int
) -> tuple[Int[Tensor, "B K P"], Bool[Tensor, "B K P"]]:
    """The cell of each place between ``low`` and ``high``, and whether it lies there at all."""
    has_length, on_border = high > low, (place == high) & (high >= low)
    scale = cells / torch.where(has_length, high - low, 1)
    cell = torch.where(on_border, cells - 1, ((place - low) * scale).floor())
    inside = (cell >= 0) & (cell < cells) & (has_length | on_border)  # a NaN is not
    return torch.where(inside, cell, 0).to(torch.int64), inside
