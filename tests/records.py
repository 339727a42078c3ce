"""One record an operation: how to make arguments, what a slow reference gives, what is refused, and with which words.

tests/test_records.py and tests/compiled/test_compiled_records.py run every property over every record, so that a new
operation brings all its tests with a record of a few lines.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal, NamedTuple

import references as slow
import torch
from strategies import random_boxes, unhooked
from torch import Tensor

from detkit import boxes as ops
from detkit import losses
from detkit.structures import IGNORED, NEGATIVE

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
TYPES = (*FLOATS, torch.int32, torch.int64, torch.uint8)
WEIGHTS = (10.0, 10.0, 5.0, 5.0)
CELLS = (256.0, 192.0)  # so large that no centre lies outside its cell
CLASSES = 5


class OpSpec(NamedTuple):
    """What the generic tests need to know of an operation, or of one of its forms."""

    name: str  # of the operation as users call it, and words for the form behind a space
    op: Callable[..., Any]
    make: Callable[[int, torch.dtype], tuple[Tensor, ...]]  # arguments with so many rows in the first dimension
    reference: Callable[..., Any]  # of plain lists of float64, and of ints
    errors: dict[str, Callable[[], Any]]  # a whole message, and a call that is refused with it
    dtypes: tuple[torch.dtype, ...] = TYPES
    gradient: Literal["checked", "finite", "none"] = "none"  # "finite": finite differences would not agree, on purpose
    constants: tuple[int, ...] = ()  # places of floating arguments that take no gradient


def rows(count: int, dtype: torch.dtype, *, seed: int = 1) -> Tensor:
    """Boxes, with a point, a line and a duplicate among them from six rows on."""
    made = random_boxes(count, seed=seed, dtype=torch.float64)
    if count >= 6:
        made[2, 2:] = made[2, :2]
        made[3, 2] = made[3, 0]
        made[5] = made[0]
    return made.to(dtype)


def numbers(count: int, dtype: torch.dtype, *, seed: int = 3) -> Tensor:
    """Scores in [0, 1], float32 beside integer boxes, without a tie."""
    generator = torch.Generator().manual_seed(seed)
    scores = (torch.randperm(max(count, 97), generator=generator)[:count] + 1) / (max(count, 97) + 1)
    return scores.to(dtype if dtype.is_floating_point else torch.float32)


def groups(count: int) -> Tensor:
    return torch.arange(count) % 3


def one(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return (rows(count, dtype),)


def pairs(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return rows(count, dtype), rows(count, dtype, seed=2)


def against_five(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return rows(count, dtype), rows(5, dtype, seed=2)


def masks(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(count)
    return tuple(torch.randint(0, 2, (n, 5, 6), generator=generator).to(dtype) for n in (count, 4))


def deltas(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    made = torch.randn(count, 4, generator=torch.Generator().manual_seed(4)) * 3
    made[:1, 2] = 99  # beyond every clamp
    return made.to(dtype), rows(count, dtype)


def scored(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return rows(count, dtype), numbers(count, dtype)


def grouped(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return *scored(count, dtype), groups(count)


def batched(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Two images; the number of boxes is the second dimension."""
    images = [(rows(count, dtype, seed=s), numbers(count, dtype, seed=s), groups(count)) for s in (1, 2)]
    return tuple(torch.stack(column) for column in zip(*images, strict=True))


def from_points(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return rows(count, dtype), rows(count, dtype, seed=2)[:, :2]


def to_points(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return deltas(count, dtype)[0], rows(count, dtype, seed=2)[:, :2]


def multiclass(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Two images, three classes."""
    images = [(rows(count, dtype, seed=s), numbers(3 * count, dtype, seed=s).reshape(count, 3)) for s in (1, 2)]
    return tuple(torch.stack(column) for column in zip(*images, strict=True))


def logits(count: int, dtype: torch.dtype) -> Tensor:
    return (torch.randn(count, CLASSES, generator=torch.Generator().manual_seed(5)) * 3).to(dtype)


def dense(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Logits, targets with zeros and ones among them, and a weight for each row."""
    targets = torch.rand(count, CLASSES, generator=torch.Generator().manual_seed(6)) * 1.4 - 0.2
    return logits(count, dtype), targets.clamp(0, 1).to(dtype), numbers(count, dtype)[:, None]


def labelled(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Every class, IGNORED and NEGATIVE in turn."""
    labels = (torch.arange(count) + 2) % (CLASSES + 2) - 2
    return logits(count, dtype), labels, numbers(count, dtype)[:, None]


def graded(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return *labelled(count, dtype), numbers(count, dtype, seed=7)


def between_bins(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Places on the bins, some of them before the first or behind the last."""
    places = torch.rand(count, generator=torch.Generator().manual_seed(8)) * 6 - 1
    return logits(count, dtype), places.to(dtype), numbers(count, dtype)


def classified(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    scores, labels, weights = labelled(count, dtype)
    return scores, torch.where(labels == NEGATIVE, IGNORED, labels), weights[:, 0]


def shared(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return logits(count, dtype), logits(count, torch.float64).flip(1).softmax(1).to(dtype), numbers(count, dtype)


def differences(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return logits(count, dtype), logits(count, dtype).flip(1)


def weighed_pairs(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return *pairs(count, dtype), numbers(count, dtype)


def each(function: Callable[..., Any]) -> Callable[..., Any]:
    """A reference of one row as one of columns."""
    return lambda *columns: [function(*row) for row in zip(*columns, strict=True)]


def matrix(function: Callable[..., float]) -> Callable[..., Any]:
    return lambda first, second: [[function(a, b) for b in second] for a in first]


def columns_of(images: list[list[Any]], width: int, empty: Any) -> list[list[Any]]:
    """(B, width): the first entries of every image, and ``empty`` behind them."""
    return [[*image[:width], *[empty] * (width - len(image))] for image in images]


def slow_clip(first):
    return [[min(max(c, 0), limit) for c, limit in zip(box, (50, 40, 50, 40), strict=True)] for box in first]


def slow_nms_padded(first, scores, labels):
    width = min(4, len(scores[0])) if scores else 4
    kept = [slow.greedy(*image[:2], 0.3, image[2]) for image in zip(first, scores, labels, strict=True)]
    return columns_of(kept, width, 0), columns_of([[True] * len(image) for image in kept], width, False)


def slow_soft_nms(first, scores, labels):
    picked = slow.softened(first, scores, labels)
    return [index for index, _ in picked], [score for _, score in picked]


def slow_soft_nms_padded(first, scores, labels):
    width = min(4, len(scores[0])) if scores else 4
    picked = [slow.softened(*image, method="linear") for image in zip(first, scores, labels, strict=True)]
    indices, lowered = ([[row[i] for row in image] for image in picked] for i in (0, 1))
    filled = [[True] * len(image) for image in picked]
    return columns_of(indices, width, 0), columns_of(lowered, width, 0.0), columns_of(filled, width, False)


def slow_matrix_nms(first, scores, labels):
    return slow.matrixed(matrix(slow.overlap)(first, first), scores, labels)


def fusion_of_two(first: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every second box is of the second model."""
    columns = ([column[::2], column[1::2]] for column in (first, scores, labels))
    return ops.weighted_boxes_fusion(*columns, iou_threshold=0.31)


def slow_fusion_of_two(first, scores, labels):
    models = [tuple(column[i::2] for column in (first, scores, labels)) for i in (0, 1)]
    found = slow.clustered(models, iou_threshold=0.31)
    return [row[0] for row in found], [row[1] for row in found], [row[2] for row in found]


def slow_multiclass(first, scores):
    width = min(5, 3 * min(2, len(scores[0]))) if scores else 5
    options = {"score_threshold": 0.2, "candidates": 2, "most": 5}
    kept = [slow.greedy_by_class(*image, 0.3, **options) for image in zip(first, scores, strict=True)]
    indices, labels = ([[pair[i] for pair in image] for image in kept] for i in (0, 1))
    filled = [[True] * len(image) for image in kept]
    return columns_of(indices, width, 0), columns_of(labels, width, 0), columns_of(filled, width, False)


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


Changes = dict[str, dict[str, Any]]


def refusals(op: Callable[..., Any], good: dict[str, Any], changes: Changes) -> dict[str, Callable[[], Any]]:
    """For each message, behind the name of ``op``: the call with good arguments of which some are changed."""
    name, plain = op.__qualname__.removesuffix(".__init__"), unhooked(op)
    return {f"{name}: {message}": partial(plain, **{**good, **change}) for message, change in changes.items()}


def misshapen(*names: str, allowed: str = "(..., 4)") -> Changes:
    """That rows of five numbers are refused in each of these arguments."""
    return {f"{name} has shape (3, 5); allowed is {allowed}": {name: torch.zeros(3, 5)} for name in names}


BOXES, SCORES, LABELS = torch.zeros(3, 4), torch.zeros(3), torch.zeros(3).long()
NOT_FINITE = torch.tensor([0.0, math.nan, math.inf])
ONE_SET = {"boxes": BOXES, "scores": SCORES}
ONE_BATCH = {"boxes": BOXES[None], "scores": SCORES[None]}
TWO_SETS = {"boxes1": BOXES, "boxes2": BOXES}
THRESHOLD: Changes = {
    "iou_threshold=2 must lie in [0, 1]": {"iou_threshold": 2},
    "iou_threshold=-0.5 must lie in [0, 1]": {"iou_threshold": -0.5},
}
SCORE_THRESHOLD: Changes = {"score_threshold=2 must lie in [0, 1]": {"score_threshold": 2}}
MEASURE: Changes = {"measure='giou'; allowed is 'iou' or 'diou'": {"measure": "giou"}}
NONFINITE: Changes = {"nonfinite='keep'; allowed is 'raise' or 'drop'": {"nonfinite": "keep"}}
MOST: Changes = {"max_detections=0 must be at least 1": {"max_detections": 0}}
VARIANT: Changes = {"variant='root'; allowed is 'squared' or 'unsquared'": {"variant": "root"}}
DECAY: Changes = {
    "method='hard'; allowed is 'linear' or 'gaussian'": {"method": "hard"},
    "sigma=0 must be a positive finite number": {"sigma": 0},
    "sigma=inf must be a positive finite number": {"sigma": math.inf},
}
RANKED: Changes = {
    "scores has shape (2,); allowed is one score for each of the 3 boxes": {"scores": torch.zeros(2)},
    "scores[1]=nan must be finite; 2 of 3 values are not": {"scores": NOT_FINITE},
    "boxes[2]: x2 < x1 (-1 < 0); 1 box is inverted": {"boxes": torch.tensor([[0.0] * 4, [0.0] * 4, [0, 0, -1, 1]])},
}
ROWS: Changes = {
    "scores has shape (2,); allowed is (3,), one for each box": {"scores": torch.zeros(2)},
    "groups has shape (2,); allowed is (3,), one for each box": {"groups": LABELS[:2]},
    "groups has type torch.float32; allowed is an integer for each box": {"groups": SCORES},
}
PADDED_ROWS: Changes = {
    "boxes has shape (3, 4); allowed is (B, N, 4)": {"boxes": BOXES},
    "boxes has shape (1, 3, 5); allowed is (B, N, 4)": {"boxes": torch.zeros(1, 3, 5)},
}


def padded_entries(rest: str) -> Changes:
    """That scores, groups and marks must be as many as the boxes."""
    bad = {"scores": torch.zeros(1, 2), "groups": torch.zeros(1, 2).long(), "valid": torch.zeros(1, 2).bool()}
    return {f"{name} has shape (1, 2); allowed is (1, 3){rest}": {name: rows} for name, rows in bad.items()}


def of_format(op: Callable[..., Any], reference: Callable[..., Any]) -> OpSpec:
    errors = refusals(op, {}, misshapen("boxes"))
    return OpSpec(op.__name__, op, one, each(reference), errors, gradient="checked")


def measures(
    name: str,
    reference: Callable[..., float],
    gradient: Literal["checked", "finite"] = "checked",
    *,
    form: str = "",
    wrong: Changes | None = None,
    **options: Any,
) -> Iterable[OpSpec]:
    """A measure of overlap as a matrix and in pairs."""
    words = f"allowed is (..., N, 4) and (..., M, 4); paired_{name} compares box with box"
    single: Changes = {
        f"boxes have shapes (4,) and (3, 4); {words}": {"boxes1": BOXES[0]},
        f"boxes have shapes (3, 4) and (4,); {words}": {"boxes2": BOXES[0]},
    }
    kinds = ((name, against_five, matrix, single), (f"paired_{name}", pairs, each, {}))
    for called, make, arranged, more in kinds:
        op = getattr(ops, called)
        errors = refusals(op, TWO_SETS, {**misshapen("boxes1", "boxes2"), **more, **(wrong or {})})
        with_options = partial(op, **options) if options else op
        yield OpSpec(called + form, with_options, make, arranged(reference), errors, gradient=gradient)


def coding(
    coder: Any,
    makes: tuple[Callable[..., Any], ...],
    references: tuple[Callable[..., Any], ...],
    made: Changes,
    *,
    written: str = "deltas",
    wrong: Changes | None = None,
    form: str = "",
    **more: Any,
) -> Iterable[OpSpec]:
    """``encode`` and ``decode`` of a coder: arguments, and the reference of a row, of each.

    ``made`` is what the constructor refuses, ``wrong`` what both refuse of ``more``, the arguments behind boxes and
    anchors; ``written`` is the name of what ``decode`` reads.
    """
    kind, wrong = type(coder), wrong or {}
    good = {"self": coder, "anchors": BOXES, **more}
    errors = (
        refusals(kind.__init__, {"self": kind.__new__(kind)}, made)
        | refusals(kind.encode, {**good, "boxes": BOXES}, {**misshapen("boxes", "anchors"), **wrong}),
        refusals(kind.decode, {**good, written: BOXES}, {**misshapen("anchors"), **wrong}),
    )
    for i, (name, dtypes) in enumerate((("encode", TYPES), ("decode", FLOATS))):
        op, reference = partial(getattr(coder, name), **more), each(references[i])
        yield OpSpec(f"{kind.__name__}.{name}{form}", op, makes[i], reference, errors[i], dtypes, "checked")


def grid(
    form: Literal["log", "root"], strides: float | Tensor, cell: tuple[float, float], clamp: float
) -> Iterable[OpSpec]:
    """A form of YOLO's coding, in cells of one size."""
    references = (
        lambda box, anchor: slow.in_grid(box, anchor, cell, form),
        lambda read, anchor: slow.out_of_grid(read, anchor, cell, form, clamp),
    )
    made: Changes = {
        "form='exp'; allowed is 'log' or 'root'": {"form": "exp"},
        "clamp=0 must be a positive number": {"clamp": 0},
        "clamp=inf must be a positive number": {"clamp": math.inf},
    }
    wrong: Changes = {
        "strides=0 must be positive": {"strides": 0},
        "strides=inf must be positive": {"strides": math.inf},
        "strides have shape (3, 1); allowed is a number or (..., 2)": {"strides": BOXES[:, :1]},
        "strides have shape (); allowed is a number or (..., 2)": {"strides": BOXES[0, 0]},
    }
    coder = ops.GridCoder(form=form) if form == "log" else ops.GridCoder(form=form, clamp=clamp)
    yield from coding(coder, (pairs, deltas), references, made, wrong=wrong, form=f" {form}", strides=strides)


def of_distances(unit: float | None, makes: tuple[Callable[..., Any], ...], form: str) -> Iterable[OpSpec]:
    references = partial(slow.distances, unit=unit), partial(slow.at_distances, unit=unit)
    allowed = "must be None (pixels) or a positive fraction of the anchor"
    made: Changes = {f"unit={bad} {allowed}": {"unit": bad} for bad in (0, -1.0, math.inf)}
    yield from coding(ops.DistanceCoder(unit=unit), makes, references, made, written="distances", form=form)


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
    return {f"{name}={bad} must be finite and at least 0": {name: bad} for name in names for bad in (-1, math.inf)}


def unweighable(allowed: str, bad: tuple[int, ...]) -> Changes:
    return {f"weights have shape {bad}; allowed: what broadcasts to {allowed}": {"weights": torch.ones(bad)}}


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
            "boxes have shapes (3, 4) and (2, 4); allowed is (..., 4) that broadcast": {"boxes2": BOXES[:2]},
            "weights have shape (2,); allowed is (3,)": {"weights": torch.ones(2)},
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


UNSQUARED = partial(slow.distance, power=1)
SHAPES = "allowed are numbers of one shape, or integer classes of all but the last dimension"
DENSE: Changes = {
    f"logits have shape (3, 5) and targets (3, 4) (torch.float32); {SHAPES}": {"targets": BOXES},
    "targets require a gradient but take none; pass targets.detach()": {
        "targets": torch.zeros(3, 5, requires_grad=True)
    },
    **unweighable("(3, 5)", (2, 1)),
}
ONE_OF_THREE = "or be NEGATIVE (-1) or IGNORED (-2); 1 of 3 do not"
LABELLED: Changes = {
    "logits have shape (3, 5) and integer targets (2,); allowed is (..., C) and (...)": {"targets": LABELS[:2]},
    "logits have shape () and integer targets (3,); allowed is (..., C) and (...)": {"logits": torch.tensor(0.0)},
    f"targets[2]=5 must lie in 0..4, {ONE_OF_THREE}": {"targets": torch.tensor([4, -1, 5])},
    f"targets[0]=-3 must lie in 0..4, {ONE_OF_THREE}": {"targets": torch.tensor([-3, -2, 0])},
}
QUALITY: Changes = {
    "quality has shape (2,); allowed is that of targets, (3,)": {"quality": torch.ones(2)},
    "quality goes with integer targets; these are torch.float32": {"targets": torch.zeros(3, 5)},
}
FEW = "must lie in [0, 1], and be 0 for fewer than 2 classes"
SMOOTHING: Changes = {
    f"smoothing=-0.5 {FEW}": {"smoothing": -0.5},
    f"smoothing=2 {FEW}": {"smoothing": 2},
    f"smoothing=0.1 {FEW}": {"logits": torch.zeros(3, 1)},
}

FORMATS = (
    of_format(ops.xyxy_to_cxcywh, lambda b: [(b[0] + b[2]) / 2, (b[1] + b[3]) / 2, b[2] - b[0], b[3] - b[1]]),
    of_format(ops.cxcywh_to_xyxy, lambda b: [b[0] - b[2] / 2, b[1] - b[3] / 2, b[0] + b[2] / 2, b[1] + b[3] / 2]),
    of_format(ops.xyxy_to_xywh, lambda b: [b[0], b[1], b[2] - b[0], b[3] - b[1]]),
    of_format(ops.xywh_to_xyxy, lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]),
    of_format(ops.box_area, slow.area),
    OpSpec(
        "clip_boxes_to_image",
        lambda first: ops.clip_boxes_to_image(first, (40, 50)),
        one,
        slow_clip,
        refusals(ops.clip_boxes_to_image, {"size": (4, 5)}, misshapen("boxes")),
        gradient="checked",
    ),
    OpSpec(
        "remove_small_boxes",
        lambda first: ops.remove_small_boxes(first, 20),
        one,
        lambda first: [i for i, b in enumerate(first) if min(b[2] - b[0], b[3] - b[1]) >= 20],
        refusals(
            ops.remove_small_boxes,
            {"boxes": BOXES, "min_size": 1},
            {
                **misshapen("boxes"),
                "min_size=-1 must be at least 0 pixels": {"min_size": -1},
                "min_size=nan must be at least 0 pixels": {"min_size": math.nan},
            },
        ),
    ),
)

MASK_SHAPES = "allowed is (N, H, W) and (M, H, W) with the same height and width"
OVERLAPS = (
    *measures("box_iou", slow.overlap),
    *measures("generalized_box_iou", slow.generalized),
    *measures("distance_box_iou", slow.distance, wrong=VARIANT),
    *measures("distance_box_iou", UNSQUARED, form=" unsquared", wrong=VARIANT, variant="unsquared"),
    *measures("complete_box_iou", slow.complete, "finite"),  # alpha takes no gradient
    OpSpec(
        "mask_iou",
        ops.mask_iou,
        masks,
        matrix(slow.mask_overlap),
        refusals(
            ops.mask_iou,
            {"masks1": torch.zeros(1, 2, 3)},
            {
                f"masks have shapes (1, 2, 3) and (1, 3, 3); {MASK_SHAPES}": {"masks2": torch.zeros(1, 3, 3)},
                f"masks have shapes (4, 3) and (5, 3); {MASK_SHAPES}": {
                    "masks1": torch.zeros(4, 3),
                    "masks2": torch.zeros(5, 3),
                },
            },
        ),
        (*TYPES, torch.bool),
    ),
)

GROUPED = "allowed is an integer for each of the 3 scores"
SUPPRESSION = (
    OpSpec(
        "nms",
        lambda first, scores: ops.nms(first, scores, 0.3),
        scored,
        lambda first, scores: slow.greedy(first, scores, 0.3),
        refusals(
            ops.nms,
            {**ONE_SET, "iou_threshold": 0.3},
            {**misshapen("boxes", allowed="(N, 4)"), **RANKED, **THRESHOLD, **MEASURE, **NONFINITE},
        ),
    ),
    OpSpec(
        "batched_nms",
        lambda first, scores, labels: ops.batched_nms(first, scores, labels, 0.3),
        grouped,
        lambda first, scores, labels: slow.greedy(first, scores, 0.3, labels),
        refusals(
            ops.batched_nms,
            {**ONE_SET, "groups": LABELS, "iou_threshold": 0.3},
            {
                **misshapen("boxes", allowed="(N, 4)"),
                **RANKED,
                **THRESHOLD,
                **MEASURE,
                **NONFINITE,
                f"groups has shape (2,) and type torch.int64; {GROUPED}": {"groups": LABELS[:2]},
                f"groups has shape (3,) and type torch.float32; {GROUPED}": {"groups": SCORES},
            },
        ),
    ),
    OpSpec(
        "nms_padded",
        lambda first, scores, labels: ops.nms_padded(first, scores, 0.3, groups=labels, max_detections=4),
        batched,
        slow_nms_padded,
        refusals(
            ops.nms_padded,
            {**ONE_BATCH, "iou_threshold": 0.3, "max_detections": 1},
            {**PADDED_ROWS, **padded_entries(""), **THRESHOLD, **MEASURE, **MOST},
        ),
    ),
    OpSpec(
        "multiclass_nms_padded",
        lambda first, scores: ops.multiclass_nms_padded(
            first, scores, 0.3, score_threshold=0.2, candidates_per_class=2, max_detections=5
        ),
        multiclass,
        slow_multiclass,
        refusals(
            ops.multiclass_nms_padded,
            {
                **ONE_BATCH,
                "scores": torch.zeros(1, 3, 2),
                "iou_threshold": 0.3,
                "score_threshold": 0.1,
                "max_detections": 1,
            },
            {
                **PADDED_ROWS,
                **THRESHOLD,
                **MEASURE,
                **MOST,
                "candidates_per_class=0 must be at least 1": {"candidates_per_class": 0},
                "scores has shape (1, 3); allowed is (1, 3) and the classes": {"scores": SCORES[None]},
                "scores has shape (1, 2, 5); allowed is (1, 3) and the classes": {"scores": torch.zeros(1, 2, 5)},
            },
        ),
    ),
    OpSpec(
        "soft_nms",
        lambda first, scores, labels: ops.soft_nms(first, scores, groups=labels),
        grouped,
        slow_soft_nms,
        refusals(
            ops.soft_nms,
            ONE_SET,
            {
                **misshapen("boxes", allowed="(N, 4)"),
                **ROWS,
                **THRESHOLD,
                **SCORE_THRESHOLD,
                **DECAY,
                **NONFINITE,
                **MOST,
            },
        ),
    ),
    OpSpec(
        "soft_nms_padded",
        lambda first, scores, labels: ops.soft_nms_padded(
            first, scores, groups=labels, method="linear", max_detections=4
        ),
        batched,
        slow_soft_nms_padded,
        refusals(
            ops.soft_nms_padded,
            {**ONE_BATCH, "max_detections": 1},
            {
                **PADDED_ROWS,
                **padded_entries(", one for each box"),
                **THRESHOLD,
                **SCORE_THRESHOLD,
                **DECAY,
                **MOST,
                "groups has type torch.float32; allowed is an integer for each box": {"groups": SCORES[None]},
            },
        ),
    ),
    OpSpec(
        "matrix_nms",
        lambda first, scores, labels: ops.matrix_nms(first, scores, groups=labels),
        grouped,
        slow_matrix_nms,
        refusals(
            ops.matrix_nms,
            ONE_SET,
            {
                **misshapen("boxes", allowed="(N, 4)"),
                **ROWS,
                **DECAY,
                **NONFINITE,
                "give either boxes or, with boxes=None, overlaps": {"overlaps": torch.zeros(3, 3)},
                "overlaps has shape (3, 2); allowed is (3, 3)": {"boxes": None, "overlaps": torch.zeros(3, 2)},
                "overlaps[0, 1]=2 must lie in [0, 1]; 3 outside": {
                    "boxes": None,
                    "overlaps": torch.eye(3).roll(1, 1) * 2,
                },
            },
        ),
        gradient="checked",
    ),
    OpSpec(
        "weighted_boxes_fusion",
        fusion_of_two,
        grouped,
        slow_fusion_of_two,
        refusals(
            ops.weighted_boxes_fusion,
            {"boxes_list": [BOXES], "scores_list": [SCORES], "labels_list": [LABELS]},
            {
                "boxes_list[0] has shape (3, 5); allowed is (N, 4)": {"boxes_list": [torch.zeros(3, 5)]},
                "scores_list[0] has shape (2,); allowed is one entry for each of the 3 boxes": {
                    "scores_list": [SCORES[:2]]
                },
                "labels_list[0] has shape (2,); allowed is one entry for each of the 3 boxes": {
                    "labels_list": [LABELS[:2]]
                },
                "labels_list[0] has type torch.float32; allowed is an integer type": {"labels_list": [SCORES]},
                "boxes_list, scores_list and labels_list have 1, 2 and 1 entries; allowed is one of each for every "
                "model, and at least one model": {"scores_list": [SCORES, SCORES]},
                "weights=[1.0, 1.0] must be a positive finite number for each of 1 models": {"weights": [1, 1]},
                "weights=[0.0] must be a positive finite number for each of 1 models": {"weights": [0]},
                "scores_list[0][1]=nan must be finite; 2 of 3 values are not": {"scores_list": [NOT_FINITE]},
                "scores_list[0][0]=-1 must be at least 0; 3 of 3 below": {"scores_list": [SCORES - 1]},
                **THRESHOLD,
                **SCORE_THRESHOLD,
                **NONFINITE,
            },
        ),
    ),
)

CODERS = (
    *coding(
        ops.DeltaCoder(WEIGHTS),
        (pairs, deltas),
        (partial(slow.encoded, weights=WEIGHTS), partial(slow.decoded, weights=WEIGHTS)),
        {
            "weights=(1, 1, 1) must be four positive numbers (x, y, w, h), of 1e-12 to 1e12": {"weights": [1, 1, 1]},
            "weights=(1, 1, 1, 0) must be four positive numbers (x, y, w, h), of 1e-12 to 1e12": {
                "weights": [1, 1, 1, 0]
            },
        },
    ),
    *of_distances(0.125, (pairs, deltas), ""),
    *of_distances(None, (from_points, to_points), " of points"),
    *grid("log", CELLS[0], (CELLS[0],) * 2, math.log(1000)),
    *grid("root", torch.tensor(CELLS), CELLS, 2.0),
)

LOSSES = (
    loss(
        losses.sigmoid_focal_loss,
        " of labels",
        labelled,
        of_each_label(slow.focal),
        {
            **LABELLED,
            **unweighable("(3, 5)", (2, 1)),
            **not_negative("gamma"),
            "alpha=2 must lie in [0, 1], or be None for no balance": {"alpha": 2},
            "alpha=-0.5 must lie in [0, 1], or be None for no balance": {"alpha": -0.5},
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
            "logits have shape (3, 5) and targets (2,); allowed is (..., n + 1) and (...), with n of at least 1": {
                "targets": torch.zeros(2)
            },
            "logits have shape (3, 1) and targets (3,); allowed is (..., n + 1) and (...), with n of at least 1": {
                "logits": torch.zeros(3, 1)
            },
            **unweighable("(3,)", (2,)),
        },
    ),
    loss(
        losses.label_smoothed_cross_entropy,
        " of labels",
        classified,
        each(slow_smoothing),
        {
            "logits have shape (3, 5) and integer targets (2,); allowed is (..., C) and (...)": {"targets": LABELS[:2]},
            **SMOOTHING,
            **unweighable("(3,)", (2,)),
            "targets[1]=-1 must lie in 0..4, or be IGNORED (-2); 1 of 3 do not": {"targets": torch.tensor([0, -1, -2])},
        },
    ),
    loss(
        losses.label_smoothed_cross_entropy,
        " of shares",
        shared,
        each(lambda row, shares, weight: weight * slow.smoothed_entropy(row, shares, smoothing=0.3)),
        {f"logits have shape (3, 5) and targets (3, 4) (torch.float32); {SHAPES}": {"targets": BOXES}},
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
                "predictions have shape (3, 4) and targets (3, 5); they must be equal": {"targets": torch.zeros(3, 5)},
                "beta=-1 must be finite and at least 0": {"beta": -1},
                "beta=nan must be finite and at least 0": {"beta": math.nan},
                "beta=inf must be finite and at least 0": {"beta": math.inf},
            },
        ),
        FLOATS,
        gradient="checked",
    ),
    box_loss(losses.generalized_box_iou_loss, slow.generalized),
    box_loss(losses.distance_box_iou_loss, slow.distance, wrong=VARIANT),
    box_loss(losses.distance_box_iou_loss, UNSQUARED, form=" unsquared", wrong=VARIANT, variant="unsquared"),
    box_loss(losses.complete_box_iou_loss, slow.complete, "finite"),  # alpha takes no gradient
)

RECORDS = (*FORMATS, *OVERLAPS, *SUPPRESSION, *CODERS, *LOSSES)
