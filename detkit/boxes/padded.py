"""Suppression of whole padded batches, with shapes that do not depend on values: what detectors end with.

A worse box never changes the fate of a better one. So for the best few of an image look only at a prefix of its
candidates, in order of score: if it holds enough survivors they are the answer, else look at one twice as long, in the
images not yet full. All images are looked at together: each (image, group) is a segment of one engine run. On a GPU,
where a look at the values would make the host wait, ``detkit.boxes.segments`` stands in.
"""

import math
from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from detkit._door import door
from detkit._inputs import as_tensor, promote
from detkit._sent import sent
from detkit._threads import on_one_thread
from detkit.boxes.measures import Measure
from detkit.boxes.nms import check_options
from detkit.boxes.suppression import MEASURES, MeasureName, best_first, surviving, usable
from detkit.kernels.switch import takes_over

_SHORT_PREFIX = 1024  # candidates to look at first, where that is 2 to 4 times what is wanted


@door
def nms_padded(
    boxes: Shaped[Tensor, "B N 4"],
    scores: Shaped[Tensor, "B N"],
    iou_threshold: float,
    *,
    groups: Shaped[Tensor, "B N"] | None = None,
    valid: Bool[Tensor, "B N"] | None = None,
    max_detections: int,
    measure: MeasureName = "iou",
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
    check_options("nms_padded", iou_threshold, measure)
    if max_detections < 1:
        raise ValueError(f"nms_padded: max_detections={max_detections} must be at least 1")
    boxes = as_tensor(boxes, function="nms_padded", name="boxes", form="XYXY")
    scores = as_tensor(scores, function="nms_padded", name="scores")
    if boxes.ndim != 3 or boxes.shape[-1] != 4:
        raise ValueError(f"nms_padded: boxes has shape {tuple(boxes.shape)}; allowed is (B, N, 4)")
    for name, rows in (("scores", scores), ("groups", groups), ("valid", valid)):
        if rows is not None and as_tensor(rows, function="nms_padded", name=name).shape != boxes.shape[:2]:
            raise ValueError(f"nms_padded: {name} has shape {tuple(rows.shape)}; allowed is {tuple(boxes.shape[:2])}")
    if groups is not None and groups.is_floating_point():
        raise ValueError(f"nms_padded: groups has type {groups.dtype}; allowed are integers")
    return torch.ops.detkit.nms_padded(boxes, scores, iou_threshold, groups, valid, max_detections, measure)


@door
def multiclass_nms_padded(
    boxes: Shaped[Tensor, "B N 4"] | Shaped[Tensor, "B N C 4"],
    scores: Shaped[Tensor, "B N C"],
    iou_threshold: float,
    *,
    score_threshold: float,
    candidates_per_class: int | None = None,
    max_detections: int,
    measure: MeasureName = "iou",
) -> tuple[Int[Tensor, "B K"], Int[Tensor, "B K"], Bool[Tensor, "B K"]]:
    """The best ``max_detections`` of all (box, class) pairs above ``score_threshold`` that survive in their class.

    boxes (B, N, 4), or (B, N, C, 4) where every class has its own; scores (B, N, C); of each class only the best
    ``candidates_per_class`` are looked at (None: all).
    Returns (indices, labels, valid), each (B, K) with K the smaller of ``max_detections`` and the number of candidates:
    box and class of every detection, best first, ties by lower box, then by lower class; zeros where ``valid`` is
    False. A pair that is not finite neither survives nor suppresses. Compiles and exports. No array of all N * C pairs
    is sorted or copied: only the boxes whose best class is among the best few are looked at.

    >>> boxes, scores = torch.tensor([[[0.0, 0, 9, 9], [0, 0, 9, 8]]]), torch.tensor([[[0.9, 0.2], [0.8, 0.3]]])
    >>> multiclass_nms_padded(boxes, scores, 0.5, score_threshold=0.1, max_detections=3)
    (tensor([[0, 1, 0]]), tensor([[0, 1, 0]]), tensor([[ True,  True, False]]))
    """
    function = "multiclass_nms_padded"
    check_options(function, iou_threshold, measure)
    for name, count in (("max_detections", max_detections), ("candidates_per_class", candidates_per_class)):
        if count is not None and count < 1:
            raise ValueError(f"{function}: {name}={count} must be at least 1")
    if not -math.inf < score_threshold < math.inf:
        raise ValueError(f"{function}: score_threshold={score_threshold} must be finite")
    boxes = as_tensor(boxes, function=function, name="boxes", form="XYXY")
    scores = as_tensor(scores, function=function, name="scores")
    if boxes.ndim not in (3, 4) or boxes.shape[-1] != 4:
        raise ValueError(f"{function}: boxes has shape {tuple(boxes.shape)}; allowed is (B, N, 4) or (B, N, C, 4)")
    if scores.ndim != 3 or scores.shape[:2] != boxes.shape[:2]:
        raise ValueError(
            f"{function}: scores has shape {tuple(scores.shape)}; allowed is {tuple(boxes.shape[:2])} and the classes"
        )
    if boxes.ndim == 4 and boxes.shape[:3] != scores.shape:
        raise ValueError(
            f"{function}: boxes of each class have shape {tuple(boxes.shape)}; allowed is {tuple(scores.shape)} and 4"
        )
    pairs, valid = torch.ops.detkit.multiclass_nms_padded(
        boxes, scores, iou_threshold, score_threshold, candidates_per_class, max_detections, measure
    )
    return pairs // scores.shape[2], pairs % scores.shape[2], valid


class _Prefix(NamedTuple):
    """The best candidates of some images, best first: their places, boxes and groups, which rows count, and for each
    image whether more may follow."""

    places: Int[Tensor, "B L"]
    boxes: Float[Tensor, "B L 4"]
    groups: Int[Tensor, "B L"] | None
    real: Bool[Tensor, "B L"]
    more: Bool[Tensor, "B"]

    def on_host(self) -> "_Prefix":
        """Where survivors are found: it would have to wait for a device at each of many small steps."""
        groups = None if self.groups is None else self.groups.cpu()
        return _Prefix(self.places.cpu(), self.boxes.cpu(), groups, self.real.cpu(), self.more.cpu())


def _best_survivors(
    look: Callable[[Tensor, int], _Prefix], batch: int, width: int, total: int, nms: tuple[float, Measure], like: Tensor
) -> tuple[Int[Tensor, "B K"], Bool[Tensor, "B K"]]:
    """Places of the best ``width`` survivors of every image: ``look`` shows prefixes of up to ``total`` candidates."""
    indices = torch.zeros(batch, width, dtype=torch.int64)
    filled = torch.zeros_like(indices, dtype=torch.bool)
    images = torch.arange(batch if width else 0)
    length = max(2 * width, min(4 * width, _SHORT_PREFIX))
    while len(images):
        places, boxes, groups, real, more = look(sent(images, like.device), min(length, total)).on_host()
        owner = images[:, None].expand_as(places)[real]
        segments = owner if groups is None else _segments(owner, groups[real])
        keep = torch.zeros_like(real)
        keep[real] = surviving(boxes[real], segments, *nms, width)
        column = keep.cumsum(1) - 1
        row, at = (keep & (column < width)).nonzero(as_tuple=True)
        indices[images[row], column[row, at]] = places[row, at]
        filled[images[row], column[row, at]] = True
        images = images[~filled[images, -1] & more & (length < total)]
        length *= 2
    return sent(indices, like.device), sent(filled, like.device)


@on_one_thread
def _nms_padded(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    groups: Tensor | None,
    valid: Tensor | None,
    max_detections: int,
    measure: str,
) -> tuple[Tensor, Tensor]:
    boxes, scores = promote(boxes), promote(scores)
    candidates = usable(boxes, scores) if valid is None else usable(boxes, scores) & valid
    ranked = torch.where(candidates, scores, -torch.inf)

    def look(images: Tensor, length: int) -> _Prefix:
        order = best_first(ranked[images], length)
        rows = images[:, None]
        real = candidates[rows, order]
        return _Prefix(order, boxes[rows, order], None if groups is None else groups[rows, order], real, real[:, -1])

    batch, total = scores.shape
    nms = (iou_threshold, MEASURES[measure])
    return _best_survivors(look, batch, min(max_detections, total), total, nms, boxes)


_nms_padded_operator = torch.library.custom_op("detkit::nms_padded", _nms_padded, mutates_args=())
takes_over(_nms_padded_operator, _nms_padded, lambda: import_module("detkit.boxes.segments").nms_padded)


@_nms_padded_operator.register_fake
def _(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    groups: Tensor | None,
    valid: Tensor | None,
    max_detections: int,
    measure: str,
) -> tuple[Tensor, Tensor]:
    return _shapes(boxes, boxes.shape[1], max_detections)


@on_one_thread
def _multiclass_nms_padded(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    score_threshold: float,
    candidates_per_class: int | None,
    max_detections: int,
    measure: str,
) -> tuple[Tensor, Tensor]:
    """Of the best L pairs each belongs to a box whose best class is among the best L boxes': so choose boxes first."""
    (batch, count, classes), boxes = scores.shape, promote(boxes)
    best = scores.amax(2) if classes else scores.new_zeros(batch, count)
    if not torch.isfinite(best).all() & torch.isfinite(boxes).all():
        solid = torch.isfinite(boxes).all(-1)
        finite = (solid if boxes.ndim == 4 else solid[..., None]) & torch.isfinite(scores)
        scores = torch.where(finite, scores, -torch.inf)
        best = scores.amax(2)
    best = promote(best)
    hopeful = count  # the most boxes of an image with a class above the threshold; a device would have to be asked
    if boxes.device.type == "cpu" and best.numel():
        hopeful = max(1, int((best > score_threshold).sum(1).max()))

    def look(images: Tensor, length: int) -> _Prefix:
        rows = best_first(best[images], min(length, hopeful)).sort(dim=1).values  # in order of boxes, for ties
        pairs = promote(scores[images[:, None], rows]).flatten(1)
        order = best_first(pairs, length)
        real = pairs.gather(1, order) > score_threshold
        seen_all = rows.shape[1] == hopeful and order.shape[1] == pairs.shape[1]
        more = torch.zeros_like(real[:, -1]) if seen_all else real[:, -1]
        index, labels = rows.gather(1, order // classes), order % classes
        if candidates_per_class is not None:
            real = real & (_rank_within(labels, classes) < candidates_per_class)
        place = (images[:, None], index) if boxes.ndim == 3 else (images[:, None], index, labels)
        return _Prefix(index * classes + labels, boxes[place], labels, real, more)

    width = min(max_detections, min(count, candidates_per_class or count) * classes)
    nms = (iou_threshold, MEASURES[measure])
    return _best_survivors(look, batch, width, count * classes, nms, boxes)


_multiclass_operator = torch.library.custom_op("detkit::multiclass_nms_padded", _multiclass_nms_padded, mutates_args=())
takes_over(
    _multiclass_operator,
    _multiclass_nms_padded,
    lambda: import_module("detkit.boxes.segments").multiclass_nms_padded,
)


@_multiclass_operator.register_fake
def _(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    score_threshold: float,
    candidates_per_class: int | None,
    max_detections: int,
    measure: str,
) -> tuple[Tensor, Tensor]:
    each = scores.shape[1] if candidates_per_class is None else torch.sym_min(scores.shape[1], candidates_per_class)
    return _shapes(boxes, each * scores.shape[2], max_detections)


def _shapes(boxes: Tensor, total: int | torch.SymInt, max_detections: int) -> tuple[Tensor, Tensor]:
    shape = (boxes.shape[0], torch.sym_min(max_detections, total))
    return boxes.new_empty(shape, dtype=torch.int64), boxes.new_empty(shape, dtype=torch.bool)


def _segments(owner: Int[Tensor, "N"], groups: Shaped[Tensor, "N"]) -> Int[Tensor, "N"]:
    """One number for each pair of an image and a group, whatever integers groups are."""
    return owner * len(groups) + groups.unique(return_inverse=True)[1]


def _rank_within(labels: Int[Tensor, "B L"], classes: int) -> Int[Tensor, "B L"]:
    """How many of the same label stand before each, in its row."""
    rows = torch.arange(len(labels), device=labels.device)[:, None]
    grouped, order = (labels + rows * classes).flatten().sort(stable=True)
    rank = torch.arange(len(order), device=order.device) - torch.searchsorted(grouped, grouped)
    return torch.empty_like(order).index_copy_(0, order, rank).view(labels.shape)
