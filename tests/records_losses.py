"""Records of the elementary losses: see tests/records.py."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import references as slow
import torch
from opspec import (
    BOXES,
    FLOATS,
    LABELS,
    TWO_SETS,
    UNSQUARED,
    VARIANT,
    Changes,
    OpSpec,
    each,
    misshapen,
    numbers,
    pairs,
    refusals,
)
from torch import Tensor

from detkit import losses
from detkit.boxes import DeltaCoder
from detkit.structures import IGNORED, NEGATIVE

CLASSES = 5


def logits(count: int, dtype: torch.dtype) -> Tensor:
    return (torch.randn(count, CLASSES, generator=torch.Generator().manual_seed(5)) * 3).to(dtype)


def dense(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Logits, targets with zeros and ones among them, and a weight for each row."""
    targets = torch.rand(count, CLASSES, generator=torch.Generator().manual_seed(6)) * 1.4 - 0.2
    return logits(count, dtype), targets.clamp(0, 1).to(dtype), numbers(count, dtype)[:, None]


def labeled(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Every class, IGNORED and NEGATIVE in turn."""
    labels = (torch.arange(count) + 2) % (CLASSES + 2) - 2
    return logits(count, dtype), labels, numbers(count, dtype)[:, None]


def graded(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return *labeled(count, dtype), numbers(count, dtype, seed=7)


def between_bins(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Places on the bins, some of them before the first or behind the last."""
    places = torch.rand(count, generator=torch.Generator().manual_seed(8)) * 6 - 1
    return logits(count, dtype), places.to(dtype), numbers(count, dtype)


def classified(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    scores, labels, weights = labeled(count, dtype)
    return scores, torch.where(labels == NEGATIVE, IGNORED, labels), weights[:, 0]


def shared(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return logits(count, dtype), logits(count, torch.float64).flip(1).softmax(1).to(dtype), numbers(count, dtype)


def differences(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return logits(count, dtype), logits(count, dtype).flip(1)


def weighed_pairs(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return *pairs(count, dtype), numbers(count, dtype)


def of_each_logit(function: Callable[..., float]) -> Callable[..., Any]:
    """The loss of every logit and its target, times the weight of the row."""
    return lambda rows, targets, weights: [
        [weight * function(x, y) for x, y in zip(row, wanted, strict=True)]
        for row, wanted, (weight,) in zip(rows, targets, weights, strict=True)
    ]


def of_each_label(function: Callable[..., float]) -> Callable[..., Any]:
    """The same of classes: 1, or the quality, for the true one and 0 for the others; nothing where it is IGNORED."""

    def reference(rows, labels, weights, qualities=None):
        targets = [
            [quality * (column == label) for column in range(CLASSES)]
            for label, quality in zip(labels, qualities or [1.0] * len(labels), strict=True)
        ]
        kept = [[weight * (label != IGNORED)] for (weight,), label in zip(weights, labels, strict=True)]
        return of_each_logit(function)(rows, targets, kept)

    return reference


def slow_smoothing(row, label, weight):
    hit = [float(column == label) for column in range(CLASSES)]
    return 0.0 if label == IGNORED else weight * slow.smoothed_entropy(row, hit)


def loss(
    op: Callable[..., Any],
    form: str,
    make: Callable[..., Any],
    reference: Callable[..., Any],
    wrong: Changes,
    *,
    constants: tuple[int, ...] = (),
    names: tuple[str, ...] = (),
    **options: Any,
) -> OpSpec:
    """A loss on logits of its targets and weights, and of the further arguments with these ``names``."""
    good = dict(zip(("logits", "targets", "weights", *names), make(3, torch.float32), strict=True))

    def weighed(rows: Tensor, targets: Tensor, weights: Tensor, *others: Tensor) -> Tensor:
        return op(rows, targets, weights=weights, **dict(zip(names, others, strict=True)), **options)

    errors = refusals(op, good, wrong)
    return OpSpec(op.__name__ + form, weighed, make, reference, errors, FLOATS, "checked", constants)


def not_negative(*names: str) -> Changes:
    return {f"{name}={bad} 0": {name: bad} for name in names for bad in (-1, math.inf)}


def unweighable(allowed: str, bad: tuple[int, ...]) -> Changes:
    return {f"weights {bad} {allowed}": {"weights": torch.ones(bad)}}


def box_loss(
    op: Callable[..., Any],
    reference: Callable[..., float],
    gradient: Literal["checked", "finite"] = "checked",
    *,
    form: str = "",
    wrong: Changes | None = None,
    **options: Any,
) -> OpSpec:
    """1 - a measure of overlap, times weights."""
    errors = refusals(
        op,
        TWO_SETS,
        {
            **misshapen("boxes1", "boxes2"),
            "boxes (3, 4) (2, 4) (..., 4)": {"boxes2": BOXES[:2]},
            "weights (2,) (3,)": {"weights": torch.ones(2)},
            **(wrong or {}),
        },
    )
    return OpSpec(
        op.__name__ + form,
        lambda first, second, weights: op(first, second, weights=weights, **options),
        weighed_pairs,
        each(lambda a, b, weight: weight * (1 - reference(a, b))),
        errors,
        gradient=gradient,
    )


SCALE = (2.0, 3.0, 4.0, 5.0)


def offered(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Deltas of a head, ground truth and anchors."""
    return logits(count, dtype)[:, :4] / 4, *pairs(count, dtype)


def of_deltas(function: Callable[..., float]) -> Callable[..., Any]:
    """The sum over each delta and the one that leads to the box."""
    return lambda deltas, box, anchor: sum(map(function, deltas, slow.encoded(box, anchor, SCALE)))


def of_boxes(measure: Callable[..., float]) -> Callable[..., Any]:
    return lambda deltas, box, anchor: 1 - measure(slow.decoded(deltas, anchor, SCALE), box)


def box_cost(
    op: Callable[..., Any],
    reference: Callable[..., float],
    wrong: Changes | None = None,
    gradient: Literal["checked", "finite"] = "checked",
) -> OpSpec:
    """What predicted deltas cost, for boxes and anchors that take no gradient."""
    good = {"deltas": BOXES, "boxes": BOXES, "anchors": BOXES, "coder": DeltaCoder(SCALE)}
    wide = 4 if wrong else "D"
    shapes: Changes = {
        f"deltas (3, 4) boxes (2, 4) (..., {wide}) {ALLOWED}": {"boxes": BOXES[:2]},
        f"deltas (3, 4) boxes (3, 5) (..., {wide}) {ALLOWED}": {"boxes": torch.zeros(3, 5)},
    }
    return OpSpec(
        op.__name__,
        partial(op, coder=DeltaCoder(SCALE)),
        offered,
        each(reference),
        refusals(op, good, shapes | (wrong or {})),
        FLOATS,
        gradient,
        (1, 2),
    )


SHAPES = "integer"
DENSE: Changes = {
    f"logits (3, 5) targets (3, 4) (torch.float32) {SHAPES}": {"targets": BOXES},
    "targets gradient targets.detach()": {"targets": torch.zeros(3, 5, requires_grad=True)},
    **unweighable("(3, 5)", (2, 1)),
}
ONE_OF_THREE = "NEGATIVE (-1) IGNORED (-2) 1 3"
LABELLED: Changes = {
    "logits (3, 5) integer targets (2,) (..., C) (...)": {"targets": LABELS[:2]},
    "logits () integer targets (3,) (..., C) (...)": {"logits": torch.tensor(0.0)},
    f"targets[2]=5 0..4 {ONE_OF_THREE}": {"targets": torch.tensor([4, -1, 5])},
    f"targets[0]=-3 0..4 {ONE_OF_THREE}": {"targets": torch.tensor([-3, -2, 0])},
}
QUALITY: Changes = {
    "quality (2,) (3,)": {"quality": torch.ones(2)},
    "quality integer targets torch.float32": {"targets": torch.zeros(3, 5)},
}
ALLOWED = "(..., 4)"
ALSO_DELTAS: Changes = {
    f"deltas (3, 5) boxes (3, 4) (..., 4) {ALLOWED}": {"deltas": torch.zeros(3, 5)},
}
BETA: Changes = {f"beta={bad} 0": {"beta": bad} for bad in (-1, math.nan, math.inf)}
FEW = "[0, 1] 0 2"
SMOOTHING: Changes = {
    f"smoothing=-0.5 {FEW}": {"smoothing": -0.5},
    f"smoothing=2 {FEW}": {"smoothing": 2},
    f"smoothing=0.1 {FEW}": {"logits": torch.zeros(3, 1)},
}
LOSSES = (
    loss(
        losses.sigmoid_focal_loss,
        " of labels",
        labeled,
        of_each_label(slow.focal),
        {
            **LABELLED,
            **unweighable("(3, 5)", (2, 1)),
            **not_negative("gamma"),
            "alpha=2 [0, 1] None": {"alpha": 2},
            "alpha=-0.5 [0, 1] None": {"alpha": -0.5},
        },
    ),
    loss(
        losses.sigmoid_focal_loss,
        " of numbers",
        dense,
        of_each_logit(partial(slow.focal, alpha=0.6, gamma=1.5)),
        DENSE,
        constants=(1,),
        alpha=0.6,
        gamma=1.5,
    ),
    loss(
        losses.varifocal_loss,
        "",
        dense,
        of_each_logit(slow.varifocal),
        {**DENSE, **not_negative("alpha", "gamma")},
        constants=(1,),
    ),
    loss(
        losses.quality_focal_loss,
        " of numbers",
        dense,
        of_each_logit(slow.quality_focal),
        {**DENSE, **not_negative("beta")},
        constants=(1,),
    ),
    loss(
        losses.quality_focal_loss,
        " of labels",
        graded,
        of_each_label(partial(slow.quality_focal, beta=1.5)),
        {**LABELLED, **QUALITY, **unweighable("(3, 5)", (2, 1))},
        constants=(3,),
        names=("quality",),
        beta=1.5,
    ),
    loss(
        losses.distribution_focal_loss,
        "",
        between_bins,
        each(lambda row, place, weight: weight * slow.distribution_focal(row, place)),
        {
            "logits (3, 5) targets (2,) (..., n + 1) (...) 1": {"targets": torch.zeros(2)},
            "logits (3, 1) targets (3,) (..., n + 1) (...) 1": {"logits": torch.zeros(3, 1)},
            **unweighable("(3,)", (2,)),
        },
    ),
    loss(
        losses.label_smoothed_cross_entropy,
        " of labels",
        classified,
        each(slow_smoothing),
        {
            "logits (3, 5) integer targets (2,) (..., C) (...)": {"targets": LABELS[:2]},
            **SMOOTHING,
            **unweighable("(3,)", (2,)),
            "targets[1]=-1 0..4 IGNORED (-2) 1 3": {"targets": torch.tensor([0, -1, -2])},
        },
    ),
    loss(
        losses.label_smoothed_cross_entropy,
        " of shares",
        shared,
        each(lambda row, shares, weight: weight * slow.smoothed_entropy(row, shares, smoothing=0.3)),
        {f"logits (3, 5) targets (3, 4) (torch.float32) {SHAPES}": {"targets": BOXES}},
        smoothing=0.3,
    ),
    OpSpec(
        "smooth_l1_loss",
        lambda first, second: losses.smooth_l1_loss(first, second, beta=0.7),
        differences,
        each(each(partial(slow.smooth_l1, beta=0.7))),
        refusals(
            losses.smooth_l1_loss,
            {"predictions": BOXES, "targets": BOXES},
            {
                "predictions (3, 4) targets (3, 5)": {"targets": torch.zeros(3, 5)},
                "beta=-1 0": {"beta": -1},
                "beta=nan 0": {"beta": math.nan},
                "beta=inf 0": {"beta": math.inf},
            },
        ),
        FLOATS,
        gradient="checked",
    ),
    box_loss(losses.box_iou_loss, slow.overlap),
    box_loss(losses.generalized_box_iou_loss, slow.generalized),
    box_loss(losses.distance_box_iou_loss, slow.distance, wrong=VARIANT),
    box_loss(losses.distance_box_iou_loss, UNSQUARED, form=" unsquared", wrong=VARIANT, variant="unsquared"),
    box_loss(losses.complete_box_iou_loss, slow.complete, "finite"),  # alpha takes no gradient
    box_cost(losses.l1_cost, of_deltas(lambda a, b: abs(a - b)), ALSO_DELTAS),
    box_cost(losses.l2_cost, of_deltas(lambda a, b: (a - b) ** 2), ALSO_DELTAS),
    box_cost(losses.smooth_l1_cost, of_deltas(slow.smooth_l1), ALSO_DELTAS | BETA),
    box_cost(losses.iou_cost, of_boxes(slow.overlap)),
    box_cost(losses.giou_cost, of_boxes(slow.generalized)),
    box_cost(losses.diou_cost, of_boxes(slow.distance)),
    box_cost(losses.ciou_cost, of_boxes(slow.complete), gradient="finite"),
)
