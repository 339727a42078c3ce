"""The matcher of R-CNN and RetinaNet: an anchor learns the object that it fits best, if it fits well enough."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor, nn

from detkit._inputs import check_fraction
from detkit.anchors.assigned import in_crowd
from detkit.anchors.matcher import read_boxes
from detkit.anchors.overlap import OverlapIndex, overlap_index
from detkit.anchors.search import (
    ImageGroup,
    best_fit,
    image_groups,
    masked_overlaps,
    matrix_pieces,
    no_matches,
    threshold_labels,
    worth_searching,
    write_labels,
)
from detkit.structures import IGNORED, NEGATIVE, Anchors, Assignment, Predictions, Targets

_ROWS_AT_ONCE = 4096


class ThresholdMatcher(nn.Module):
    """R-CNN's matching: every anchor looks at the object that it overlaps most.

    An anchor whose best IoU is at least ``positive_iou`` takes that object, ties going to the lower object; below
    ``negative_iou`` it is NEGATIVE, in between IGNORED. RetinaNet uses 0.5 and 0.4, Faster R-CNN's proposals 0.7 and
    0.3, its second stage 0.5 and 0.5. With ``low_quality`` the anchors that overlap an object more than any other
    anchor does, all of those that tie, are positive too, however little that is, if it is above 0: so that no object
    that an anchor touches goes unseen. Such an anchor takes the object that *it* overlaps most, which may be another
    one. Anchors that lie with more than half their area in an ignored target (a crowd) are IGNORED unless they are
    positive. Rows that are not valid match nothing, NaN boxes neither. Overlaps are compared in float32.

    On a CPU the work grows with the number of overlapping pairs, not with objects times anchors, where all images share
    their anchors (N, 4); memory is bounded in any case. Raises ValueError for thresholds outside [0, 1] or in the
    wrong order, for targets without a single row, and for anchors of another batch size.

    Source: Ren et al. 2015, section 3.1.2; Lin et al. 2017, "Focal Loss", section 4.

    >>> anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 4], [50, 50, 60, 60]])
    >>> from detkit.structures import pad_targets
    >>> targets = pad_targets([{"boxes": torch.tensor([[0.0, 0, 10, 9]]), "labels": torch.tensor([7])}])
    >>> ThresholdMatcher(positive_iou=0.5, negative_iou=0.4)(anchors, targets).matched
    tensor([[ 0, -2, -1]])
    """

    reads_predictions = False

    def __init__(self, *, positive_iou: float = 0.5, negative_iou: float = 0.4, low_quality: bool = True) -> None:
        super().__init__()
        for name, value in (("positive_iou", positive_iou), ("negative_iou", negative_iou)):
            check_fraction(value, name=name, function="ThresholdMatcher")
        if negative_iou > positive_iou:
            raise ValueError(
                f"ThresholdMatcher: negative_iou={negative_iou} must not exceed positive_iou={positive_iou}"
            )
        self.positive_iou, self.negative_iou, self.low_quality = positive_iou, negative_iou, low_quality

    @torch.no_grad()
    def forward(
        self,
        anchors: Anchors | Shaped[Tensor, "*B N 4"],
        targets: Targets,
        predictions: Predictions | None = None,
    ) -> Assignment:
        """Match ``anchors``, (N, 4) or (B, N, 4) xyxy, with the objects of B images; predictions are not looked at.

        ``quality`` is the IoU of the match, 0 where an anchor has none.
        """
        anchors, targets = read_boxes("ThresholdMatcher", anchors, targets)
        rows = targets.boxes, targets.valid, targets.ignore, anchors.boxes
        rule = (self.positive_iou, self.negative_iou, self.low_quality)
        return Assignment(*torch.ops.detkit.match_threshold(*rows, *rule))

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"positive_iou={self.positive_iou}, negative_iou={self.negative_iou}, low_quality={self.low_quality}"


class _Rule(NamedTuple):
    positive_iou: float
    negative_iou: float
    low_quality: bool


@torch.library.custom_op("detkit::match_threshold", mutates_args=())
def _match(
    boxes: Tensor,
    valid: Tensor,
    ignore: Tensor,
    anchors: Tensor,
    positive_iou: float,
    negative_iou: float,
    low_quality: bool,
) -> tuple[Tensor, Tensor]:
    rule, objects = _Rule(positive_iou, negative_iou, low_quality), valid & ~ignore
    result = no_matches(boxes, anchors)
    if negative_iou > 0 and worth_searching(objects, anchors):
        index = overlap_index(anchors)
        for group in image_groups(boxes, objects):
            part = Assignment(*(rows[group.images] for rows in result))
            if not _search(index, boxes[group.images], objects[group.images], anchors, group, rule, part):
                _compare_all(boxes[group.images], objects[group.images], anchors, rule, part)
    else:
        _compare_all(boxes, objects, anchors, rule, result)
    crowded = in_crowd(anchors, boxes, valid & ignore) & (result.matched == NEGATIVE)
    return result.matched.masked_fill_(crowded, IGNORED), result.quality


@_match.register_fake
def _(
    boxes: Tensor,
    valid: Tensor,
    ignore: Tensor,
    anchors: Tensor,
    positive_iou: float,
    negative_iou: float,
    low_quality: bool,
) -> tuple[Tensor, Tensor]:
    matched, quality = no_matches(boxes, anchors)
    return matched, quality


def _compare_all(boxes: Tensor, objects: Tensor, anchors: Tensor, rule: _Rule, result: Assignment) -> None:
    """The definition, on the whole matrix piece by piece; twice, as the best of an object is known only at the end."""
    pieces = matrix_pieces(objects, anchors)
    best = torch.zeros(objects.shape, device=boxes.device)
    if rule.low_quality:
        for piece in pieces:
            best = best.maximum(masked_overlaps(boxes, objects, anchors[..., piece, :]).amax(2))
    best = torch.where(best > 0, best, 2)
    for piece in pieces:
        overlaps = masked_overlaps(boxes, objects, anchors[..., piece, :])
        overlap, row = overlaps.max(dim=1)
        forced = (overlaps == best[..., None]).any(dim=1)
        label = torch.where(forced, row, threshold_labels(row, overlap, rule.positive_iou, rule.negative_iou))
        result.matched[:, piece] = label
        result.quality[:, piece] = torch.where(label >= 0, overlap, 0)


def _search(
    index: OverlapIndex,
    boxes: Shaped[Tensor, "B T 4"],
    objects: Bool[Tensor, "B T"],
    anchors: Shaped[Tensor, "N 4"],
    group: ImageGroup,
    rule: _Rule,
    result: Assignment,
) -> bool:
    """The same from the pairs that matter: IoU >= ``negative_iou``, or the best of an object; False where too many."""
    least = torch.full(group.row.shape, rule.negative_iou)
    if rule.low_quality:
        least = least.minimum(index.reachable(group.sides))
    pairs = index.pairs(group.sides, least)
    if pairs is None:
        return False
    matched, quality = result.matched.view(-1), result.quality.view(-1)
    cells = group.image[pairs.objects] * len(anchors) + pairs.anchors
    row, overlap = best_fit(cells, group.row[pairs.objects], pairs.overlaps, matched)
    write_labels(matched, quality, cells, threshold_labels(row, overlap, rule.positive_iou, rule.negative_iou), overlap)
    if rule.low_quality:
        best = pairs.overlaps.new_zeros(len(least)).scatter_reduce_(0, pairs.objects, pairs.overlaps, "amax")
        forced = (pairs.overlaps == best[pairs.objects]).nonzero().squeeze(1)
        known = overlap[forced] >= rule.negative_iou  # all pairs as good as that were found
        sure, unsure = forced[known], forced[~known]
        write_labels(matched, quality, cells[sure], row[sure], overlap[sure])
        for some in unsure.split(_ROWS_AT_ONCE):
            image = group.image[pairs.objects[some]]
            others = masked_overlaps(boxes[image], objects[image], anchors[pairs.anchors[some], None]).squeeze(2)
            write_labels(matched, quality, cells[some], *reversed(others.max(dim=1)))
    return True
