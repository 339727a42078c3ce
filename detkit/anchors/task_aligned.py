"""Matchers that read predictions: task-aligned assignment (TOOD) and simplified optimal transport (YOLOX)."""

from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from detkit._door import door
from detkit._inputs import as_boxes, check_finite, first_bad, full_checks, promote
from detkit._ranges import Count, NotNegative, Positive
from detkit._ranking import at_most, stable_topk
from detkit._threads import on_one_thread
from detkit.anchors.assigned import values_of_labels
from detkit.anchors.candidates import Piece, inside_boxes, near_centers, pieces_of, points_in_crowds
from detkit.anchors.claims import highest_claim
from detkit.anchors.matcher import AnchorBoxes, read_boxes, read_predictions
from detkit.boxes import box_centers, box_iou, points_in_boxes
from detkit.structures import IGNORED, NEGATIVE, Anchors, Assignment, Predictions, Targets

_SMALLEST_IOU = 1e-8
_LARGEST_LOSS = 100.0  # of one class, as torch's binary cross-entropy bounds its logarithms
_BEST_OVERLAPS = 10
_OUTSIDE = 2.0**40


class TaskAlignedMatcher(nn.Module):
    """Task-aligned assignment: an object's positives are the anchors that predict its class and its box best together.

    The alignment of an anchor with an object is score ** ``alpha`` * IoU ** ``beta``: the predicted score of the
    object's class, and the IoU of the predicted box. Of the anchors whose center lies strictly inside the object, the
    ``candidates`` with the highest alignment are positive, or all if they are fewer; an anchor that several objects
    claim goes to the one with the highest IoU. Ties go to the lower anchor and the lower object; all numbers are
    compared in float32. An object has no positive anchor if no center lies inside it, or if no prediction there
    overlaps it (alignment 0).

    ``quality`` is the target of a positive's score: its alignment, scaled so that the highest of an object's positives
    equals the highest IoU among them (TOOD, section 3.2.1, "normalized t"); 0 for the others. The others are NEGATIVE,
    or IGNORED if their center lies in a crowd or their prediction is not finite; such a prediction is never positive
    and does not change the matches of others. Padding rows and boxes that are not finite match nothing.

    Raises ValueError for fewer than 1 candidate, negative exponents, and shapes that disagree; with
    ``DETKIT_CHECKS=full`` for numbers that are not finite, inverted boxes, scores outside [0, 1] and labels out of
    range. Source: Feng et al. 2021 (TOOD), section 3.2; alpha and beta are those of later YOLO detectors.

    >>> from detkit.structures import pad_targets
    >>> targets = pad_targets([{"boxes": torch.tensor([[0.0, 0, 10, 10]]), "labels": torch.tensor([0])}])
    >>> cells = torch.tensor([[0.0, 0, 8, 8], [4, 0, 12, 8], [16, 0, 24, 8]])
    >>> boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 10]]])
    >>> TaskAlignedMatcher(beta=1.0)(cells, targets, Predictions(boxes, torch.full((1, 3, 1), 0.5)))
    Assignment(matched=tensor([[ 0,  0, -1]]), quality=tensor([[1.0000, 0.5000, 0.0000]]))
    """

    reads_predictions = True

    @door
    def __init__(self, *, candidates: Count = 13, alpha: NotNegative = 1.0, beta: NotNegative = 6.0) -> None:
        super().__init__()
        self.candidates, self.alpha, self.beta = candidates, alpha, beta

    @door
    @torch.no_grad()
    def forward(self, anchors: AnchorBoxes, targets: Targets, predictions: Predictions | None = None) -> Assignment:
        """Match predictions with objects: scores (B, N, C) in [0, 1], predicted boxes (B, N, 4) xyxy pixels.

        Of ``anchors``, (N, 4) or (B, N, 4) xyxy, only the centers are used. Raises ValueError without predictions.
        """
        cells, targets = read_boxes("TaskAlignedMatcher", anchors, targets)
        points = box_centers(cells).expand(targets.boxes.shape[0], -1, 2)
        scores, boxes, usable = _usable("TaskAlignedMatcher", points, targets, predictions)
        found = targets.boxes, targets.labels, targets.objects, points, boxes, scores, usable
        places, overlaps, alignment = torch.ops.detkit.aligned_candidates(
            *found, self.candidates, self.alpha, self.beta
        )
        matched, _ = highest_claim(places, overlaps, alignment > 0, boxes.shape[1])
        quality = _normalized(alignment, overlaps, _winners(matched, places) & (alignment > 0))
        return Assignment(_leave_out(matched, points, usable, targets), _best(quality, places, usable))

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"candidates={self.candidates}, alpha={self.alpha}, beta={self.beta}"


class SimOTAMatcher(nn.Module):
    """Simplified optimal transport: the better an object is predicted, the more anchors it gets, the cheapest first.

    The candidates of an object are the anchors (grid cells) whose center lies strictly inside it, or within ``radius``
    strides of its center along both axes. The cost of a candidate is the binary cross-entropy of all its class scores
    against the object's class, plus ``iou_weight`` * -log(IoU + 1e-8) of its predicted box. Candidates both inside and
    within the radius come before all others. The object gets the k cheapest, where k is the sum of the ``candidates``
    highest IoUs of its candidates, rounded down, at least 1. An anchor that several objects claim goes to the one with
    the lowest cost. Ties go to the lower anchor and the lower object; costs are compared in float32. ``quality`` is the
    IoU of the match, 0 without one. The others are NEGATIVE, or IGNORED if their center lies in a crowd or their
    prediction is not finite; such a prediction is never positive and does not change the matches of others. Padding
    rows and boxes that are not finite match nothing. An object without candidates has no positive anchor.

    Differs from YOLOX in two points: an object never gets an anchor that is a candidate of other objects only; and
    candidates not both inside and within the radius are ranked behind the others instead of costing 100,000 more, which
    in float32 would round their costs.

    Raises ValueError for fewer than 1 candidate, negative settings, and shapes that disagree; with
    ``DETKIT_CHECKS=full`` as :class:`TaskAlignedMatcher`. Source: Ge et al. 2021 (YOLOX), section 2.1 ("SimOTA").

    >>> from detkit.structures import pad_targets
    >>> targets = pad_targets([{"boxes": torch.tensor([[0.0, 0, 16, 8]]), "labels": torch.tensor([0])}])
    >>> cells = torch.tensor([[0.0, 0, 8, 8], [8, 0, 16, 8], [40, 0, 48, 8]])
    >>> boxes = torch.tensor([[[0.0, 0, 16, 8], [0, 0, 16, 4], [0, 0, 16, 8]]])
    >>> SimOTAMatcher()(cells, targets, Predictions(boxes, torch.full((1, 3, 1), 0.5)))
    Assignment(matched=tensor([[ 0, -1, -1]]), quality=tensor([[1., 0., 0.]]))
    """

    reads_predictions = True

    @door
    def __init__(
        self, *, candidates: Count = _BEST_OVERLAPS, radius: Positive = 2.5, iou_weight: NotNegative = 3.0
    ) -> None:
        super().__init__()
        self.candidates, self.radius, self.iou_weight = candidates, radius, iou_weight

    @door
    @torch.no_grad()
    def forward(self, anchors: AnchorBoxes, targets: Targets, predictions: Predictions | None = None) -> Assignment:
        """Match predictions with objects: scores (B, N, C) in [0, 1], predicted boxes (B, N, 4) xyxy pixels.

        YOLOX's scores are the square root of class probability times objectness; a stage passes the scores of its
        criterion, with :class:`~detkit.losses.ObjectnessLoss` the product itself. ``radius`` is in ``anchors.strides``;
        plain boxes, (N, 4) or (B, N, 4) xyxy, are the cells themselves. Raises ValueError without predictions.
        """
        cells, targets = read_boxes("SimOTAMatcher", anchors, targets)
        strides = promote(anchors.strides) if isinstance(anchors, Anchors) else cells[..., 2:] - cells[..., :2]
        points = box_centers(cells).expand(targets.boxes.shape[0], -1, 2)
        scores, boxes, usable = _usable("SimOTAMatcher", points, targets, predictions)
        near = (self.radius * strides).expand(points.shape)
        found = targets.boxes, targets.labels, targets.objects, points, near, boxes, scores, usable
        places, overlaps, costs, wanted = torch.ops.detkit.cheapest_candidates(*found, self.candidates, self.iou_weight)
        taken = (torch.arange(places.shape[2], device=places.device) < wanted[..., None]) & torch.isfinite(costs)
        matched, _ = highest_claim(places, -costs, taken, boxes.shape[1])
        quality = torch.where(_winners(matched, places) & taken, overlaps, 0)
        return Assignment(_leave_out(matched, points, usable, targets), _best(quality, places, usable))

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"candidates={self.candidates}, radius={self.radius}, iou_weight={self.iou_weight}"


@torch.library.custom_op("detkit::aligned_candidates", mutates_args=())
@on_one_thread
def _aligned(
    truth: Tensor,
    labels: Tensor,
    objects: Tensor,
    points: Tensor,
    boxes: Tensor,
    scores: Tensor,
    usable: Tensor,
    candidates: int,
    alpha: float,
    beta: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The candidates of each object, best first: places, overlaps and alignment (B, T, K), 0 where there is none."""
    places, overlaps, alignment = _empty(objects, points, candidates)
    for piece in pieces_of(truth, objects, points.shape[1], partial(inside_boxes, points)):
        own, seen = piece.of_objects(truth), piece.of_anchors(boxes)
        pairs = piece.of_objects(objects)[..., None] & piece.of_anchors(usable)[:, None]
        inside = points_in_boxes(piece.of_anchors(points)[:, None], own[:, :, None])
        overlap = box_iou(own, seen).float()
        score = values_of_labels(piece.of_anchors(scores), piece.of_objects(labels))
        aligned = torch.where(inside & pairs, score**alpha * overlap**beta, 0)
        best = stable_topk(aligned, candidates)
        _write(places, piece, piece.places(best))
        _write(overlaps, piece, overlap.gather(2, best))
        _write(alignment, piece, aligned.gather(2, best))
    return places, overlaps, alignment


@_aligned.register_fake
def _(truth: Tensor, labels: Tensor, objects: Tensor, points: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return _empty(objects, points, rest[3])


@torch.library.custom_op("detkit::cheapest_candidates", mutates_args=())
@on_one_thread
def _cheapest(
    truth: Tensor,
    labels: Tensor,
    objects: Tensor,
    points: Tensor,
    near: Tensor,
    boxes: Tensor,
    scores: Tensor,
    usable: Tensor,
    candidates: int,
    iou_weight: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The candidates of each object, cheapest first: their places, overlaps and costs (B, T, K), infinite where there
    is none; and how many of them the object wants (B, T)."""
    places, overlaps, costs = _empty(objects, points, candidates)
    costs.fill_(torch.inf)
    wanted = torch.ones_like(objects, dtype=torch.int64)
    nothing = -torch.log1p(-scores).clamp(min=-_LARGEST_LOSS).sum(-1)
    find = partial(near_centers, points, near, or_inside=True)
    for piece in pieces_of(truth, objects, points.shape[1], find):
        own, here = piece.of_objects(truth)[:, :, None], piece.of_anchors(points)[:, None]
        pairs = piece.of_objects(objects)[..., None] & piece.of_anchors(usable)[:, None]
        inside = points_in_boxes(here, own)
        close = ((here - box_centers(own)).abs() < piece.of_anchors(near)[:, None]).all(-1)
        pairs &= inside | close
        overlap = torch.where(pairs, box_iou(own.squeeze(2), piece.of_anchors(boxes)).float(), 0)
        score = values_of_labels(piece.of_anchors(scores), piece.of_objects(labels))
        cost = _pair_costs(score, piece.of_anchors(nothing)[:, None], overlap, iou_weight)
        cost = torch.where(inside & close, cost, (cost + 1) * _OUTSIDE)
        cost = torch.where(pairs, cost, torch.inf)
        best = stable_topk(-cost, candidates)
        most = overlap.gather(2, stable_topk(overlap, candidates)).sum(-1, dtype=torch.float64)
        _write(places, piece, piece.places(best))
        _write(overlaps, piece, overlap.gather(2, best))
        _write(costs, piece, cost.gather(2, best))
        wanted[piece.images, piece.rows] = most.long().clamp(min=1)
    return places, overlaps, costs, wanted


@_cheapest.register_fake
def _(truth: Tensor, labels: Tensor, objects: Tensor, points: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return *_empty(objects, points, rest[4]), torch.ones_like(objects, dtype=torch.int64)


def _pair_costs(score: Tensor, nothing: Tensor, overlaps: Tensor, iou_weight: float) -> Float[Tensor, "B T N"]:
    """Cost of every pair: cross-entropy against no class at all, corrected for the object's class, and IoU loss."""
    yes, no = (-logarithm.clamp(min=-_LARGEST_LOSS) for logarithm in (score.log(), torch.log1p(-score)))
    classes = (nothing - no).clamp(min=0) + yes
    return (classes - iou_weight * (overlaps + _SMALLEST_IOU).log()).clamp(min=0)


def _empty(objects: Bool[Tensor, "B T"], points: Tensor, candidates: int) -> tuple[Tensor, Tensor, Tensor]:
    """Places and two numbers of the candidates of each object, 0."""
    shape = (*objects.shape, at_most(candidates, points.shape[-2]))
    numbers = points.new_zeros(shape, dtype=torch.float32)
    return points.new_zeros(shape, dtype=torch.int64), numbers, torch.zeros_like(numbers)


def _write(table: Tensor, piece: Piece, values: Tensor) -> None:
    """Write the values of a piece's candidates, fewer than the table is wide where it has fewer anchors."""
    table[piece.images, piece.rows, : values.shape[2]] = values


def _usable(
    function: str, points: Tensor, targets: Targets, predictions: Predictions | None
) -> tuple[Float[Tensor, "B N C"], Float[Tensor, "B N 4"], Bool[Tensor, "B N"]]:
    """Scores and boxes, 0 where not finite, and which predictions are finite."""
    boxes, scores = read_predictions(function, predictions, "scores")
    images, count = targets.valid.shape[0], points.shape[-2]
    if (
        scores.ndim != 3
        or scores.shape[2] < 1
        or scores.shape[:2] != (images, count)
        or boxes.shape[:2] != (images, count)
    ):
        raise ValueError(
            f"{function}: scores have shape {tuple(scores.shape)} and boxes {tuple(boxes.shape)}; allowed is "
            f"({images}, {count}, C) with at least one class, and ({images}, {count}, 4)"
        )
    scores, boxes = promote(scores).float(), as_boxes(boxes, function=function)
    if full_checks():
        _check_values(function, scores, targets)
    usable = torch.isfinite(scores).all(-1) & torch.isfinite(boxes).all(-1)
    scores = torch.where(usable[..., None], scores, 0).clamp(0, 1)
    return scores, torch.where(usable[..., None], boxes, 0), usable


def _check_values(function: str, scores: Tensor, targets: Targets) -> None:
    """Raise ValueError for the first score outside [0, 1], and for the first label out of range."""
    check_finite(scores, function=function, name="scores")
    outside = (scores < 0) | (scores > 1)
    if outside.any():
        index, count = first_bad(outside)
        place = ", ".join(map(str, index))
        raise ValueError(f"{function}: scores[{place}]={scores[index].item():g} must lie in [0, 1]; {count} do not")
    strange = targets.objects & ((targets.labels < 0) | (targets.labels >= scores.shape[2]))
    if strange.any():
        (image, target), _ = first_bad(strange)
        label = targets.labels[image, target].item()
        raise ValueError(
            f"{function}: image {image}, target {target}: label {label} must lie in 0..{scores.shape[2] - 1}"
        )


def _winners(matched: Int[Tensor, "B N"], places: Int[Tensor, "B T K"]) -> Bool[Tensor, "B T K"]:
    """Which of its candidates each object was matched with."""
    numbers = torch.arange(places.shape[1], device=places.device)[:, None]
    return matched.gather(1, places.flatten(1)).view(places.shape) == numbers


def _normalized(
    alignment: Float[Tensor, "B T K"], overlaps: Float[Tensor, "B T K"], kept: Bool[Tensor, "B T K"]
) -> Float[Tensor, "B T K"]:
    """Alignment of the kept candidates, scaled so that an object's highest equals its highest IoU; 0 for the others."""
    if kept.shape[2] == 0:
        return alignment
    alignment, overlaps = torch.where(kept, alignment, 0), torch.where(kept, overlaps, 0)
    top = alignment.amax(-1, keepdim=True)
    return alignment / torch.where(top > 0, top, 1) * overlaps.amax(-1, keepdim=True).clamp(max=1)


def _best(values: Float[Tensor, "B T K"], places: Int[Tensor, "B T K"], usable: Bool[Tensor, "B N"]) -> Tensor:
    """The highest of the values, at least 0, that candidates have in each place."""
    none = torch.zeros_like(usable, dtype=values.dtype)
    return none.scatter_reduce(1, places.flatten(1), values.flatten(1), "amax")


def _leave_out(
    matched: Int[Tensor, "B N"], points: Float[Tensor, "B N 2"], usable: Bool[Tensor, "B N"], targets: Targets
) -> Int[Tensor, "B N"]:
    """``matched`` with IGNORED for a NEGATIVE whose center lies in a crowd or whose prediction is not finite."""
    crowded = points_in_crowds(points, targets.boxes, targets.crowds)
    return torch.where((crowded | ~usable) & (matched == NEGATIVE), IGNORED, matched)
