"""Suppression in fixed shapes, around a kernel: what the operators of suppression run on a GPU.

Rows become segments, the kernel says which of them survive, and the survivors become the best of each image: no step
waits for the device, and none looks at a prefix, as ``detkit.boxes.padded`` does where a look is cheap. :func:`nms`
alone has a result as long as its values say, for which it waits once. Boxes and scores in float64, as wide integers
are promoted to, are left to the torch form.
"""

from types import NotImplementedType

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from detkit._inputs import check_box_values, check_finite, promote
from detkit.boxes.measures import coordinate_limit, smallest_union
from detkit.boxes.suppression import best_first, round_down, usable
from detkit.kernels.nms import Rule, Segments, surviving_rows

_MOST_PAIRS = 1 << 25  # (box, class) pairs ranked at once: bounds memory to about 2 GB

Found = tuple[Tensor, Tensor] | NotImplementedType


def nms(
    boxes: Tensor, scores: Tensor, groups: Tensor | None, iou_threshold: float, measure: str, drop: bool
) -> Tensor | NotImplementedType:
    """The body of ``detkit::nms``."""
    boxes, scores = promote(boxes.reshape(-1, 4)), promote(scores)
    if not _suits(boxes, scores):
        return NotImplemented
    sound = usable(boxes, scores)
    order, keep = _ranked(
        boxes[None], scores[None], None if groups is None else groups[None], sound[None],
        _rule(iou_threshold, measure, len(boxes)),
    )  # fmt: skip
    wrong = ~(sound & (boxes[:, 2:] >= boxes[:, :2]).all(1))
    count, some_wrong = torch.stack((keep.sum(), wrong.any())).tolist()  # the one wait
    if some_wrong and not drop:
        function = "nms" if groups is None else "batched_nms"
        check_box_values(boxes, function=function)
        check_finite(scores, function=function, name="scores")
    return _first_kept(order, keep, count)[0]


def nms_padded(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    groups: Tensor | None,
    valid: Tensor | None,
    max_detections: int,
    measure: str,
) -> Found:
    """The body of ``detkit::nms_padded``."""
    boxes, scores = promote(boxes), promote(scores)
    if not _suits(boxes, scores):
        return NotImplemented
    candidates = usable(boxes, scores) if valid is None else usable(boxes, scores) & valid
    width = min(max_detections, scores.shape[1])
    order, keep = _ranked(boxes, scores, groups, candidates, _rule(iou_threshold, measure, width))
    found = torch.arange(width, device=keep.device) < keep.sum(1, keepdim=True)
    return torch.where(found, _first_kept(order, keep, width), 0), found


def multiclass_nms_padded(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    score_threshold: float,
    candidates_per_class: int | None,
    max_detections: int,
    measure: str,
) -> Found:
    """The body of ``detkit::multiclass_nms_padded``."""
    boxes, (count, classes) = promote(boxes), scores.shape[1:]
    if not _suits(boxes, promote(scores[:0])):
        return NotImplemented
    each = min(count, candidates_per_class or count)
    rule = _rule(iou_threshold, measure, min(max_detections, each * classes))
    step = max(1, _MOST_PAIRS // max(1, count * classes))
    parts = [
        _best_pairs(*part, score_threshold, each, rule)
        for part in zip(boxes.split(step), scores.split(step), strict=True)
    ]
    pairs, found = zip(*parts, strict=True)
    return torch.cat(pairs), torch.cat(found)


def _suits(boxes: Tensor, scores: Tensor) -> bool:
    return boxes.dtype == scores.dtype == torch.float32


def _rule(iou_threshold: float, measure: str, most: int) -> Rule:
    dtype = torch.float32
    threshold = round_down(iou_threshold, dtype)
    return Rule(threshold, measure == "diou", coordinate_limit(dtype), smallest_union(dtype), most)


def _ranked(
    boxes: Float[Tensor, "B N 4"],
    scores: Float[Tensor, "B N"],
    groups: Shaped[Tensor, "B N"] | None,
    candidates: Bool[Tensor, "B N"],
    rule: Rule,
) -> tuple[Int[Tensor, "B N"], Bool[Tensor, "B N"]]:
    """The rows of each image, best first, candidates before others, and which of them survive."""
    batch, count = scores.shape
    order = best_first(torch.where(candidates, scores, -torch.inf), count)
    real = candidates.gather(1, order)
    images = torch.arange(batch, device=boxes.device)[:, None]
    places = images * count + order
    if groups is None:
        segments = _rows_of_equal_length(real.sum(1), count)
        return order, surviving_rows(boxes.reshape(-1, 4), places.flatten(), segments, rule).view_as(real) & real
    grouped, by_group = groups.gather(1, order).to(torch.int64).sort(dim=1, stable=True)
    segments = _runs_of_equal_group(grouped, real.gather(1, by_group))
    kept = surviving_rows(boxes.reshape(-1, 4), places.gather(1, by_group).flatten(), segments, rule)
    return order, torch.empty_like(real).scatter_(1, by_group, kept.view_as(real)) & real


def _rows_of_equal_length(lengths: Int[Tensor, "S"], longest: int) -> Segments:
    """Segments that have room for ``longest`` rows each, of which the first are used."""
    numbers = torch.arange(len(lengths), device=lengths.device)
    owners = numbers[:, None].expand(-1, longest).flatten()
    return Segments(numbers * longest, lengths, owners, longest)


def _runs_of_equal_group(groups: Int[Tensor, "B N"], real: Bool[Tensor, "B N"]) -> Segments:
    """A segment for each run of a group in an image; those that are not ``real``, at the end of it, do not count.

    There are as many segments as rows, the last ones of length 0: how many are needed only the device knows.
    """
    first = torch.ones_like(real)
    first[:, 1:] = groups[:, 1:] != groups[:, :-1]
    owners = first.flatten().cumsum(0) - 1
    starts = torch.searchsorted(owners, torch.arange(len(owners), device=owners.device))
    lengths = torch.zeros_like(owners).scatter_add_(0, owners, real.flatten().to(torch.int64))
    return Segments(starts, lengths, owners, groups.shape[1])


def _first_kept(order: Int[Tensor, "B N"], keep: Bool[Tensor, "B N"], width: int) -> Int[Tensor, "B K"]:
    """The first ``width`` of each row of ``order`` that are kept."""
    places = torch.where(keep, keep.cumsum(1) - 1, width).clamp(max=width)
    return order.new_zeros(len(order), width + 1).scatter_(1, places, order)[:, :width]


def _best_pairs(
    boxes: Float[Tensor, "B N 4"] | Float[Tensor, "B N C 4"],
    scores: Shaped[Tensor, "B N C"],
    score_threshold: float,
    each: int,
    rule: Rule,
) -> tuple[Int[Tensor, "B K"], Bool[Tensor, "B K"]]:
    """The best (box, class) pairs of each image, as box * C + class: a segment is a class of an image."""
    batch, count, classes = scores.shape
    solid, scores = torch.isfinite(boxes).all(-1), promote(scores)
    candidates = (solid if boxes.ndim == 4 else solid[..., None]) & (scores > score_threshold) & torch.isfinite(scores)
    ranked = torch.where(candidates, scores, -torch.inf).transpose(1, 2)
    order = best_first(ranked, each)
    lengths = candidates.sum(1).clamp(max=each)
    pairs = order * classes + torch.arange(classes, device=order.device)[:, None]
    images = torch.arange(batch, device=order.device)[:, None, None]
    places = images * count + order if boxes.ndim == 3 else images * count * classes + pairs
    segments = _rows_of_equal_length(lengths.flatten(), each)
    keep = surviving_rows(boxes.reshape(-1, 4), places.flatten(), segments, rule).view_as(order)
    keep &= torch.arange(each, device=order.device) < lengths[..., None]
    values = torch.where(keep, ranked.gather(2, order), -torch.inf).flatten(1)
    values = values.new_full((batch, count * classes), -torch.inf).scatter_(1, pairs.flatten(1), values)
    best = best_first(values, rule.most)
    found = values.gather(1, best) > -torch.inf
    return torch.where(found, best, 0), found
