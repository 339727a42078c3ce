"""Suppression of boxes that see the same object: for one set, for many groups at once, for padded batches.

All entry points share one engine, ``_suppress``: candidates in order of score, ties to the lower index, cut into
segments of one group each, and every segment given to torchvision's kernel on its own. Coordinates are never shifted to
keep groups apart: shifting rounds them and lets boxes with negative coordinates meet another group.
"""

from typing import Literal

import torch
import torchvision
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from detkit.boxes.arguments import as_boxes, check_box_values, check_finite, promote
from detkit.checks import check_fraction

NonFinite = Literal["raise", "drop"]


def nms(
    boxes: Shaped[Tensor, "N 4"],
    scores: Shaped[Tensor, "N"],
    iou_threshold: float,
    *,
    nonfinite: NonFinite = "raise",
) -> Int[Tensor, "K"]:
    """Indices of the boxes that survive greedy non-maximum suppression, best score first, ties by lower index.

    boxes (N, 4) xyxy; scores (N,). A box goes when its IoU with a better survivor is strictly above ``iou_threshold``,
    in [0, 1]; boxes without area neither suppress nor are suppressed. NaN or infinite boxes, NaN scores and inverted
    boxes raise ValueError naming the first; ``nonfinite="drop"`` leaves rows that are not finite out instead.

    >>> boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
    >>> nms(boxes, torch.tensor([0.8, 0.9, 0.7]), iou_threshold=0.5)
    tensor([1, 2])
    """
    _check_rows("nms", boxes, scores, iou_threshold, nonfinite)
    return torch.ops.detkit.nms(boxes, scores, None, iou_threshold, nonfinite == "drop")


def batched_nms(
    boxes: Shaped[Tensor, "N 4"],
    scores: Shaped[Tensor, "N"],
    groups: Shaped[Tensor, "N"],
    iou_threshold: float,
    *,
    nonfinite: NonFinite = "raise",
) -> Int[Tensor, "K"]:
    """:func:`nms` within each group: boxes of different ``groups`` (N,) integers, classes say, never meet.

    The survivors of all groups come in order of score, ties by lower index: exactly what a loop over groups keeps.

    >>> boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [1, 1, 10, 10]])
    >>> batched_nms(boxes, torch.tensor([0.8, 0.9, 0.7]), torch.tensor([0, 1, 1]), iou_threshold=0.5)
    tensor([1, 0])
    """
    _check_rows("batched_nms", boxes, scores, iou_threshold, nonfinite)
    if groups.shape != scores.shape or groups.is_floating_point():
        raise ValueError(
            f"batched_nms: groups has shape {tuple(groups.shape)} and type {groups.dtype}; "
            f"allowed is an integer for each of the {len(scores)} scores"
        )
    return torch.ops.detkit.nms(boxes, scores, groups, iou_threshold, nonfinite == "drop")


def nms_padded(
    boxes: Shaped[Tensor, "B N 4"],
    scores: Shaped[Tensor, "B N"],
    iou_threshold: float,
    *,
    groups: Shaped[Tensor, "B N"] | None = None,
    valid: Bool[Tensor, "B N"] | None = None,
    max_detections: int,
) -> tuple[Int[Tensor, "B K"], Bool[Tensor, "B K"]]:
    """The best ``max_detections`` survivors of every image, with shapes that do not depend on values.

    boxes (B, N, 4), scores (B, N), ``groups`` (B, N) integers that keep boxes apart, ``valid`` (B, N) False where a row
    is padding. Returns (indices, valid), both (B, K) with K = min(max_detections, N): row b of ``indices`` points into
    image b, best first; where ``valid`` is False nothing was left and the index is 0. Rows that are not finite never
    survive and never suppress. Compiles and exports.

    >>> boxes = torch.tensor([[[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]]])
    >>> nms_padded(boxes, torch.tensor([[0.8, 0.9, 0.7]]), 0.5, max_detections=3)
    (tensor([[1, 2, 0]]), tensor([[ True,  True, False]]))
    """
    check_fraction(iou_threshold, name="iou_threshold", function="nms_padded")
    if max_detections < 1:
        raise ValueError(f"nms_padded: max_detections={max_detections} must be at least 1")
    if boxes.ndim != 3 or boxes.shape[-1] != 4:
        raise ValueError(f"nms_padded: boxes has shape {tuple(boxes.shape)}; allowed is (B, N, 4)")
    for name, rows in (("scores", scores), ("groups", groups), ("valid", valid)):
        if rows is not None and rows.shape != boxes.shape[:2]:
            raise ValueError(f"nms_padded: {name} has shape {tuple(rows.shape)}; allowed is {tuple(boxes.shape[:2])}")
    return torch.ops.detkit.nms_padded(boxes, scores, iou_threshold, groups, valid, max_detections)


def _check_rows(function: str, boxes: Tensor, scores: Tensor, iou_threshold: float, nonfinite: str) -> None:
    check_fraction(iou_threshold, name="iou_threshold", function=function)
    if nonfinite not in ("raise", "drop"):
        raise ValueError(f"{function}: nonfinite={nonfinite!r}; allowed is 'raise' or 'drop'")
    empty = boxes.ndim == 1 and boxes.shape[0] == 0
    if not empty and (boxes.ndim != 2 or boxes.shape[1] != 4):
        raise ValueError(f"{function}: boxes has shape {tuple(boxes.shape)}; allowed is (N, 4)")
    if scores.ndim != 1 or scores.shape[0] != boxes.shape[0]:
        raise ValueError(
            f"{function}: scores has shape {tuple(scores.shape)}; allowed is one score for each of "
            f"the {boxes.shape[0]} boxes"
        )


@torch.library.custom_op("detkit::nms", mutates_args=())
def _nms(boxes: Tensor, scores: Tensor, groups: Tensor | None, iou_threshold: float, drop: bool) -> Tensor:
    function = "nms" if groups is None else "batched_nms"
    boxes, scores = as_boxes(boxes, function=function), promote(scores)
    if drop:
        rows = _usable(boxes, scores).nonzero().squeeze(1)
        groups = None if groups is None else groups[rows]
        return rows[_suppress(boxes[rows], scores[rows], groups, iou_threshold)]
    if boxes.device.type == "cpu":
        check_box_values(boxes, function=function)
        check_finite(scores, function=function, name="scores")
    return _suppress(boxes, scores, groups, iou_threshold)


@_nms.register_fake
def _(boxes: Tensor, scores: Tensor, groups: Tensor | None, iou_threshold: float, drop: bool) -> Tensor:
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


@torch.library.custom_op("detkit::nms_padded", mutates_args=())
def _nms_padded(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    groups: Tensor | None,
    valid: Tensor | None,
    max_detections: int,
) -> tuple[Tensor, Tensor]:
    boxes, scores = promote(boxes), promote(scores)
    candidates = _usable(boxes, scores)
    candidates = candidates if valid is None else candidates & valid
    width = min(max_detections, boxes.shape[1])
    indices = torch.zeros(len(boxes), width, dtype=torch.int64, device=boxes.device)
    counts = []
    for image, rows in enumerate(candidates):
        rows = rows.nonzero().squeeze(1)
        image_groups = None if groups is None else groups[image, rows]
        best = _suppress(boxes[image, rows], scores[image, rows], image_groups, iou_threshold, limit=width)
        indices[image, : len(best)] = rows[best]
        counts.append(len(best))
    filled = torch.arange(width, device=boxes.device) < torch.tensor(counts, device=boxes.device)[:, None]
    return indices, filled


@_nms_padded.register_fake
def _(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    groups: Tensor | None,
    valid: Tensor | None,
    max_detections: int,
) -> tuple[Tensor, Tensor]:
    shape = (boxes.shape[0], torch.sym_min(max_detections, boxes.shape[1]))
    return boxes.new_empty(shape, dtype=torch.int64), boxes.new_empty(shape, dtype=torch.bool)


def _usable(boxes: Float[Tensor, "*B N 4"], scores: Float[Tensor, "*B N"]) -> Bool[Tensor, "*B N"]:
    """Rows whose numbers are finite: the others can neither be kept nor suppress."""
    return torch.isfinite(boxes).all(-1) & torch.isfinite(scores)


def _suppress(
    boxes: Tensor, scores: Tensor, groups: Tensor | None, iou_threshold: float, limit: int | None = None
) -> Tensor:
    """Indices of the survivors, best first; with ``limit`` only the best so many.

    A worse box never changes the fate of a better one. So for the best few, look at a prefix of the order: if it holds
    enough survivors they are the answer, else look at one twice as long.
    """
    order = scores.sort(descending=True, stable=True).indices
    scores = scores.to(boxes.dtype)  # the kernel wants one type; what that makes equal keeps its order
    limit = len(order) if limit is None else limit
    length = 4 * limit
    while True:
        prefix = order[:length]
        prefix_groups = None if groups is None else groups[prefix]
        kept = prefix[_survivors(boxes[prefix], scores[prefix], prefix_groups, iou_threshold)]
        if len(kept) >= limit or len(prefix) == len(order):
            return kept[:limit]
        length *= 2


def _survivors(boxes: Tensor, scores: Tensor, groups: Tensor | None, iou_threshold: float) -> Tensor:
    """Places, in rising order, that survive among candidates which already stand in order of score."""
    if groups is None:
        return torchvision.ops.nms(boxes, scores, iou_threshold)
    by_group = groups.sort(stable=True).indices
    counts = groups[by_group].unique_consecutive(return_counts=True)[1].tolist()
    segments = zip(boxes[by_group].split(counts), scores[by_group].split(counts), strict=True)
    kept, start = [], 0
    for group_boxes, group_scores in segments:
        kept.append(torchvision.ops.nms(group_boxes, group_scores, iou_threshold) + start)
        start += len(group_boxes)
    return by_group[torch.cat(kept)].sort().values if kept else by_group
