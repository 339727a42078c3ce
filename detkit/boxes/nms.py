"""Suppression of boxes that see the same object: for one set, and for many groups at once.

Both check their arguments, rank the boxes (best first, ties to the lower index), cut them into segments of one group
each, and hand all segments to one engine (``detkit.boxes.suppression``). They are a custom op: one node to compile and
export, whatever happens inside, and on a GPU a kernel (``detkit.boxes.segments``). Whole padded batches:
``detkit.boxes.padded``.
"""

from importlib import import_module
from typing import Any, Literal

import torch
import torchvision
from jaxtyping import Int, Shaped
from torch import Tensor

from detkit._door import door
from detkit._inputs import as_tensor, check_box_values, check_finite, check_fraction, on_host, promote
from detkit._threads import on_one_thread
from detkit.boxes.suppression import MEASURES, MeasureName, best_first, suits_kernel, surviving, usable
from detkit.kernels.switch import takes_over

NonFinite = Literal["raise", "drop"]


@door
def nms(
    boxes: Shaped[Tensor, "N 4"],
    scores: Shaped[Tensor, "N"],
    iou_threshold: float,
    *,
    measure: MeasureName = "iou",
    nonfinite: NonFinite = "raise",
) -> Int[Tensor, "K"]:
    """Indices of the boxes that survive greedy non-maximum suppression, best score first, ties by lower index.

    boxes (N, 4) xyxy; scores (N,). A box goes when its IoU with a better survivor is strictly above ``iou_threshold``,
    in [0, 1]; boxes without area neither suppress nor are suppressed. ``measure="diou"`` compares DIoU instead, which
    spares boxes that overlap but lie off-center (Zheng et al. 2020, section 3.3). There are no others: candidates are
    found by their IoU, so a measure must never exceed it, and an operator's schema holds names, not functions. NaN or
    infinite boxes, NaN scores and inverted boxes raise ValueError naming the first; ``nonfinite="drop"`` leaves rows
    that are not finite out instead.

    >>> boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
    >>> nms(boxes, torch.tensor([0.8, 0.9, 0.7]), iou_threshold=0.5)
    tensor([1, 2])
    """
    boxes, scores = _read_rows("nms", boxes, scores, nonfinite)
    check_options("nms", iou_threshold, measure)
    return _keep(boxes, scores, None, iou_threshold, measure, nonfinite == "drop")


@door
def batched_nms(
    boxes: Shaped[Tensor, "N 4"],
    scores: Shaped[Tensor, "N"],
    groups: Shaped[Tensor, "N"],
    iou_threshold: float,
    *,
    measure: MeasureName = "iou",
    nonfinite: NonFinite = "raise",
) -> Int[Tensor, "K"]:
    """:func:`nms` within each group: boxes of different ``groups`` (N,) integers, classes say, never meet.

    The survivors of all groups come in order of score, ties by lower index: exactly what a loop over groups keeps.

    >>> boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [1, 1, 10, 10]])
    >>> batched_nms(boxes, torch.tensor([0.8, 0.9, 0.7]), torch.tensor([0, 1, 1]), iou_threshold=0.5)
    tensor([1, 0])
    """
    boxes, scores = _read_rows("batched_nms", boxes, scores, nonfinite)
    check_options("batched_nms", iou_threshold, measure)
    groups = as_tensor(groups, function="batched_nms", name="groups")
    if groups.shape != scores.shape or groups.is_floating_point():
        raise ValueError(
            f"batched_nms: groups has shape {tuple(groups.shape)} and type {groups.dtype}; "
            f"allowed is an integer for each of the {len(scores)} scores"
        )
    return _keep(boxes, scores, groups, iou_threshold, measure, nonfinite == "drop")


def check_options(function: str, iou_threshold: float, measure: str) -> None:
    check_fraction(iou_threshold, name="iou_threshold", function=function)
    if measure not in MEASURES:
        raise ValueError(f"{function}: measure={measure!r}; allowed is 'iou' or 'diou'")


def _read_rows(function: str, boxes: Any, scores: Any, nonfinite: str) -> tuple[Tensor, Tensor]:
    if nonfinite not in ("raise", "drop"):
        raise ValueError(f"{function}: nonfinite={nonfinite!r}; allowed is 'raise' or 'drop'")
    boxes = as_tensor(boxes, function=function, name="boxes", form="XYXY")
    scores = as_tensor(scores, function=function, name="scores")
    empty = boxes.ndim == 1 and boxes.shape[0] == 0
    if not empty and (boxes.ndim != 2 or boxes.shape[1] != 4):
        raise ValueError(f"{function}: boxes has shape {tuple(boxes.shape)}; allowed is (N, 4)")
    if scores.ndim != 1 or scores.shape[0] != boxes.shape[0]:
        raise ValueError(
            f"{function}: scores has shape {tuple(scores.shape)}; allowed is one score for each of "
            f"the {boxes.shape[0]} boxes"
        )
    return boxes, scores


def _keep(boxes: Tensor, scores: Tensor, *rule: Any) -> Tensor:
    """The operator, or its body where nobody looks on: a hundred boxes take half as long without the dispatcher."""
    if on_host(boxes) and on_host(scores):
        with torch.no_grad():
            return _nms(boxes, scores, *rule)
    return torch.ops.detkit.nms(boxes, scores, *rule)


@on_one_thread
def _nms(
    boxes: Tensor, scores: Tensor, groups: Tensor | None, iou_threshold: float, measure: str, drop: bool
) -> Tensor:
    function = "nms" if groups is None else "batched_nms"
    boxes, scores = promote(boxes.reshape(-1, 4)), promote(scores)  # (0,) is an empty list of boxes
    if drop:
        order = best_first(torch.where(usable(boxes, scores), scores, -torch.inf), len(scores))
        order = order[: int(usable(boxes, scores).sum())]
    else:
        check_box_values(boxes, function=function)  # on a device too: the op waits for it anyway
        check_finite(scores, function=function, name="scores")
        if groups is None and measure == "iou" and suits_kernel(boxes, scores):
            return torchvision.ops.nms(boxes, scores, iou_threshold)
        order = best_first(scores, len(scores))
    segments = None if groups is None else groups[order].to(torch.int64)
    return order[surviving(boxes.index_select(0, order), segments, iou_threshold, MEASURES[measure])]


_nms_operator = torch.library.custom_op("detkit::nms", _nms, mutates_args=())
takes_over(_nms_operator, _nms, lambda: import_module("detkit.boxes.segments").nms)


@_nms_operator.register_fake
def _(boxes: Tensor, scores: Tensor, groups: Tensor | None, iou_threshold: float, measure: str, drop: bool) -> Tensor:
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)
