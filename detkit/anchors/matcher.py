"""What all matchers share around their rule: reading the arguments, running on a whole batch, ignoring crowds."""

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from detkit._inputs import as_boxes, on_host
from detkit.anchors.assigned import ignore_crowds, no_matches
from detkit.anchors.search.groups import Compare, Search, search_batch, worth_searching
from detkit.anchors.search.overlap_index import anchor_sides
from detkit.boxes.measures import BoxSides, bounded_sides
from detkit.structures import Anchors, Assignment, Predictions, Targets

AnchorBoxes: TypeAlias = Anchors | Shaped[Tensor, "*B N 4"]
"""What matchers take: anchors, or plain boxes, either shared by all images or those of each image."""


def read_boxes(function: str, anchors: Anchors | Tensor, targets: Targets) -> tuple[Tensor, Targets]:
    """The boxes of the anchors, and targets, in a promoted type; boxes that are not finite become NaN: no match.

    Objects of weight 0 are no longer ``valid``: matchers treat them as padding.
    Raises ValueError, in the name of ``function``, where shapes disagree and for targets without a single row.

    >>> from detkit.structures import pad_targets
    >>> targets = pad_targets([{"boxes": torch.ones(1, 4), "labels": torch.tensor([0])}])
    >>> read_boxes("example", torch.tensor([[0, 0, 8, torch.inf], [0, 0, 8, 4]]), targets)[0]
    tensor([[nan, nan, nan, nan],
            [0., 0., 8., 4.]])
    """
    truth = as_boxes(targets.boxes, function=function, name="targets.boxes")
    boxes = anchors.boxes if isinstance(anchors, Anchors) else anchors
    boxes = as_boxes(boxes, function=function, name="anchors")
    check_rows(function, targets)
    if boxes.ndim != 2 and (boxes.ndim != 3 or boxes.shape[0] != truth.shape[0]):
        raise ValueError(
            f"{function}: anchors have shape {tuple(boxes.shape)}; allowed is (N, 4) or ({truth.shape[0]}, N, 4)"
        )
    return _finite(boxes), targets._replace(boxes=_finite(truth), valid=targets.present)


def read_predictions(function: str, predictions: Predictions | None, field: str) -> tuple[Tensor, Tensor]:
    """The boxes and the ``field`` of ``predictions``. Raises ValueError where they are missing.

    >>> read_predictions("example", None, "scores")
    Traceback (most recent call last):
    ValueError: example: looks at predictions; call it as matcher(anchors, targets, Predictions(boxes, scores=scores))
    """
    values = getattr(predictions, field, None)
    if predictions is None or values is None:
        given = "boxes" if field == "boxes" else f"boxes, {field}={field}"
        raise ValueError(
            f"{function}: looks at predictions; call it as matcher(anchors, targets, Predictions({given}))"
        )
    return predictions.boxes, values


def check_rows(function: str, targets: Targets) -> None:
    """Raise ValueError for targets padded to length 0: no index could point into them.

    >>> no = torch.zeros(1, 0).bool()
    >>> check_rows("example", Targets(torch.zeros(1, 0, 4), torch.zeros(1, 0).long(), no, no))
    Traceback (most recent call last):
    ValueError: example: targets have 0 rows; allowed is at least 1, as pad_targets makes
    """
    if targets.valid.shape[1] == 0:
        raise ValueError(f"{function}: targets have 0 rows; allowed is at least 1, as pad_targets makes")


def check_thresholds(function: str, positive_iou: float, negative_iou: float) -> None:
    """Raise ValueError where ``negative_iou`` is the higher one.

    >>> check_thresholds("example", 0.5, 0.6)
    Traceback (most recent call last):
    ValueError: example: negative_iou=0.6 must not exceed positive_iou=0.5
    """
    if negative_iou > positive_iou:
        raise ValueError(f"{function}: negative_iou={negative_iou} must not exceed positive_iou={positive_iou}")


def match_batch(
    boxes: Float[Tensor, "B T 4"],
    valid: Bool[Tensor, "B T"],
    ignore: Bool[Tensor, "B T"],
    anchors: Float[Tensor, "*B N 4"],
    *,
    compare: Compare,
    search: Search | None = None,
) -> tuple[Tensor, Tensor]:
    """Matched and quality (B, N) by ``compare(boxes, objects, anchors)``; then anchors in crowds are ignored.

    ``search`` gives the same result and stands in where that is faster: see :mod:`detkit.anchors.search`.
    """
    crowded = ignore.device.type != "cpu" or bool(ignore.any())
    objects = valid & ~ignore if crowded else valid
    if anchors.shape[-2] == 0 or len(boxes) == 0:
        matched, quality = no_matches(boxes, anchors)
    elif search is not None and worth_searching(objects, anchors):
        matched, quality = search_batch(boxes, objects, anchors, search=search, compare=compare)
    else:
        matched, quality = compare(boxes, objects, anchors)
    return ignore_crowds(matched, anchors, boxes, valid & ignore) if crowded else matched, quality


def match_images(
    boxes: Float[Tensor, "B T 4"],
    objects: Bool[Tensor, "B T"],
    anchors: Float[Tensor, "*B N 4"],
    match: Callable[[BoxSides, Tensor, BoxSides], tuple[Tensor, Tensor]],
) -> Assignment:
    """The matched and quality (N,) that ``match(objects, rows, anchors)`` returns for each image on the CPU.

    The objects that ``match`` gets are those of one image, which stand in ``rows`` of its targets; without any, nothing
    is matched. A box that is NaN has no area there.
    """
    sides = anchor_sides(anchors) if anchors.ndim == 2 else bounded_sides(anchors)

    def matches_of(image: int) -> tuple[Tensor, Tensor]:
        rows = objects[image].nonzero().view(-1)
        if not len(rows):
            none = no_matches(boxes[:1], anchors)
            return none.matched[0], none.quality[0]
        columns = sides if anchors.ndim == 2 else sides.map(lambda values: values[image])
        return match(bounded_sides(boxes[image].index_select(0, rows)), rows, columns)

    if len(boxes) == 1:  # nothing to copy
        return Assignment(*(values[None] for values in matches_of(0)))
    result = no_matches(boxes, anchors)
    for image in range(len(boxes)):
        result.matched[image], result.quality[image] = matches_of(image)
    return result


def traced_matches(boxes: Tensor, valid: Tensor, ignore: Tensor, anchors: Tensor, *rule: object) -> tuple[Tensor, ...]:
    """The fake of the matching operators: tensors of the shapes and types that :func:`match_batch` returns."""
    return tuple(no_matches(boxes, anchors))


def _finite(boxes: Tensor) -> Tensor:
    if on_host(boxes) and math.isfinite(boxes.sum().item()):  # one fast pass; an overflow only costs the slow one
        return boxes
    return torch.where(torch.isfinite(boxes).all(-1, keepdim=True), boxes, torch.nan)
