"""Soft-NMS: the best box lowers the scores of the boxes that it overlaps, again and again.

It is sequential by definition, but only within a group: boxes of other groups and images never meet. So
``_soften`` sorts the candidates into segments, one for each group of each image, pads segments of similar length to one
table (S, L), and lets all rows of a table take a step together: pick the best box, decay the rest. All of it runs on
the host in float64; that is one copy, where steps on an accelerator would cost a launch each.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from numpy.typing import NDArray
from torch import Tensor

from detkit._door import door
from detkit._inputs import (
    as_tensor,
    check_box_values,
    check_finite,
    check_fraction,
    promote,
)
from detkit._threads import on_one_thread
from detkit.boxes.overlap import box_iou

DecayMethod = Literal["linear", "gaussian"]

_LONGEST_MATRIX = 2048  # segments up to here know their IoU matrix; longer ones compute a row for each pick
_MATRIX_NUMBERS = 2**22  # of the matrices that are held at one time
_BLOCK_NUMBERS = 2**15  # of a matrix that are computed at one time: they fit the cache
_GONE = -1.0  # below every score_threshold


@door
def soft_nms(
    boxes: Shaped[Tensor, "N 4"],
    scores: Shaped[Tensor, "N"],
    *,
    groups: Shaped[Tensor, "N"] | None = None,
    method: DecayMethod = "gaussian",
    sigma: float = 0.5,
    iou_threshold: float = 0.3,
    score_threshold: float = 0.001,
    max_detections: int | None = None,
    nonfinite: Literal["raise", "drop"] = "raise",
) -> tuple[Int[Tensor, "K"], Float[Tensor, "K"]]:
    """Indices of the boxes that keep a score, best first, and these lowered scores; ties to the lower index.

    boxes (N, 4) xyxy; scores (N,); boxes of different ``groups`` (N,), integers, never meet. Again and again the box of
    the highest score left is picked, and the scores of the rest of its group are multiplied: ``"gaussian"`` by
    exp(-IoU^2 / ``sigma``), ``"linear"`` by 1 - IoU where IoU is above ``iou_threshold``. Scores below
    ``score_threshold`` are dropped; ``max_detections`` stops earlier. Boxes without area overlap nothing. Computed in
    float64 on the host, without a gradient. Raises ValueError as :func:`detkit.boxes.nms` does for rows that are not
    finite (``nonfinite="drop"`` leaves them out) or inverted, on every device. Source: Bodla et al. 2017, section 3.

    >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [20, 20, 30, 30]])
    >>> soft_nms(boxes, torch.tensor([0.9, 0.8, 0.7]))
    (tensor([0, 2, 1]), tensor([0.9000, 0.7000, 0.4852]))
    """
    check_options("soft_nms", method, sigma, nonfinite, max_detections)
    check_fraction(iou_threshold, name="iou_threshold", function="soft_nms")
    check_fraction(score_threshold, name="score_threshold", function="soft_nms")
    boxes, scores = read_rows("soft_nms", boxes, scores, 1, groups=groups)
    boxes, scores = boxes.detach(), scores.detach()
    return torch.ops.detkit.soft_nms(
        boxes, scores, groups, method, sigma, iou_threshold, score_threshold, max_detections, nonfinite == "drop"
    )


@door
def soft_nms_padded(
    boxes: Shaped[Tensor, "B N 4"],
    scores: Shaped[Tensor, "B N"],
    *,
    groups: Shaped[Tensor, "B N"] | None = None,
    valid: Bool[Tensor, "B N"] | None = None,
    method: DecayMethod = "gaussian",
    sigma: float = 0.5,
    iou_threshold: float = 0.3,
    score_threshold: float = 0.001,
    max_detections: int,
) -> tuple[Int[Tensor, "B K"], Float[Tensor, "B K"], Bool[Tensor, "B K"]]:
    """:func:`soft_nms` of every image of a batch, with shapes that do not depend on values.

    Arguments and indices as :func:`detkit.boxes.nms_padded`, options as :func:`soft_nms`. Returns (indices, scores,
    valid), each (B, K) with K = min(max_detections, N), best first; where ``valid`` is False nothing was left, and
    index and score are 0. Rows that are not finite or not ``valid`` take no part. Compiles and exports.

    >>> boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 5], [20, 20, 30, 30]]])
    >>> soft_nms_padded(boxes, torch.tensor([[0.9, 0.8, 0.0]]), max_detections=9)
    (tensor([[0, 1, 0]]), tensor([[0.9000, 0.4852, 0.0000]]), tensor([[ True,  True, False]]))
    """
    check_options("soft_nms_padded", method, sigma, "drop", max_detections)
    check_fraction(iou_threshold, name="iou_threshold", function="soft_nms_padded")
    check_fraction(score_threshold, name="score_threshold", function="soft_nms_padded")
    boxes, scores = read_rows("soft_nms_padded", boxes, scores, 2, groups=groups, valid=valid)
    boxes, scores = boxes.detach(), scores.detach()
    return torch.ops.detkit.soft_nms_padded(
        boxes, scores, groups, valid, method, sigma, iou_threshold, score_threshold, max_detections
    )


def safe_sigma(sigma: float, like: Tensor) -> float:
    """``sigma`` as a number that the type of ``like`` does not round to 0."""
    return max(sigma, torch.finfo(like.dtype).tiny)


def check_options(function: str, method: str, sigma: float, nonfinite: str, max_detections: int | None) -> None:
    if method not in ("linear", "gaussian"):
        raise ValueError(f"{function}: method={method!r}; allowed is 'linear' or 'gaussian'")
    if not 0 < sigma < float("inf"):
        raise ValueError(f"{function}: sigma={sigma} must be a positive finite number")
    if nonfinite not in ("raise", "drop"):
        raise ValueError(f"{function}: nonfinite={nonfinite!r}; allowed is 'raise' or 'drop'")
    if max_detections is not None and max_detections < 1:
        raise ValueError(f"{function}: max_detections={max_detections} must be at least 1")


def read_rows(function: str, boxes: Any, scores: Any, ndim: int, **rows: Any) -> tuple[Tensor, Tensor]:
    """Boxes (..., N, 4) with ``ndim`` dimensions before the last, and scores; everything has one entry for each."""
    boxes = as_tensor(boxes, function=function, name="boxes", form="XYXY")
    boxes = boxes.reshape(0, 4) if boxes.shape == (0,) else boxes
    scores = as_tensor(scores, function=function, name="scores")
    if boxes.ndim != ndim + 1 or boxes.shape[-1] != 4:
        allowed = {1: "(N, 4)", 2: "(B, N, 4)"}.get(ndim, "(..., N, 4)")
        raise ValueError(f"{function}: boxes has shape {tuple(boxes.shape)}; allowed is {allowed}")
    for name, entries in {"scores": scores, **rows}.items():
        if entries is not None and as_tensor(entries, function=function, name=name).shape != boxes.shape[:-1]:
            raise ValueError(
                f"{function}: {name} has shape {tuple(entries.shape)}; allowed is {tuple(boxes.shape[:-1])}, "
                "one for each box"
            )
    check_groups(function, rows.get("groups"))
    return boxes, scores


def check_groups(function: str, groups: Tensor | None) -> None:
    if groups is not None and (groups.is_floating_point() or groups.is_complex()):
        raise ValueError(f"{function}: groups has type {groups.dtype}; allowed is an integer for each box")


class _Decay(NamedTuple):
    """What a picked box does to the scores of the boxes that it overlaps."""

    method: str
    sigma: float
    iou_threshold: float

    def __call__(self, overlaps: Tensor) -> Tensor:
        if self.method == "linear":
            return torch.where(overlaps > self.iou_threshold, 1 - overlaps, 1)
        return torch.exp(-overlaps * overlaps / safe_sigma(self.sigma, overlaps))


@torch.library.custom_op("detkit::soft_nms", mutates_args=())
@on_one_thread
def _soft_nms(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor | None,
    method: str,
    sigma: float,
    iou_threshold: float,
    score_threshold: float,
    max_detections: int | None,
    drop: bool,
) -> tuple[Tensor, Tensor]:
    if not drop:
        check_box_values(promote(boxes), function="soft_nms")
        check_finite(promote(scores), function="soft_nms", name="scores")
    groups = None if groups is None else groups[None]
    limit = len(scores) if max_detections is None else min(max_detections, len(scores))
    decay = _Decay(method, sigma, iou_threshold)
    best, indices = _soften(boxes[None], scores[None], groups, None, decay, score_threshold, limit)
    count = int((best[0] >= 0).sum())
    return indices[0, :count].clone(), best[0, :count].clone()


@_soft_nms.register_fake
def _(boxes, scores, groups, method, sigma, iou_threshold, score_threshold, max_detections, drop):
    count = torch.library.get_ctx().new_dynamic_size()
    return scores.new_empty(count, dtype=torch.int64), promote(scores.new_empty(count))


@torch.library.custom_op("detkit::soft_nms_padded", mutates_args=())
@on_one_thread
def _soft_nms_padded(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor | None,
    valid: Tensor | None,
    method: str,
    sigma: float,
    iou_threshold: float,
    score_threshold: float,
    max_detections: int,
) -> tuple[Tensor, Tensor, Tensor]:
    limit = min(max_detections, boxes.shape[1])
    decay = _Decay(method, sigma, iou_threshold)
    best, indices = _soften(boxes, scores, groups, valid, decay, score_threshold, limit)
    filled = best >= 0
    return torch.where(filled, indices, 0), torch.where(filled, best, 0), filled


@_soft_nms_padded.register_fake
def _(boxes, scores, groups, valid, method, sigma, iou_threshold, score_threshold, max_detections):
    shape = (boxes.shape[0], torch.sym_min(max_detections, boxes.shape[1]))
    return (
        scores.new_empty(shape, dtype=torch.int64),
        promote(scores.new_empty(shape)),
        scores.new_empty(shape, dtype=torch.bool),
    )


def _soften(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor | None,
    valid: Tensor | None,
    decay: _Decay,
    score_threshold: float,
    limit: int,
) -> tuple[Tensor, Tensor]:
    """The best ``limit`` lowered scores (B, limit) of each image and their places; ``_GONE`` where no more are left.

    Scores only fall, so a box is not picked before its first score is the best left. For the best few, look at a prefix
    of the candidates: if enough of them end above the best candidate outside, they are the answer, else double it.
    """
    rows, start = boxes.to("cpu", torch.float64), scores.to("cpu", torch.float64)
    candidates = torch.isfinite(rows).all(-1) & (start >= score_threshold) & (start < torch.inf)
    candidates = candidates if valid is None else candidates & valid.cpu()
    start = torch.where(candidates, start, _GONE)
    ranked = start.sort(dim=1, descending=True).values
    lowered, length, unsure = torch.full_like(start, _GONE), 4 * limit, candidates.any(1, keepdim=True)
    while limit and unsure.any():
        outside = ranked[:, length : length + 1] if length < start.shape[1] else torch.full_like(ranked[:, :1], _GONE)
        prefix = (start > outside) & unsure
        lowered[unsure.squeeze(1)] = _GONE  # what a shorter prefix picked may not be picked by a longer one
        _lower(lowered, rows, start, prefix, groups, decay, score_threshold, limit)
        unsure = unsure & (outside > _GONE) & (lowered.topk(limit).values[:, -1:] <= outside)
        length *= 2
    result = lowered.to(scores.device, promote(scores[:0]).dtype)
    best, indices = result.sort(dim=1, descending=True, stable=True)
    return best[:, :limit], indices[:, :limit]


def _lower(
    lowered: Tensor,
    boxes: Tensor,
    start: Tensor,
    candidates: Tensor,
    groups: Tensor | None,
    decay: _Decay,
    score_threshold: float,
    limit: int,
) -> None:
    """Write what the scores of ``candidates`` end as into ``lowered`` (B, N): the best ``limit`` of each segment."""
    flat_boxes, flat_start, result = boxes.reshape(-1, 4), start.flatten().numpy(), lowered.view(-1).numpy()
    for members, inside in _tables(candidates, groups):
        current = np.where(inside, flat_start[members], _GONE)
        steps = min(limit, int(inside.sum(1).max()))
        places, tops = _picks(flat_boxes[torch.from_numpy(members)], current, decay, score_threshold, steps)
        kept = tops >= score_threshold
        result[np.take_along_axis(members, places, 1)[kept]] = tops[kept]


def _tables(
    candidates: Bool[Tensor, "B N"], groups: Tensor | None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
    """Tables (S, L) of places in the flat batch: a row is a segment, its boxes by index; and where a row is filled."""
    places = candidates.flatten().numpy().nonzero()[0]
    if len(places) == 0:
        return
    image = places // candidates.shape[1]
    group = np.zeros_like(places) if groups is None else groups.flatten().cpu().numpy()[places]
    order = np.lexsort((group, image))
    places, image, group = places[order], image[order], group[order]
    first = np.r_[0, ((image[1:] != image[:-1]) | (group[1:] != group[:-1])).nonzero()[0] + 1]
    counts = np.diff(np.r_[first, len(places)])
    size = np.ceil(np.log2(counts))
    for exponent in np.unique(size):
        segments = (size == exponent).nonzero()[0]
        length = int(counts[segments].max())
        together = max(1, _MATRIX_NUMBERS // length**2)
        for some in range(0, len(segments), together):
            rows = segments[some : some + together]
            inside = np.arange(length) < counts[rows, None]
            yield places[np.where(inside, first[rows, None] + np.arange(length), 0)], inside


def _picks(
    boxes: Float[Tensor, "S L 4"], current: NDArray[np.float64], decay: _Decay, score_threshold: float, steps: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The boxes that each row picks, step by step (S, steps), and the score that each had then."""
    decays, rows = _decays(boxes, decay), np.arange(len(current))
    left = current >= 0
    places, tops = np.zeros((steps, len(rows)), np.int64), np.full((steps, len(rows)), _GONE)
    for step in range(steps):
        best = current.argmax(1)  # the first of equals
        top = current[rows, best]
        if top.max() < score_threshold:
            break
        places[step], tops[step] = best, top
        current[rows, best], left[rows, best] = _GONE, False
        np.multiply(current, decays(best), out=current, where=left)
    return places.T, tops.T


def _decays(boxes: Float[Tensor, "S L 4"], decay: _Decay) -> Callable[[NDArray[np.int64]], NDArray[np.float64]]:
    """What tells for the picked box of each row (S,) the factors (S, L) of the boxes beside it."""
    if boxes.shape[1] > _LONGEST_MATRIX:
        rows = torch.arange(len(boxes))
        return lambda best: decay(box_iou(boxes[rows, torch.from_numpy(best), None], boxes))[:, 0].numpy()
    blocks = boxes.split(max(1, _BLOCK_NUMBERS // boxes[..., 0].numel()), dim=1)
    matrix = torch.cat([decay(box_iou(block, boxes)) for block in blocks], dim=1).numpy()
    rows = np.arange(len(boxes))
    return lambda best: matrix[rows, best]
