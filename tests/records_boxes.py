"""Records of the operations on boxes: see tests/records.py."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

import references as slow
import torch
from opspec import (
    BOXES,
    FLOATS,
    LABELS,
    SCORES,
    TWO_SETS,
    TYPES,
    UNSQUARED,
    VARIANT,
    Changes,
    OpSpec,
    each,
    misshapen,
    numbers,
    pairs,
    refusals,
    rows,
)
from strategies import in_cells
from torch import Tensor

from detkit import boxes as ops
from detkit.structures import Anchors

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
TOKEN_BINS = 100
CELLS = (256.0, 192.0)  # so large that no center lies outside its cell


def groups(count: int) -> Tensor:
    return torch.arange(count) % 3


def one(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return (rows(count, dtype),)


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


def in_images(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """As many images of three boxes each, labels with noise among them, sizes in which halves are exact, and marks."""
    places = torch.arange(3 * count).reshape(count, 3)
    sizes = torch.tensor([64, 128]).expand(count, 2) * (torch.arange(count) % 2 + 1)[:, None]
    return rows(3 * count, dtype).reshape(count, 3, 4), places % 4 - 1, sizes, places % 5 != 4


def in_tokens(count: int, dtype: torch.dtype, *, coordinate: int, label: int) -> tuple[Tensor, ...]:
    """As many images of three rows, one upright, one with a token at an end of its range, one inverted; and sizes."""
    generator = torch.Generator().manual_seed(5)
    first, second = torch.randint(0, TOKEN_BINS, (2, count, 3, 2), generator=generator) + coordinate
    labels = torch.randint(0, 3, (count, 3, 1), generator=generator) + label
    tokens = torch.cat((first.minimum(second), first.maximum(second), labels), dim=-1)
    ends = torch.tensor([coordinate, coordinate + TOKEN_BINS, label, label + 3])
    edges = torch.cat((ends - 1, ends))
    places, others = (torch.randint(0, most, (count, 1), generator=generator) for most in (5, len(edges)))
    tokens[:, 1].scatter_(1, places, edges[others])
    tokens[:, 2] = tokens[:, 2, [2, 3, 0, 1, 4]]
    return tokens, in_images(count, dtype)[2].to(dtype)


def multiclass(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Two images, three classes."""
    images = [(rows(count, dtype, seed=s), numbers(3 * count, dtype, seed=s).reshape(count, 3)) for s in (1, 2)]
    return tuple(torch.stack(column) for column in zip(*images, strict=True))


def multiclass_boxes(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The same, every class with boxes of its own."""
    boxes = torch.stack([rows(3 * count, dtype, seed=s).reshape(count, 3, 4) for s in (3, 4)])
    return boxes, multiclass(count, dtype)[1]


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


def multiclass_of_two(first: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
    """At most two candidates of a class."""
    limits = {"score_threshold": 0.2, "candidates_per_class": 2, "max_detections": 5}
    return ops.multiclass_nms_padded(first, scores, 0.3, **limits)


def slow_multiclass(first, scores):
    width = min(5, 3 * min(2, len(scores[0]))) if scores else 5
    options = {"score_threshold": 0.2, "candidates": 2, "most": 5}
    kept = [slow.greedy_by_class(*image, 0.3, **options) for image in zip(first, scores, strict=True)]
    indices, labels = ([[pair[i] for pair in image] for image in kept] for i in (0, 1))
    filled = [[True] * len(image) for image in kept]
    return columns_of(indices, width, 0), columns_of(labels, width, 0), columns_of(filled, width, False)


NOT_FINITE = torch.tensor([0.0, math.nan, math.inf])
ONE_SET = {"boxes": BOXES, "scores": SCORES}
ONE_BATCH = {"boxes": BOXES[None], "scores": SCORES[None]}
THRESHOLD: Changes = {
    "iou_threshold=2 [0, 1]": {"iou_threshold": 2},
    "iou_threshold=-0.5 [0, 1]": {"iou_threshold": -0.5},
}
SCORE_THRESHOLD: Changes = {"score_threshold=2 [0, 1]": {"score_threshold": 2}}
MEASURE: Changes = {"measure='giou' 'iou' 'diou'": {"measure": "giou"}}
NONFINITE: Changes = {"nonfinite='keep' 'raise' 'drop'": {"nonfinite": "keep"}}
MOST: Changes = {"max_detections=0 1": {"max_detections": 0}}
DECAY: Changes = {
    "method='hard' 'linear' 'gaussian'": {"method": "hard"},
    "sigma=0": {"sigma": 0},
    "sigma=inf": {"sigma": math.inf},
}
RANKED: Changes = {
    "scores (2,) 3 boxes": {"scores": torch.zeros(2)},
    "scores[1]=nan 2 3": {"scores": NOT_FINITE},
    "boxes[2] x2 < x1 (-1 < 0) 1": {"boxes": torch.tensor([[0.0] * 4, [0.0] * 4, [0, 0, -1, 1]])},
}
ROWS: Changes = {
    "scores (2,) (3,)": {"scores": torch.zeros(2)},
    "groups (2,) (3,)": {"groups": LABELS[:2]},
    "groups torch.float32 integer": {"groups": SCORES},
}
PADDED_ROWS: Changes = {
    "boxes (3, 4) (B, N, 4)": {"boxes": BOXES},
    "boxes (1, 3, 5) (B, N, 4)": {"boxes": torch.zeros(1, 3, 5)},
}
PADDED_CLASSES: Changes = {f"{message} (B, N, C, 4)": change for message, change in PADDED_ROWS.items()}
ONE_MULTICLASS = {
    **ONE_BATCH,
    "scores": torch.zeros(1, 3, 2),
    "iou_threshold": 0.3,
    "score_threshold": 0.1,
    "max_detections": 1,
}


ONE_IMAGE = {"boxes": BOXES, "labels": LABELS, "sizes": torch.ones(2)}
VOCABULARY: Changes = {
    "vocabulary='latin' 'code' 'paper'": {"vocabulary": "latin"},
    "num_classes=0 1": {"num_classes": 0},
    "bins=1 at least 2": {"bins": 1},
    "num_classes=900 bins=1000 'code' 899 2000 'paper'": {"num_classes": 900},
    "num_classes=3 bins=2001 'code' 899 2000 'paper'": {"bins": 2001},
}
IMAGE_SIZES: Changes = {
    "sizes (3,) (2,)": {"sizes": SCORES},
    "sizes (3, 2) (2,)": {"sizes": BOXES[:, :2]},
}
LABELLED: Changes = {
    **IMAGE_SIZES,
    "labels (2,) (3,)": {"labels": LABELS[:2]},
    "valid (2,) (3,)": {"valid": LABELS[:2].bool()},
    "labels[0]=3 0..2 NEGATIVE (-1) 3 3": {"labels": LABELS + 3},
    "labels[0]=-2 0..2 NEGATIVE (-1) 3 3": {"labels": LABELS - 2},
}
READ: Changes = {**IMAGE_SIZES, "tokens (3, 4) (..., 5)": {"tokens": BOXES.long()}}


# Scores, groups and marks must be as many as the boxes.
PADDED_ENTRIES: Changes = {
    "scores (1, 2) (1, 3)": {"scores": torch.zeros(1, 2)},
    "groups (1, 2) (1, 3)": {"groups": torch.zeros(1, 2).long()},
    "valid (1, 2) (1, 3)": {"valid": torch.zeros(1, 2).bool()},
}


def of_format(op: Callable[..., Any], reference: Callable[..., Any]) -> OpSpec:
    errors = refusals(op, {}, misshapen("boxes"))
    return OpSpec(op.__name__, op, one, each(reference), errors, gradient="checked")


def of_scale(op: Callable[..., Any], power: int) -> OpSpec:
    """Between pixels and fractions of an image 40 pixels high and 50 wide."""
    sizes, sides = torch.tensor([40, 50]), (50, 40, 50, 40)
    reference = each(lambda box: [side * length**power for side, length in zip(box, sides, strict=True)])
    errors = refusals(op, {"sizes": sizes}, misshapen("boxes"))
    return OpSpec(op.__name__, lambda first: op(first, sizes), one, reference, errors, gradient="checked")


SINGLE = "(..., N, 4) (..., M, 4) {}"


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
    words = SINGLE.format(f"paired_{name}")
    single: Changes = {
        f"boxes (4,) (3, 4) {words}": {"boxes1": BOXES[0]},
        f"boxes (3, 4) (4,) {words}": {"boxes2": BOXES[0]},
    }
    kinds = ((name, against_five, matrix, single), (f"paired_{name}", pairs, each, {}))
    for called, make, arranged, more in kinds:
        op = getattr(ops, called)
        errors = refusals(op, TWO_SETS, {**misshapen("boxes1", "boxes2"), **more, **(wrong or {})})
        with_options = partial(op, **options) if options else op
        yield OpSpec(called + form, with_options, make, arranged(reference), errors, gradient=gradient)


def of_measure(op: Callable[..., Any], more: Changes | None = None) -> dict[str, Callable[[], Any]]:
    """What the function that ``op`` makes of a measure refuses, in the name of the measure."""
    changes = {**misshapen("boxes1", "boxes2"), **(more or {})}
    return {f"giou: {message}": partial(op(ops.giou), **{**TWO_SETS, **change}) for message, change in changes.items()}


def coding(
    coder: Any,
    makes: tuple[Callable[..., Any], ...],
    references: tuple[Callable[..., Any], ...],
    made: Changes,
    *,
    written: str = "deltas",
    wrong: Changes | None = None,
    form: str = "",
    strides: float | Tensor | None = None,
) -> Iterable[OpSpec]:
    """``encode`` and ``decode`` of a coder: arguments, and the reference of a row, of each.

    ``made`` is what the constructor refuses, ``wrong`` what both refuse of anchors; ``written`` is the name of what
    ``decode`` reads. With ``strides``, anchors stand in cells of that size.
    """

    def laid(rows: Tensor) -> Tensor | Anchors:
        return rows if strides is None else in_cells(rows, strides)

    kind = type(coder)
    good = {"self": coder, "anchors": laid(BOXES)}
    wrong = {text: {"anchors": laid(bad["anchors"])} for text, bad in misshapen("anchors").items()} | (wrong or {})
    errors = (
        refusals(kind.__init__, {"self": kind.__new__(kind)}, made)
        | refusals(kind.encode, {**good, "boxes": BOXES}, {**misshapen("boxes"), **wrong}),
        refusals(kind.decode, {**good, written: BOXES}, wrong),
    )
    for i, (name, dtypes) in enumerate((("encode", TYPES), ("decode", FLOATS))):
        method, reference = getattr(coder, name), each(references[i])
        op = lambda rows, anchors, method=method: method(rows, laid(anchors))  # noqa: E731
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
        "form='exp' 'log' 'root'": {"form": "exp"},
        "clamp=0": {"clamp": 0},
        "clamp=inf": {"clamp": math.inf},
    }
    wrong: Changes = {
        "anchors Anchors(boxes, strides, counts)": {"anchors": BOXES},
        "strides (3, 1) (..., 2)": {"anchors": in_cells(BOXES, BOXES[:, :1])},
        "strides () (..., 2)": {"anchors": in_cells(BOXES, BOXES[0, 0])},
    }
    coder = ops.GridCoder(form=form) if form == "log" else ops.GridCoder(form=form, clamp=clamp)
    yield from coding(coder, (pairs, deltas), references, made, wrong=wrong, form=f" {form}", strides=strides)


def of_distances(unit: float | None, makes: tuple[Callable[..., Any], ...], form: str) -> Iterable[OpSpec]:
    references = partial(slow.distances, unit=unit), partial(slow.at_distances, unit=unit)
    allowed = "above 0 None"
    made: Changes = {f"unit={bad} {allowed}": {"unit": bad} for bad in (0, -1.0, math.inf)}
    yield from coding(ops.DistanceCoder(unit=unit), makes, references, made, written="distances", form=form)


def in_words(vocabulary: Literal["code", "paper"], *, coordinate: int, label: int, noise: int) -> Iterable[OpSpec]:
    """A vocabulary of Pix2Seq for three classes, as the numbers of its tokens."""
    kind, numbers = ops.TokenCoder, {"bins": TOKEN_BINS, "coordinate": coordinate, "label": label}
    coder = kind(3, bins=TOKEN_BINS, vocabulary=vocabulary)

    def heard(images, sizes):
        found = [slow.understood(*image, classes=3, **numbers) for image in zip(images, sizes, strict=True)]
        return tuple([image[i] for image in found] for i in range(3))

    yield OpSpec(
        f"TokenCoder.encode {vocabulary}",
        lambda first, labels, sizes, valid: coder.encode(first, labels, sizes, valid=valid),
        in_images,
        each(partial(slow.spoken, noise=noise, **numbers)),
        refusals(kind.__init__, {"self": kind.__new__(kind), "num_classes": 3}, VOCABULARY)
        | refusals(kind.encode, {"self": coder, **ONE_IMAGE}, {**misshapen("boxes"), **LABELLED}),
    )
    yield OpSpec(
        f"TokenCoder.decode {vocabulary}",
        coder.decode,
        partial(in_tokens, coordinate=coordinate, label=label),
        heard,
        refusals(kind.decode, {"self": coder, "tokens": torch.zeros(3, 5).long(), "sizes": torch.ones(2)}, READ),
        FLOATS[:3],  # of the sizes: tokens say no more than float32 holds
    )


FORMATS = (
    of_format(ops.xyxy_to_cxcywh, lambda b: [(b[0] + b[2]) / 2, (b[1] + b[3]) / 2, b[2] - b[0], b[3] - b[1]]),
    of_format(ops.cxcywh_to_xyxy, lambda b: [b[0] - b[2] / 2, b[1] - b[3] / 2, b[0] + b[2] / 2, b[1] + b[3] / 2]),
    of_format(ops.xyxy_to_xywh, lambda b: [b[0], b[1], b[2] - b[0], b[3] - b[1]]),
    of_format(ops.xywh_to_xyxy, lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]),
    of_scale(ops.pixels_to_fractions, -1),
    of_scale(ops.fractions_to_pixels, 1),
    of_format(ops.box_area, slow.area),
    of_format(ops.box_centers, lambda b: [(b[0] + b[2]) / 2, (b[1] + b[3]) / 2]),
    OpSpec(
        "points_in_boxes",
        lambda first, second: ops.points_in_boxes(first[..., :2], second),
        pairs,
        each(lambda p, b: b[0] < p[0] < b[2] and b[1] < p[1] < b[3]),
        refusals(
            ops.points_in_boxes,
            {"points": torch.zeros(3, 2), "boxes": BOXES},
            {
                **misshapen("boxes"),
                "points (3, 4) (..., 2)": {"points": BOXES},
                "points (2,) boxes (3,)": {"points": torch.zeros(2, 2)},
            },
        ),
    ),
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
                "min_size=-1 0": {"min_size": -1},
                "min_size=nan 0": {"min_size": math.nan},
            },
        ),
    ),
)
MASK_SHAPES = "(N, H, W) (M, H, W)"
OVERLAPS = (
    *measures("box_iou", slow.overlap),
    *measures("generalized_box_iou", slow.generalized),
    *measures("distance_box_iou", slow.distance, wrong=VARIANT),
    *measures("distance_box_iou", UNSQUARED, form=" unsquared", wrong=VARIANT, variant="unsquared"),
    *measures("complete_box_iou", slow.complete, "finite"),  # alpha takes no gradient
    OpSpec(
        "all_pairs",
        ops.all_pairs(ops.giou),
        against_five,
        matrix(slow.generalized),
        of_measure(
            ops.all_pairs,
            {f"boxes (4,) (3, 4) {SINGLE.format('paired')}": {"boxes1": BOXES[0]}},
        ),
        gradient="checked",
    ),
    OpSpec("paired", ops.paired(ops.giou), pairs, each(slow.generalized), of_measure(ops.paired), gradient="checked"),
    OpSpec(
        "sides_of",
        ops.sides_of,
        one,
        lambda first: tuple(zip(*((*b, slow.area(b)) for b in first), strict=True)) or ((),) * 5,
        refusals(ops.sides_of, {}, misshapen("boxes")),
        gradient="checked",
    ),
    OpSpec(
        "mask_iou",
        ops.mask_iou,
        masks,
        matrix(slow.mask_overlap),
        refusals(
            ops.mask_iou,
            {"masks1": torch.zeros(1, 2, 3)},
            {
                f"masks (1, 2, 3) (1, 3, 3) {MASK_SHAPES}": {"masks2": torch.zeros(1, 3, 3)},
                f"masks (4, 3) (5, 3) {MASK_SHAPES}": {
                    "masks1": torch.zeros(4, 3),
                    "masks2": torch.zeros(5, 3),
                },
            },
        ),
        (*TYPES, torch.bool),
    ),
)
GROUPED = "integer 3 scores"
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
                f"groups (2,) torch.int64 {GROUPED}": {"groups": LABELS[:2]},
                f"groups (3,) torch.float32 {GROUPED}": {"groups": SCORES},
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
            {**PADDED_ROWS, **PADDED_ENTRIES, **THRESHOLD, **MEASURE, **MOST},
        ),
    ),
    OpSpec(
        "multiclass_nms_padded",
        multiclass_of_two,
        multiclass,
        slow_multiclass,
        refusals(
            ops.multiclass_nms_padded,
            ONE_MULTICLASS,
            {
                **PADDED_CLASSES,
                **THRESHOLD,
                **MEASURE,
                **MOST,
                "candidates_per_class=0 1": {"candidates_per_class": 0},
                "scores (1, 3) (1, 3)": {"scores": SCORES[None]},
                "scores (1, 2, 5) (1, 3)": {"scores": torch.zeros(1, 2, 5)},
            },
        ),
    ),
    OpSpec(
        "multiclass_nms_padded of boxes of classes",
        multiclass_of_two,
        multiclass_boxes,
        slow_multiclass,
        refusals(
            ops.multiclass_nms_padded,
            ONE_MULTICLASS,
            {"boxes class (1, 3, 1, 4) (1, 3, 2) 4": {"boxes": torch.zeros(1, 3, 1, 4)}},
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
                **PADDED_ENTRIES,
                **THRESHOLD,
                **SCORE_THRESHOLD,
                **DECAY,
                **MOST,
                "groups torch.float32 integer": {"groups": SCORES[None]},
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
                "boxes boxes=None overlaps": {"overlaps": torch.zeros(3, 3)},
                "overlaps (3, 2) (3, 3)": {"boxes": None, "overlaps": torch.zeros(3, 2)},
                "overlaps[0, 1]=2 [0, 1] 3": {
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
                "boxes_list[0] (3, 5) (N, 4)": {"boxes_list": [torch.zeros(3, 5)]},
                "scores_list[0] (2,) 3 boxes": {"scores_list": [SCORES[:2]]},
                "labels_list[0] (2,) 3 boxes": {"labels_list": [LABELS[:2]]},
                "labels_list[0] torch.float32 integer": {"labels_list": [SCORES]},
                "boxes_list scores_list labels_list 1 2 1": {"scores_list": [SCORES, SCORES]},
                "weights=[1.0, 1.0] 1": {"weights": [1, 1]},
                "weights=[0.0] 1": {"weights": [0]},
                "scores_list[0][1]=nan 2 3": {"scores_list": [NOT_FINITE]},
                "scores_list[0][0]=-1 0 3 3": {"scores_list": [SCORES - 1]},
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
            "scale=(1, 1, 1) (x, y, w, h) 1e-12 1e12": {"scale": [1, 1, 1]},
            "scale[3]=0 above 0": {"scale": [1, 1, 1, 0]},
        },
    ),
    *of_distances(0.125, (pairs, deltas), ""),
    *of_distances(None, (from_points, to_points), " of points"),
    *grid("log", CELLS[0], (CELLS[0],) * 2, math.log(1000)),
    *grid("root", torch.tensor(CELLS), CELLS, 2.0),
    *in_words("code", coordinate=1000, label=101, noise=30),
    *in_words("paper", coordinate=1, label=TOKEN_BINS + 1, noise=TOKEN_BINS + 4),
)
