"""One record an operation: how to make arguments, what a slow reference gives, what is refused, and with which words.

tests/test_records.py and tests/compiled/test_compiled_records.py run every property over every record, so that a new
operation brings all its tests with a record of a few lines.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import references as slow
import torch
from strategies import random_boxes, unhooked
from torch import Tensor

from detkit import boxes as ops
from detkit.boxes.fusion import weighted_boxes_fusion
from detkit.boxes.rescore import matrix_nms, soft_nms, soft_nms_padded

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
TYPES = (*FLOATS, torch.int32, torch.int64, torch.uint8)
WEIGHTS = (10.0, 10.0, 5.0, 5.0)
CODER = ops.DeltaCoder(WEIGHTS)


class OpSpec(NamedTuple):
    """What the generic tests need to know of an operation."""

    name: str
    op: Callable[..., Any]
    make: Callable[[int, torch.dtype], tuple[Tensor, ...]]  # arguments with so many rows in the first dimension
    reference: Callable[..., Any]  # of plain lists of float64, and of ints
    errors: tuple[tuple[Callable[[], Any], str], ...]  # a call that is refused, and the beginning of its message
    dtypes: tuple[torch.dtype, ...] = TYPES
    gradient: Literal["checked", "finite", "none"] = "none"  # "finite": finite differences would not agree, on purpose


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
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(4)).to(dtype) * 3, rows(count, dtype)


def scored(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return rows(count, dtype), numbers(count, dtype)


def grouped(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return *scored(count, dtype), groups(count)


def batched(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Two images; the number of boxes is the second dimension."""
    images = [(rows(count, dtype, seed=s), numbers(count, dtype, seed=s), groups(count)) for s in (1, 2)]
    return tuple(torch.stack(column) for column in zip(*images, strict=True))


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
    return weighted_boxes_fusion(*columns, iou_threshold=0.31)


def slow_fusion_of_two(first, scores, labels):
    models = [tuple(column[i::2] for column in (first, scores, labels)) for i in (0, 1)]
    found = slow.clustered(models, iou_threshold=0.31)
    return [row[0] for row in found], [row[1] for row in found], [row[2] for row in found]


def bad_shape(
    op: Callable[..., Any], name: str, argument: str = "boxes", *others: Any
) -> tuple[Callable[[], Any], str]:
    """That boxes of five numbers are refused by name."""
    message = rf"{name}: {argument} has shape \(3, 5\); allowed is "
    return lambda: unhooked(op)(torch.zeros(3, 5), *others), message


def bad_threshold(op: Callable[..., Any], name: str, *others: Any, **settings: Any) -> tuple[Callable[[], Any], str]:
    """That an IoU threshold of 2 is refused by name."""
    arguments = torch.zeros(2, 4), torch.zeros(2), *others
    return lambda: unhooked(op)(*arguments, **settings), rf"{name}: iou_threshold=2 must lie in \[0, 1\]"


def of_format(op: Callable[..., Any], reference: Callable[..., Any]) -> OpSpec:
    name = op.__name__
    return OpSpec(name, op, one, each(reference), (bad_shape(op, name),), gradient="checked")


def measures(name: str, reference: Callable[..., float], gradient: Literal["checked", "finite"]) -> Iterable[OpSpec]:
    """A measure of overlap as a matrix and in pairs."""
    op, paired = getattr(ops, name), getattr(ops, f"paired_{name}")
    good = torch.zeros(3, 4)
    yield OpSpec(name, op, against_five, matrix(reference), (bad_shape(op, name, "boxes1", good),), gradient=gradient)
    errors = (bad_shape(paired, f"paired_{name}", "boxes1", good),)
    yield OpSpec(f"paired_{name}", paired, pairs, each(reference), errors, gradient=gradient)


NONE = torch.zeros(2).long()
CODER_SHAPE = r"DeltaCoder\.%s has shape \(3, 5\); allowed is "

RECORDS = (
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
        (bad_shape(ops.clip_boxes_to_image, "clip_boxes_to_image", "boxes", (4, 5)),),
        gradient="checked",
    ),
    OpSpec(
        "remove_small_boxes",
        lambda first: ops.remove_small_boxes(first, 20),
        one,
        lambda first: [i for i, b in enumerate(first) if min(b[2] - b[0], b[3] - b[1]) >= 20],
        (
            bad_shape(ops.remove_small_boxes, "remove_small_boxes", "boxes", 1),
            (lambda: ops.remove_small_boxes(torch.zeros(1, 4), -1), "remove_small_boxes: min_size=-1 must be at least"),
        ),
    ),
    *measures("box_iou", slow.overlap, "checked"),
    *measures("generalized_box_iou", slow.generalized, "checked"),
    *measures("distance_box_iou", slow.distance, "checked"),
    *measures("complete_box_iou", slow.complete, "finite"),  # alpha takes no gradient
    OpSpec(
        "mask_iou",
        ops.mask_iou,
        masks,
        matrix(slow.mask_overlap),
        ((lambda: unhooked(ops.mask_iou)(torch.zeros(1, 2, 3), torch.zeros(1, 3, 3)), "mask_iou: masks have shapes"),),
        (*TYPES, torch.bool),
    ),
    OpSpec(
        "nms",
        lambda first, scores: ops.nms(first, scores, 0.3),
        scored,
        lambda first, scores: slow.greedy(first, scores, 0.3),
        (bad_shape(ops.nms, "nms", "boxes", torch.zeros(3), 0.3), bad_threshold(ops.nms, "nms", 2)),
    ),
    OpSpec(
        "batched_nms",
        lambda first, scores, labels: ops.batched_nms(first, scores, labels, 0.3),
        grouped,
        lambda first, scores, labels: slow.greedy(first, scores, 0.3, labels),
        (
            bad_shape(ops.batched_nms, "batched_nms", "boxes", torch.zeros(3), torch.zeros(3).long(), 0.3),
            bad_threshold(ops.batched_nms, "batched_nms", NONE, 2),
        ),
    ),
    OpSpec(
        "nms_padded",
        lambda first, scores, labels: ops.nms_padded(first, scores, 0.3, groups=labels, max_detections=4),
        batched,
        slow_nms_padded,
        (bad_threshold(ops.nms_padded, "nms_padded", 2, max_detections=1),),
    ),
    OpSpec(
        "DeltaCoder.encode",
        CODER.encode,
        pairs,
        each(lambda box, anchor: slow.encoded(box, anchor, WEIGHTS)),
        (
            (
                lambda: unhooked(ops.DeltaCoder.encode)(CODER, torch.zeros(3, 5), torch.zeros(3, 4)),
                CODER_SHAPE % "encode: boxes",
            ),
        ),
        gradient="checked",
    ),
    OpSpec(
        "DeltaCoder.decode",
        CODER.decode,
        deltas,
        each(lambda numbers, anchor: slow.decoded(numbers, anchor, WEIGHTS)),
        (
            (
                lambda: unhooked(ops.DeltaCoder.decode)(CODER, torch.zeros(3, 4), torch.zeros(3, 5)),
                CODER_SHAPE % "decode: anchors",
            ),
        ),
        FLOATS,
        gradient="checked",
    ),
    OpSpec(
        "soft_nms",
        lambda first, scores, labels: soft_nms(first, scores, groups=labels),
        grouped,
        slow_soft_nms,
        (
            bad_shape(soft_nms, "soft_nms", "boxes", torch.zeros(3)),
            bad_threshold(soft_nms, "soft_nms", iou_threshold=2),
        ),
    ),
    OpSpec(
        "soft_nms_padded",
        lambda first, scores, labels: soft_nms_padded(first, scores, groups=labels, method="linear", max_detections=4),
        batched,
        slow_soft_nms_padded,
        (bad_threshold(soft_nms_padded, "soft_nms_padded", iou_threshold=2, max_detections=1),),
    ),
    OpSpec(
        "matrix_nms",
        lambda first, scores, labels: matrix_nms(first, scores, groups=labels),
        grouped,
        slow_matrix_nms,
        (bad_shape(matrix_nms, "matrix_nms", "boxes", torch.zeros(3)),),
        gradient="checked",
    ),
    OpSpec(
        "weighted_boxes_fusion",
        fusion_of_two,
        grouped,
        slow_fusion_of_two,
        (
            (
                lambda: unhooked(weighted_boxes_fusion)([torch.zeros(3, 5)], [torch.zeros(3)], [torch.zeros(3)]),
                r"weighted_boxes_fusion: boxes_list\[0\] has shape \(3, 5\); allowed is \(N, 4\)",
            ),
        ),
    ),
)
