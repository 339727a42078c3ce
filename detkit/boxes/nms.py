"""Suppression of boxes that see the same object: for one set, for many groups at once, for padded batches.

Each entry point checks its arguments, ranks the candidates (best first, ties to the lower index), cuts them into
segments of one image and group each, and hands all segments to one engine (``detkit.boxes.suppression``). They are
custom ops: one node to compile and export, whatever happens inside.
"""

from typing import Literal, cast

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from detkit.boxes.arguments import as_boxes, check_box_values, check_finite, promote
from detkit.boxes.suppression import Measure, survivors
from detkit.checks import check_fraction
from detkit.ranking import stable_topk

NonFinite = Literal["raise", "drop"]


def nms(
    boxes: Shaped[Tensor, "N 4"],
    scores: Shaped[Tensor, "N"],
    iou_threshold: float,
    *,
    measure: Measure = "iou",
    nonfinite: NonFinite = "raise",
) -> Int[Tensor, "K"]:
    """Indices of the boxes that survive greedy non-maximum suppression, best score first, ties by lower index.

    boxes (N, 4) xyxy; scores (N,). A box goes when its IoU with a better survivor is strictly above ``iou_threshold``,
    in [0, 1]; boxes without area neither suppress nor are suppressed. ``measure="diou"`` compares DIoU instead, which
    spares boxes that overlap but lie off-centre (Zheng et al. 2020, section 3.3). NaN or infinite boxes, NaN scores and
    inverted boxes raise ValueError naming the first; ``nonfinite="drop"`` leaves rows that are not finite out instead.

    >>> boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
    >>> nms(boxes, torch.tensor([0.8, 0.9, 0.7]), iou_threshold=0.5)
    tensor([1, 2])
    """
    _check_rows("nms", boxes, scores, nonfinite)
    _check_options("nms", iou_threshold, measure)
    return torch.ops.detkit.nms(boxes, scores, None, iou_threshold, measure, nonfinite == "drop")


def batched_nms(
    boxes: Shaped[Tensor, "N 4"],
    scores: Shaped[Tensor, "N"],
    groups: Shaped[Tensor, "N"],
    iou_threshold: float,
    *,
    measure: Measure = "iou",
    nonfinite: NonFinite = "raise",
) -> Int[Tensor, "K"]:
    """:func:`nms` within each group: boxes of different ``groups`` (N,) integers, classes say, never meet.

    The survivors of all groups come in order of score, ties by lower index: exactly what a loop over groups keeps.

    >>> boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [1, 1, 10, 10]])
    >>> batched_nms(boxes, torch.tensor([0.8, 0.9, 0.7]), torch.tensor([0, 1, 1]), iou_threshold=0.5)
    tensor([1, 0])
    """
    _check_rows("batched_nms", boxes, scores, nonfinite)
    _check_options("batched_nms", iou_threshold, measure)
    if groups.shape != scores.shape or groups.is_floating_point():
        raise ValueError(
            f"batched_nms: groups has shape {tuple(groups.shape)} and type {groups.dtype}; "
            f"allowed is an integer for each of the {len(scores)} scores"
        )
    return torch.ops.detkit.nms(boxes, scores, groups, iou_threshold, measure, nonfinite == "drop")


def nms_padded(
    boxes: Shaped[Tensor, "B N 4"],
    scores: Shaped[Tensor, "B N"],
    iou_threshold: float,
    *,
    groups: Shaped[Tensor, "B N"] | None = None,
    valid: Bool[Tensor, "B N"] | None = None,
    max_detections: int,
    measure: Measure = "iou",
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
    _check_options("nms_padded", iou_threshold, measure)
    if max_detections < 1:
        raise ValueError(f"nms_padded: max_detections={max_detections} must be at least 1")
    if boxes.ndim != 3 or boxes.shape[-1] != 4:
        raise ValueError(f"nms_padded: boxes has shape {tuple(boxes.shape)}; allowed is (B, N, 4)")
    for name, rows in (("scores", scores), ("groups", groups), ("valid", valid)):
        if rows is not None and rows.shape != boxes.shape[:2]:
            raise ValueError(f"nms_padded: {name} has shape {tuple(rows.shape)}; allowed is {tuple(boxes.shape[:2])}")
    return torch.ops.detkit.nms_padded(boxes, scores, iou_threshold, groups, valid, max_detections, measure)


def _check_options(function: str, iou_threshold: float, measure: str) -> None:
    check_fraction(iou_threshold, name="iou_threshold", function=function)
    if measure not in ("iou", "diou"):
        raise ValueError(f"{function}: measure={measure!r}; allowed is 'iou' or 'diou'")


def _check_rows(function: str, boxes: Tensor, scores: Tensor, nonfinite: str) -> None:
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
def _nms(
    boxes: Tensor, scores: Tensor, groups: Tensor | None, iou_threshold: float, measure: str, drop: bool
) -> Tensor:
    function = "nms" if groups is None else "batched_nms"
    boxes, scores = as_boxes(boxes, function=function), promote(scores)
    if drop:
        order = _best(torch.where(_usable(boxes, scores), scores, -torch.inf), len(scores))
        order = order[: int(_usable(boxes, scores).sum())]
    else:
        if boxes.device.type == "cpu":
            check_box_values(boxes, function=function)
            check_finite(scores, function=function, name="scores")
        order = _best(scores, len(scores))
    segments = None if groups is None else groups[order].to(torch.int64)
    return order[_survive(boxes.index_select(0, order), segments, iou_threshold, cast(Measure, measure))]


@_nms.register_fake
def _(boxes: Tensor, scores: Tensor, groups: Tensor | None, iou_threshold: float, measure: str, drop: bool) -> Tensor:
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


@torch.library.custom_op("detkit::nms_padded", mutates_args=())
def _nms_padded(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    groups: Tensor | None,
    valid: Tensor | None,
    max_detections: int,
    measure: str,
) -> tuple[Tensor, Tensor]:
    """A worse box never changes the fate of a better one. So for the best few of an image, look at a prefix of its
    candidates: if that holds enough survivors they are the answer, else look at one twice as long."""
    boxes, scores = promote(boxes), promote(scores)
    usable = _usable(boxes, scores) if valid is None else _usable(boxes, scores) & valid
    scores, counts = torch.where(usable, scores, -torch.inf), usable.sum(1)
    width = min(max_detections, boxes.shape[1])
    indices = torch.zeros(len(boxes), width, dtype=torch.int64, device=boxes.device)
    filled = torch.zeros_like(indices, dtype=torch.bool)
    images, length = counts.nonzero().squeeze(1), 4 * width
    while len(images):
        order = _best(scores[images], length)
        real = torch.arange(order.shape[1], device=order.device) < counts[images, None]
        owner, chosen = images[:, None].expand_as(order)[real], order[real]
        segments = owner if groups is None else _segments(owner, groups[owner, chosen])
        keep = torch.zeros_like(real)
        keep[real] = _survive(boxes[owner, chosen], segments, iou_threshold, cast(Measure, measure))
        place = keep.cumsum(1) - 1
        keep &= place < width
        row, column = keep.nonzero(as_tuple=True)
        indices[images[row], place[row, column]] = order[row, column]
        filled[images[row], place[row, column]] = True
        images = images[~filled[images, -1] & (counts[images] > length)]
        length *= 2
    return indices, filled


@_nms_padded.register_fake
def _(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    groups: Tensor | None,
    valid: Tensor | None,
    max_detections: int,
    measure: str,
) -> tuple[Tensor, Tensor]:
    shape = (boxes.shape[0], torch.sym_min(max_detections, boxes.shape[1]))
    return boxes.new_empty(shape, dtype=torch.int64), boxes.new_empty(shape, dtype=torch.bool)


def _usable(boxes: Float[Tensor, "*B N 4"], scores: Float[Tensor, "*B N"]) -> Bool[Tensor, "*B N"]:
    """Rows whose numbers are finite: the others can neither be kept nor suppress."""
    return torch.isfinite(boxes).all(-1) & torch.isfinite(scores)


def _best(scores: Float[Tensor, "*B N"], count: int) -> Int[Tensor, "*B K"]:
    """The order of the best ``count`` scores of each row, ties by lower index."""
    if scores.dtype == torch.float32 and count < scores.shape[-1]:
        return stable_topk(scores, count)
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :count]


def _segments(owner: Int[Tensor, "N"], groups: Int[Tensor, "N"]) -> Int[Tensor, "N"]:
    """One number for each pair of an image and a group, whatever integers groups are."""
    groups = groups.unique(return_inverse=True)[1]
    return owner * (groups.amax() + 1) + groups


def _survive(
    boxes: Float[Tensor, "N 4"], segments: Int[Tensor, "N"] | None, iou_threshold: float, measure: Measure
) -> Bool[Tensor, "N"]:
    """Which rows survive, of rows in order of score that may be suppressed by those of their own segment."""
    if segments is None:
        return survivors(boxes, [len(boxes)], iou_threshold, measure)
    ordered, order = segments.sort(stable=True)
    lengths = ordered.unique_consecutive(return_counts=True)[1].tolist()
    keep = torch.zeros_like(segments, dtype=torch.bool)
    return keep.index_fill_(0, order[survivors(boxes.index_select(0, order), lengths, iou_threshold, measure)], True)
