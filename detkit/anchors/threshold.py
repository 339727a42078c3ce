"""The matcher of R-CNN and RetinaNet: an anchor learns the object it overlaps most, if the IoU is high enough."""

from functools import partial
from importlib import import_module
from types import NotImplementedType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from detkit._door import door
from detkit._inputs import on_host
from detkit._ranges import Fraction
from detkit._threads import on_one_thread
from detkit.anchors.assigned import no_matches, threshold_labels
from detkit.anchors.matcher import AnchorBoxes, check_thresholds, match_batch, match_images, read_boxes, traced_matches
from detkit.anchors.matrix import best_matches, matrix_pieces, overlap_matrix
from detkit.anchors.search.threshold import search_threshold
from detkit.boxes.measures import BoxSides, coordinate_limit, smallest_union
from detkit.kernels.switch import takes_over
from detkit.structures import Assignment, Predictions, Targets


def match_by_threshold(
    overlaps: Float[Tensor, "B T N"],
    highest: Float[Tensor, "B T"] | None,
    *,
    positive_iou: float,
    negative_iou: float,
) -> Assignment:
    """The rule of :class:`ThresholdMatcher`, on the IoU of every object with every anchor.

    Each anchor considers the object it overlaps most. ``highest``, each object's highest IoU with any anchor, makes the
    anchors that reach it positive too, if it is above 0.

    >>> match_by_threshold(torch.tensor([[[0.8, 0.4, 0.3]]]), None, positive_iou=0.5, negative_iou=0.4).matched
    tensor([[ 0, -2, -1]])
    """
    overlap, row = overlaps.max(dim=1)
    matched = threshold_labels(overlap, row, positive_iou, negative_iou)
    if highest is not None:
        best = overlaps == torch.where(highest > 0, highest, torch.nan)[..., None]
        matched = torch.where(best.any(dim=1), row, matched)
    return Assignment(matched, torch.where(matched >= 0, overlap, 0))


class ThresholdMatcher(nn.Module):
    """R-CNN's matching: each anchor is matched with the object it overlaps most, if the IoU reaches a threshold.

    An anchor whose highest IoU is at least ``positive_iou`` is positive for that object; ties go to the lower object.
    Below ``negative_iou`` it is NEGATIVE, in between IGNORED. RetinaNet uses 0.5 and 0.4, Faster R-CNN's RPN 0.7 and
    0.3, its second stage 0.5 and 0.5. With ``low_quality``, the anchors with an object's highest IoU, all that tie, are
    positive too, however low it is, as long as it is above 0. Such an anchor is matched with the object *it* overlaps
    most, which may be another one, so that an object can still go without. Anchors with more than half their area in a
    crowd are IGNORED unless they are positive. Padding rows and boxes that are not finite match nothing. IoUs are
    compared in float32.

    On a CPU, where all images share their anchors (N, 4), the work grows with the number of overlapping pairs, not with
    objects times anchors; memory is bounded in any case. Raises ValueError for thresholds outside [0, 1] or in the
    wrong order, for targets without a single row, and for anchors of another batch size.

    Source: Ren et al. 2015, section 3.1.2; Lin et al. 2017, "Focal Loss", section 4.

    >>> anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 4], [50, 50, 60, 60]])
    >>> from detkit.structures import pad_targets
    >>> targets = pad_targets([{"boxes": torch.tensor([[0.0, 0, 10, 9]]), "labels": torch.tensor([7])}])
    >>> ThresholdMatcher(positive_iou=0.5, negative_iou=0.4)(anchors, targets).matched
    tensor([[ 0, -2, -1]])
    """

    reads_predictions = False

    @door
    def __init__(self, *, positive_iou: Fraction = 0.5, negative_iou: Fraction = 0.4, low_quality: bool = True) -> None:
        super().__init__()
        check_thresholds("ThresholdMatcher", positive_iou, negative_iou)
        self.positive_iou, self.negative_iou, self.low_quality = positive_iou, negative_iou, low_quality

    @door
    @torch.no_grad()
    def forward(self, anchors: AnchorBoxes, targets: Targets, predictions: Predictions | None = None) -> Assignment:
        """Match ``anchors``, (N, 4) or (B, N, 4) xyxy, with the objects of B images; predictions are not read.

        ``quality`` is the IoU of the match, 0 for an anchor without one.
        """
        boxes, targets = read_boxes("ThresholdMatcher", anchors, targets)
        rows = targets.boxes, targets.valid, targets.ignore, boxes
        rule = (self.positive_iou, self.negative_iou, self.low_quality)
        match = _match_rows if on_host(boxes) else torch.ops.detkit.match_threshold
        return Assignment(*match(*rows, *rule))

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"positive_iou={self.positive_iou}, negative_iou={self.negative_iou}, low_quality={self.low_quality}"


@on_one_thread
def _match_rows(
    boxes: Tensor,
    valid: Tensor,
    ignore: Tensor,
    anchors: Tensor,
    positive_iou: float,
    negative_iou: float,
    low_quality: bool,
) -> tuple[Tensor, Tensor]:
    rule = {"positive_iou": positive_iou, "negative_iou": negative_iou, "low_quality": low_quality}
    search = partial(search_threshold, **rule) if negative_iou > 0 else None
    return match_batch(boxes, valid, ignore, anchors, compare=partial(_compare, **rule), search=search)


def _match_on_device(
    boxes: Tensor, valid: Tensor, ignore: Tensor, anchors: Tensor, *rule: Any
) -> tuple[Tensor, Tensor] | NotImplementedType:
    """As :func:`_match_rows`, by a kernel that never holds the IoU of all pairs."""
    if boxes.dtype != torch.float32 or anchors.dtype != torch.float32:
        return NotImplemented
    kernel = import_module("detkit.kernels.threshold")
    rule = kernel.Rule(*rule, coordinate_limit(boxes.dtype), smallest_union(boxes.dtype))
    return kernel.match(boxes, valid & ~ignore, valid & ignore, anchors, rule)


_operator = torch.library.custom_op("detkit::match_threshold", _match_rows, mutates_args=())
_operator.register_fake(traced_matches)
takes_over(_operator, _match_rows, lambda: _match_on_device)


def _compare(
    boxes: Float[Tensor, "B T 4"], objects: Bool[Tensor, "B T"], anchors: Float[Tensor, "*B N 4"], **rule: Any
) -> Assignment:
    """The rule by the IoU of all pairs: of the whole batch on a device, of an image at a time on the CPU."""
    if boxes.device.type != "cpu" or rule["negative_iou"] == 0:  # 0: where the IoU of what is no object counts
        return _compare_batch(boxes, objects, anchors, **rule)
    return match_images(boxes, objects, anchors, partial(_compare_image, **rule))


def _compare_image(
    objects: BoxSides,
    rows: Int[Tensor, "M"],
    anchors: BoxSides,
    *,
    positive_iou: float,
    negative_iou: float,
    low_quality: bool,
) -> tuple[Int[Tensor, "N"], Float[Tensor, "N"]]:
    """Matched and quality of one image, whose objects stand in ``rows``."""
    overlap, place, forced = best_matches(objects, anchors, ties=low_quality)
    row = rows.index_select(0, place)
    matched = threshold_labels(overlap, row, positive_iou, negative_iou)
    if forced is not None:
        matched = torch.where(forced, row, matched)
    return matched, overlap.masked_fill_(matched < 0, 0)


def _compare_batch(
    boxes: Float[Tensor, "B T 4"],
    objects: Bool[Tensor, "B T"],
    anchors: Float[Tensor, "*B N 4"],
    *,
    positive_iou: float,
    negative_iou: float,
    low_quality: bool,
) -> Assignment:
    """The rule on pieces of the anchors, in two passes: an object's highest IoU is known only after the first."""
    pieces, result = matrix_pieces(objects, anchors), no_matches(boxes, anchors)
    highest = torch.zeros(objects.shape, device=boxes.device) if low_quality else None
    if highest is not None:
        for piece in pieces:
            highest = highest.maximum(overlap_matrix(boxes, objects, anchors[..., piece, :]).amax(2))
    for piece in pieces:
        overlaps = overlap_matrix(boxes, objects, anchors[..., piece, :])
        found = match_by_threshold(overlaps, highest, positive_iou=positive_iou, negative_iou=negative_iou)
        result.matched[:, piece], result.quality[:, piece] = found
    return result
