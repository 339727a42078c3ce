"""The interface of every dense criterion, and the sums that they share."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from detkit._door import door
from detkit._inputs import check_finite, looked_at, on_host, promote, takes
from detkit.anchors import Assigned
from detkit.boxes import DeltaCoder, DistanceCoder
from detkit.dist import all_reduce_mean
from detkit.losses.box_costs import (
    BoxCoder,
    ciou_cost,
    diou_cost,
    giou_cost,
    iou_cost,
    l1_cost,
    l2_cost,
    smooth_l1_cost,
)
from detkit.losses.classification import sigmoid_focal_loss
from detkit.structures import IGNORED, NEGATIVE, Anchors, DensePredictions
from detkit.structures.labels import check_labels, check_weights
from detkit.structures.smoothing import smoothed_levels

BoxCost = Callable[[Tensor, Tensor, Anchors | Tensor, BoxCoder], Tensor]
"""(deltas (B, N, D), boxes (B, N, 4), anchors, coder) -> costs (B, N): see :mod:`detkit.losses.box_costs`."""
BOX_COST = "deltas, boxes, anchors, coder"
_ROW_BY_ROW = (
    *(l1_cost, l2_cost, smooth_l1_cost, iou_cost, giou_cost, diou_cost, ciou_cost),
    *(DeltaCoder, DistanceCoder),
)
"""Costs, and coders, to which each anchor is alone: they may be given the positives only."""


class DenseCriterion(nn.Module):
    """A loss over anchors: it turns predictions into losses, and into scores. Subclasses are final.

    ``has_background`` says whether the last logit of a softmax is background, ``reads_quality`` whether it needs the
    head's quality logit, ``reads_distributions`` whether the box outputs are distributions, as
    :class:`~detkit.boxes.DistributionCoder` decodes them, ``reads_gray`` whether it learns from GRAY anchors. A stage
    refuses parts that do not match. ``levels_apart`` says that its losses are sums over levels, so that anchors are
    sampled from each by itself.

    >>> class Mean(DenseCriterion):
    ...     def forward(self, predictions, assigned, anchors, coder): return {"mean": predictions.logits.mean()}
    ...     def scores(self, predictions): return predictions.logits.sigmoid()
    ...     def num_classes(self, predictions): return predictions.logits.shape[-1]
    >>> Mean().num_classes(DensePredictions(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4)))
    3
    """

    has_background: bool = False
    reads_quality: bool = False
    reads_distributions: bool = False
    reads_gray: bool = False
    levels_apart: bool = False

    @door
    def forward(
        self, predictions: DensePredictions, assigned: Assigned, anchors: Anchors | Tensor, coder: BoxCoder
    ) -> dict[str, Tensor]:
        """Scalar losses, already weighted, from each anchor's predictions and its assigned target.

        ``predictions`` hold logits (B, N, Q), deltas (B, N, D) and optionally quality (B, N); ``anchors`` are Anchors
        or boxes (N, 4) or (B, N, 4), and ``coder`` decodes the deltas relative to them.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward()")

    @door
    def scores(self, predictions: DensePredictions) -> Float[Tensor, "B N C"]:
        """Scores in [0, 1] of the C classes."""
        raise NotImplementedError(f"{type(self).__name__} must define scores()")

    @door
    def num_classes(self, predictions: DensePredictions) -> int:
        """The number of classes that the logits stand for, without background."""
        raise NotImplementedError(f"{type(self).__name__} must define num_classes()")


def check_predictions(criterion: DenseCriterion, predictions: DensePredictions, assigned: Assigned) -> None:
    """Raise ValueError unless logits (B, N, Q), deltas (B, N, D), quality (B, N) and labels (B, N) fit together.

    Labels are integers, and as :func:`~detkit.structures.labels.check_labels` allows; on a CPU, or with
    ``DETKIT_CHECKS=full``, weights must be finite and at least 0, and boxes of positives finite.

    >>> from detkit.losses import RetinaNetLoss
    >>> rows, labels, ones = torch.zeros(1, 2, 4), torch.zeros(1, 3).long(), torch.ones(1, 3)
    >>> assigned = Assigned(labels, torch.zeros(1, 3, 4), ones, ones)
    >>> check_predictions(RetinaNetLoss(), DensePredictions(rows, rows), assigned)
    Traceback (most recent call last):
    ValueError: RetinaNetLoss: logits (1, 2, 4), deltas (1, 2, 4), labels (1, 3); allowed is ...
    """
    name, (logits, deltas, quality, _), labels = type(criterion).__name__, predictions, assigned.labels
    if logits.ndim != 3 or deltas.ndim != 3 or not logits.shape[:2] == deltas.shape[:2] == labels.shape:
        raise ValueError(
            f"{name}: logits {tuple(logits.shape)}, deltas {tuple(deltas.shape)}, labels {tuple(labels.shape)}; "
            "allowed is (B, N, Q), (B, N, D), (B, N)"
        )
    classes = criterion.num_classes(predictions)
    check_labels(labels, classes, lowest=NEGATIVE, function=name, name="labels")
    check_weights(torch.where(labels == IGNORED, 1, assigned.weights), function=name)
    if looked_at(labels) and not math.isfinite(assigned.boxes.sum()):
        boxes = torch.where((labels >= 0)[..., None], assigned.boxes, 0)
        check_finite(boxes, function=name, name="boxes")
    if not criterion.reads_quality:
        return
    if quality is None or quality.shape != labels.shape:
        found = "None" if quality is None else tuple(quality.shape)
        raise ValueError(f"{name}: quality has shape {found}; allowed is that of labels, {tuple(labels.shape)}")


@door
def box_costs(
    cost: BoxCost, deltas: Float[Tensor, "B N D"], assigned: Assigned, anchors: Anchors | Tensor, coder: BoxCoder
) -> Float[Tensor, "B N"]:
    """The box cost of each positive; 0 for all other anchors, whatever they predict.

    >>> from detkit.boxes import DeltaCoder
    >>> from detkit.losses import l1_cost
    >>> boxes, ones = torch.tensor([[[0.0, 0, 4, 4], [0, 0, 2, 2]]]), torch.ones(1, 2)
    >>> assigned = Assigned(torch.tensor([[3, -1]]), boxes, ones, ones)
    >>> box_costs(l1_cost, torch.ones(1, 2, 4), assigned, boxes[0], DeltaCoder())
    tensor([[4., 0.]])
    """
    positive = assigned.labels >= 0
    places = anchors.boxes if isinstance(anchors, Anchors) else anchors
    if _are_alone(cost, coder) and on_host(deltas) and _have_places(assigned.boxes, places):
        chosen = places.expand(*positive.shape, places.shape[-1])[positive]  # elsewhere their number would be a sync
        costs = cost(promote(deltas[positive])[None], assigned.boxes[positive][None], chosen, coder)[0]
        return costs.new_zeros(positive.shape).masked_scatter(positive, costs)
    own = torch.where(positive[..., None], promote(deltas), 0)  # before the formula: a NaN there has a gradient
    return torch.where(positive, cost(own, assigned.boxes, anchors, coder), 0)


def _are_alone(cost: BoxCost, coder: BoxCoder) -> bool:
    plain = cost.func if isinstance(cost, partial) else cost
    return all(any(part is one for one in _ROW_BY_ROW) for part in (plain, type(coder)))


def _have_places(boxes: Tensor, anchors: Any) -> bool:
    """Whether anchors (..., D) broadcast to boxes (B, N, 4); BoundingBoxes, which have a format, are for coders."""
    if type(anchors) is not Tensor or not 1 <= anchors.ndim <= boxes.ndim == 3:
        return False
    return all(own in (1, all_) for own, all_ in zip(anchors.shape[-2::-1], boxes.shape[-2::-1], strict=False))


def judged_entropy(
    logits: Float[Tensor, "*B"], targets: Shaped[Tensor, "*#B"], judged: Bool[Tensor, "*#B"]
) -> Float[Tensor, "*B"]:
    """Binary cross-entropy where ``judged``, and 0 elsewhere, whatever the logit.

    >>> judged_entropy(torch.tensor([0.0, torch.nan]), torch.tensor([True, True]), torch.tensor([True, False]))
    tensor([0.6931, 0.0000])
    """
    logits = torch.where(judged, logits, 0)
    costs = F.binary_cross_entropy_with_logits(logits, targets.to(logits).expand_as(logits), reduction="none")
    return torch.where(judged, costs, 0)


def focal_costs(
    logits: Float[Tensor, "B N C"], labels: Int[Tensor, "B N"], *, alpha: float, gamma: float, smoothing: float = 0.0
) -> Float[Tensor, "B N"]:
    """Focal loss of each row, summed over its classes; with ``smoothing`` to softer targets where there is a class.

    A positive then learns 1 - smoothing for its class and smoothing for each other. NEGATIVE rows, which have no class
    to doubt, still learn 0.

    >>> focal_costs(torch.zeros(1, 2, 2), torch.tensor([[1, -1]]), alpha=0.5, gamma=0.0, smoothing=0.1)
    tensor([[0.6931, 0.6931]])
    """
    if not smoothing:
        return sigmoid_focal_loss(logits, labels, alpha=alpha, gamma=gamma).sum(-1)
    on, off = smoothed_levels(smoothing, logits.shape[-1], "each")
    hit = labels[..., None] == torch.arange(logits.shape[-1], device=labels.device)
    targets = torch.where(hit, on, torch.where((labels >= 0)[..., None], off, 0.0))
    judged = (labels != IGNORED)[..., None]
    logits = torch.where(judged, promote(logits), 0)  # before the formula: a NaN there has a gradient
    return torch.where(judged, sigmoid_focal_loss(logits, targets, alpha=alpha, gamma=gamma), 0).sum(-1)


def described(cost: Callable[..., Any]) -> str:
    """A cost as ``print`` shows it: its name, and the arguments that a partial sets.

    >>> from functools import partial
    >>> from detkit.losses import l1_cost, smooth_l1_cost
    >>> described(l1_cost), described(partial(smooth_l1_cost, beta=0.5))
    ('l1_cost', 'smooth_l1_cost(beta=0.5)')
    """
    if isinstance(cost, partial):
        return f"{described(cost.func)}({', '.join(f'{name}={value}' for name, value in cost.keywords.items())})"
    return getattr(cost, "__name__", repr(cost))


def check_cost(criterion: str, cost: Any, arguments: str, *, name: str = "box_cost") -> None:
    """Raise ValueError unless ``cost`` is a function that takes these ``arguments``.

    >>> check_cost("FCOSLoss", "giou", BOX_COST)
    Traceback (most recent call last):
    ValueError: FCOSLoss: box_cost='giou' is not called as box_cost(deltas, boxes, anchors, coder); ...
    """
    if not takes(cost, *arguments.split(", ")):
        shown = described(cost) if callable(cost) else repr(cost)
        raise ValueError(
            f"{criterion}: {name}={shown} is not called as {name}({arguments}); give a function that is, such as "
            "giou_cost or quality_focal_loss"
        )


@door
def mean_count(
    rows: Bool[Tensor, "*B"], like: Tensor, *, weights: Float[Tensor, "*#B"] | None = None
) -> Float[Tensor, ""]:
    """The number of True ``rows``, averaged over processes, at least 1: the normalizer of summed losses.

    With ``weights`` it is the sum of theirs, so that one row counts as much as two of half the weight. The result has
    the type of ``like``.

    >>> rows = torch.tensor([[True, True, False]])
    >>> mean_count(rows, torch.zeros(1)), mean_count(rows, torch.zeros(1), weights=torch.tensor([[1.0, 0.5, 1.0]]))
    (tensor(2.), tensor(1.5000))
    """
    total = rows.sum() if weights is None else torch.where(rows, weights.to(like.dtype), 0).sum()
    return all_reduce_mean(total.to(like.dtype)).clamp(min=1)


def or_one(total: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """What a weighted mean divides by: the ``total`` weight, 1 where there is none, or so little that 1 / it overflows.

    >>> or_one(torch.tensor([3.0, 0.0, 1e-42]))
    tensor([3., 1., 1.])
    """
    return torch.where(total > 1e-30, total, 1)


@door
def sigmoid_scores(predictions: DensePredictions) -> Float[Tensor, "B N C"]:
    """An independent probability for each class.

    >>> sigmoid_scores(DensePredictions(torch.zeros(1, 1, 2), torch.zeros(1, 1, 4)))
    tensor([[[0.5000, 0.5000]]])
    """
    return promote(predictions.logits).sigmoid()


@door
def softmax_scores(predictions: DensePredictions) -> Float[Tensor, "B N C"]:
    """Softmax probabilities of the C classes, without background, which comes last in the logits.

    >>> softmax_scores(DensePredictions(torch.zeros(1, 1, 4), torch.zeros(1, 1, 4)))
    tensor([[[0.2500, 0.2500, 0.2500]]])
    """
    return promote(predictions.logits).softmax(dim=-1)[..., :-1]
