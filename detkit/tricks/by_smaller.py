"""Suppression by intersection over the smaller area: part of an object goes beside the whole of it.

That measure exceeds IoU, by which :mod:`detkit.boxes.suppression` finds what may conflict, so it has a loop of its own.
"""

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from detkit._inputs import check_box_values, check_finite, promote


def nms_by_smaller(
    boxes: Shaped[Tensor, "N 4"], scores: Shaped[Tensor, "N"], groups: Int[Tensor, "N"], threshold: float
) -> Int[Tensor, "K"]:
    """As :func:`detkit.boxes.batched_nms`, by intersection over the smaller area; on the host, in float64.

    Boxes without area neither suppress nor are suppressed. Each survivor is compared with what may reach it from left
    to right only, so that work grows with how crowded the image is, not with the square of the boxes.

    >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 2], [0, 8, 10, 18]])
    >>> nms_by_smaller(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3).long(), 0.5)
    tensor([0, 2])
    """
    check_box_values(promote(boxes), function="NMSFusion", name="boxes")
    check_finite(promote(scores), function="NMSFusion", name="scores")
    order = scores.sort(descending=True, stable=True).indices
    corners = boxes[order].detach().to("cpu", torch.float64)
    alive = _outliving(corners.numpy(), groups[order].cpu().numpy(), threshold)
    return order[torch.from_numpy(alive).to(order.device)]


def _outliving(corners: np.ndarray, groups: np.ndarray, threshold: float) -> np.ndarray:
    """Which boxes, best first, no better survivor of their group covers by more than ``threshold``."""
    sides = np.maximum(corners[:, 2:] - corners[:, :2], 0)
    areas, alive = sides.prod(1), np.ones(len(corners), dtype=bool)
    sweep = corners[:, 0].argsort(kind="stable")  # rows by their left border: those that may meet are neighbors
    starts, widest = corners[sweep, 0], sides[:, 0].max(initial=0)
    for row in np.flatnonzero(areas > 0):
        if not alive[row]:
            continue
        x1, y1, x2, y2 = corners[row]
        near = sweep[starts.searchsorted(x1 - widest) : starts.searchsorted(x2, side="right")]
        near = near[(near > row) & alive[near] & (groups[near] == groups[row]) & (areas[near] > 0)]
        low, high = np.maximum(corners[near, :2], (x1, y1)), np.minimum(corners[near, 2:], (x2, y2))
        shared = np.maximum(high - low, 0).prod(1)
        alive[near[shared > threshold * np.minimum(areas[near], areas[row])]] = False
    return alive
