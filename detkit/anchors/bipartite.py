"""SSD's matcher: every object takes its best free anchor, and every anchor that fits well enough joins in."""

from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from detkit._ranking import stable_topk
from detkit.anchors.assigned import matched_overlaps, threshold_labels
from detkit.anchors.claims import SMALLEST_CLAIM, pair_keys
from detkit.anchors.matcher import AnchorBoxes, check_thresholds, match_batch, read_boxes, traced_matches
from detkit.anchors.matrix import overlap_matrix
from detkit.anchors.search.bipartite import search_bipartite
from detkit.structures import NEGATIVE, Assignment, Predictions, Targets


def match_bipartite(
    overlaps: Float[Tensor, "B T N"],
    *,
    positive_iou: float,
    negative_iou: float,
    greedy: bool = True,
    force_match_zero: bool = False,
) -> Assignment:
    """The definition, on the IoUs of all objects and anchors: first claims, then thresholds.

    See :class:`BipartiteMatcher`, which explains it.

    >>> match_bipartite(torch.tensor([[[0.3, 0.2], [0.4, 0.6]]]), positive_iou=0.5, negative_iou=0.5).matched
    tensor([[0, 1]])
    """
    overlap, row = overlaps.max(dim=1)
    claimed = (greedy_claims if greedy else independent_claims)(overlaps, force_match_zero=force_match_zero)
    matched = torch.where(claimed >= 0, claimed, threshold_labels(overlap, row, positive_iou, negative_iou))
    return Assignment(matched, matched_overlaps(overlaps, matched))


def greedy_claims(overlaps: Float[Tensor, "B T N"], *, force_match_zero: bool = False) -> Int[Tensor, "B N"]:
    """For each anchor the object that takes it, else -1: of all pairs the best is taken, and both leave, T times.

    >>> greedy_claims(torch.tensor([[[0.3, 0.2], [0.6, 0.5]]]))
    tensor([[1, 0]])
    """
    images, length, count = overlaps.shape
    claimed = overlaps.new_full((images, count), NEGATIVE, dtype=torch.int64)
    anchors = stable_topk(overlaps, length)  # of each object; it can lose at most T - 1 to others
    values = overlaps.gather(2, anchors)
    order = torch.where(_worth_forcing(values, force_match_zero), pair_keys(values, anchors), -1)
    objects = torch.arange(length, device=overlaps.device)
    for _ in range(length):
        best, place = order.flatten(1).max(dim=1)
        row, anchor = place // order.shape[2], anchors.flatten(1).gather(1, place[:, None])
        free = best[:, None] >= 0
        claimed.scatter_(1, anchor, torch.where(free, row[:, None], claimed.gather(1, anchor)))
        spent = (anchors == anchor[..., None]) | (objects == row[:, None])[..., None]
        order = torch.where(spent & free[..., None], -1, order)
    return claimed


def independent_claims(overlaps: Float[Tensor, "B T N"], *, force_match_zero: bool = False) -> Int[Tensor, "B N"]:
    """For each anchor the last object whose best anchor it is, else -1: torchvision's rule for SSD.

    >>> independent_claims(torch.tensor([[[0.3, 0.2], [0.6, 0.5]]]))
    tensor([[ 1, -1]])
    """
    claimed = overlaps.new_full((overlaps.shape[0], overlaps.shape[2]), NEGATIVE, dtype=torch.int64)
    values, anchors = overlaps.max(dim=2)
    objects = torch.arange(overlaps.shape[1], device=overlaps.device)
    claims = torch.where(_worth_forcing(values, force_match_zero), objects, NEGATIVE)
    return claimed.scatter_reduce(1, anchors, claims, "amax")


def _worth_forcing(overlaps: Tensor, force_match_zero: bool) -> Tensor:
    return overlaps >= 0 if force_match_zero else overlaps > SMALLEST_CLAIM


class BipartiteMatcher(nn.Module):
    """SSD's matching: every object gets its best free anchor, and every anchor that fits well enough joins in.

    First the greedy part: of all pairs the one with the highest IoU is matched, its anchor and object leave, and so on
    until every object has an anchor. Pairs with IoU <= 1e-6 are left alone unless ``force_match_zero``. Then each other
    anchor whose best IoU is at least ``positive_iou`` takes that object, whether it has an anchor already or not. An
    anchor whose best IoU lies in [``negative_iou``, ``positive_iou``) is IGNORED, the rest are NEGATIVE;
    ``negative_iou`` defaults to ``positive_iou``. Anchors that lie with more than half their area in an ignored target
    (a crowd) are IGNORED too, unless they are positive. Ties go to the lower anchor, then to the lower object.
    ``greedy=False`` is torchvision's rule for the first part: every object claims its best anchor, and of two that
    claim the same one the later wins. Overlaps are compared in float32. Raises ValueError for thresholds outside
    [0, 1] or in the wrong order, and for targets without a single row.

    Source: Liu et al. 2016, section 2.2 ("Matching strategy").

    >>> anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 4], [50, 50, 60, 60]])
    >>> from detkit.structures import pad_targets
    >>> targets = pad_targets([{"boxes": torch.tensor([[0.0, 0, 10, 9]]), "labels": torch.tensor([7])}])
    >>> BipartiteMatcher(positive_iou=0.5)(anchors, targets).matched
    tensor([[ 0, -1, -1]])
    """

    reads_predictions = False

    def __init__(
        self,
        *,
        positive_iou: float = 0.5,
        negative_iou: float | None = None,
        greedy: bool = True,
        force_match_zero: bool = False,
    ) -> None:
        super().__init__()
        self.positive_iou, self.negative_iou = positive_iou, positive_iou if negative_iou is None else negative_iou
        check_thresholds("BipartiteMatcher", self.positive_iou, self.negative_iou)
        self.greedy, self.force_match_zero = greedy, force_match_zero

    @torch.no_grad()
    def forward(self, anchors: AnchorBoxes, targets: Targets, predictions: Predictions | None = None) -> Assignment:
        """Match ``anchors``, (N, 4) or (B, N, 4) xyxy, with the objects of B images; predictions are not looked at.

        ``quality`` is the IoU of the match, 0 where an anchor has none.
        """
        boxes, targets = read_boxes("BipartiteMatcher", anchors, targets)
        rows = targets.boxes, targets.valid, targets.ignore, boxes
        rule = (self.positive_iou, self.negative_iou, self.greedy, self.force_match_zero)
        return Assignment(*torch.ops.detkit.match_bipartite(*rows, *rule))

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"positive_iou={self.positive_iou}, negative_iou={self.negative_iou}, greedy={self.greedy}"


@torch.library.custom_op("detkit::match_bipartite", mutates_args=())
def _match(
    boxes: Tensor,
    valid: Tensor,
    ignore: Tensor,
    anchors: Tensor,
    positive_iou: float,
    negative_iou: float,
    greedy: bool,
    force_match_zero: bool,
) -> tuple[Tensor, Tensor]:
    rule = {"positive_iou": positive_iou, "negative_iou": negative_iou, "greedy": greedy}
    search = partial(search_bipartite, **rule) if negative_iou > 0 and not force_match_zero else None
    compare = partial(_compare, force_match_zero=force_match_zero, **rule)
    return match_batch(boxes, valid, ignore, anchors, compare=compare, search=search)


_match.register_fake(traced_matches)


def _compare(
    boxes: Float[Tensor, "B T 4"], objects: Bool[Tensor, "B T"], anchors: Float[Tensor, "*B N 4"], **rule: Any
) -> Assignment:
    """The definition; on the CPU image by image, where the matrices of all together would leave the cache."""
    if boxes.device.type != "cpu" or len(boxes) < 2:
        return match_bipartite(overlap_matrix(boxes, objects, anchors), **rule)
    own = anchors.expand(len(boxes), -1, -1).split(1)
    images = zip(boxes.split(1), objects.split(1), own, strict=True)
    found = [_compare(*image, **rule) for image in images]
    return Assignment(*(torch.cat(columns) for columns in zip(*found, strict=True)))
