"""Matchers that read predictions: task-aligned assignment (TOOD) and simplified optimal transport (YOLOX)."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from detkit._door import door
from detkit._inputs import as_boxes, check_finite, first_bad, full_checks, promote
from detkit._ranges import Count, NotNegative, Positive
from detkit._ranking import stable_topk
from detkit.anchors.assigned import matched_overlaps, values_of_labels
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
        points = box_centers(cells).unsqueeze(-3)
        scores, boxes, usable = _usable("TaskAlignedMatcher", points, targets, predictions)
        inside = points_in_boxes(points, targets.boxes[:, :, None])
        overlaps = box_iou(targets.boxes, boxes).float()
        alignment = values_of_labels(scores, targets.labels) ** self.alpha * overlaps**self.beta
        alignment = torch.where(inside & _pairs(targets, usable), alignment, 0)
        places = stable_topk(alignment, self.candidates)
        alignment, overlaps = alignment.gather(2, places), overlaps.gather(2, places)
        matched, _ = highest_claim(places, overlaps, alignment > 0, boxes.shape[1])
        quality = _normalized(alignment, overlaps, _winners(matched, places) & (alignment > 0))
        quality = torch.zeros_like(scores[..., 0]).scatter_reduce(1, places.flatten(1), quality.flatten(1), "amax")
        return Assignment(_leave_out(matched, inside, usable, targets), quality)

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
        points = box_centers(cells).unsqueeze(-3)
        scores, boxes, usable = _usable("SimOTAMatcher", points, targets, predictions)
        truth, pairs = targets.boxes, _pairs(targets, usable)
        inside = points_in_boxes(points, truth[:, :, None])
        apart = (points - box_centers(truth)[:, :, None]).abs()
        near = (apart < self.radius * strides.unsqueeze(-3)).all(-1)
        overlaps = torch.where((inside | near) & pairs, box_iou(truth, boxes).float(), 0)
        costs = self._costs(scores, overlaps, targets)
        costs = torch.where(inside & near, costs, (costs + 1) * _OUTSIDE)
        costs = torch.where((inside | near) & pairs, costs, torch.inf)
        places = stable_topk(-costs, self.candidates)
        costs = costs.gather(2, places)
        best = overlaps.gather(2, stable_topk(overlaps, self.candidates))
        wanted = best.sum(-1, dtype=torch.float64).long().clamp(min=1)
        taken = (torch.arange(places.shape[2], device=places.device) < wanted[..., None]) & torch.isfinite(costs)
        matched, _ = highest_claim(places, -costs, taken, boxes.shape[1])
        quality = matched_overlaps(overlaps, matched)
        return Assignment(_leave_out(matched, inside, usable, targets), quality)

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"candidates={self.candidates}, radius={self.radius}, iou_weight={self.iou_weight}"

    def _costs(
        self, scores: Float[Tensor, "B N C"], overlaps: Float[Tensor, "B T N"], targets: Targets
    ) -> Float[Tensor, "B T N"]:
        """Cost of every pair: cross-entropy against no class at all, corrected for the object's class, and IoU loss."""
        nothing = -torch.log1p(-scores).clamp(min=-_LARGEST_LOSS)
        score = values_of_labels(scores, targets.labels)
        yes, no = (-logarithm.clamp(min=-_LARGEST_LOSS) for logarithm in (score.log(), torch.log1p(-score)))
        classes = (nothing.sum(-1)[:, None] - no).clamp(min=0) + yes
        return (classes - self.iou_weight * (overlaps + _SMALLEST_IOU).log()).clamp(min=0)


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


def _pairs(targets: Targets, usable: Bool[Tensor, "B N"]) -> Bool[Tensor, "B T N"]:
    return targets.objects[..., None] & usable[:, None]


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


def _leave_out(
    matched: Int[Tensor, "B N"], inside: Bool[Tensor, "B T N"], usable: Bool[Tensor, "B N"], targets: Targets
) -> Int[Tensor, "B N"]:
    """``matched`` with IGNORED for a NEGATIVE whose center lies in a crowd or whose prediction is not finite."""
    crowded = (inside & targets.crowds[..., None]).any(dim=1)
    return torch.where((crowded | ~usable) & (matched == NEGATIVE), IGNORED, matched)
