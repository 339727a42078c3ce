"""SSD's matcher: every object takes its best free anchor, and every anchor that fits well enough joins in."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from detkit._inputs import check_fraction
from detkit._ranking import stable_topk
from detkit.anchors.assigned import in_crowd
from detkit.anchors.matcher import read_boxes
from detkit.anchors.overlap import OverlapIndex, Pairs, overlap_index
from detkit.anchors.search import (
    ImageGroup,
    best_fit,
    image_groups,
    masked_overlaps,
    no_matches,
    pair_keys,
    threshold_labels,
    worth_searching,
    write_labels,
)
from detkit.structures import IGNORED, NEGATIVE, Anchors, Assignment, Predictions, Targets

_SMALLEST_OVERLAP = 1e-6


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
        for name, value in (("positive_iou", self.positive_iou), ("negative_iou", self.negative_iou)):
            check_fraction(value, name=name, function="BipartiteMatcher")
        if self.negative_iou > self.positive_iou:
            raise ValueError(
                f"BipartiteMatcher: negative_iou={negative_iou} must not exceed positive_iou={positive_iou}"
            )
        self.greedy, self.force_match_zero = greedy, force_match_zero

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
        anchors, targets = read_boxes("BipartiteMatcher", anchors, targets)
        rows = targets.boxes, targets.valid, targets.ignore, anchors.boxes
        rule = (self.positive_iou, self.negative_iou, self.greedy, self.force_match_zero)
        return Assignment(*torch.ops.detkit.match_bipartite(*rows, *rule))

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"positive_iou={self.positive_iou}, negative_iou={self.negative_iou}, greedy={self.greedy}"


class _Rule(NamedTuple):
    positive_iou: float
    negative_iou: float
    greedy: bool
    force_match_zero: bool


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
    rule, objects = _Rule(positive_iou, negative_iou, greedy, force_match_zero), valid & ~ignore
    result = no_matches(boxes, anchors)
    if negative_iou > 0 and not force_match_zero and worth_searching(objects, anchors):
        index = overlap_index(anchors)
        for group in image_groups(boxes, objects):
            part = Assignment(*(rows[group.images] for rows in result))
            if not _search(index, group, rule, part):
                _compare_all(boxes[group.images], objects[group.images], anchors, rule, part)
    elif anchors.shape[-2] > 0:
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
    greedy: bool,
    force_match_zero: bool,
) -> tuple[Tensor, Tensor]:
    matched, quality = no_matches(boxes, anchors)
    return matched, quality


def _compare_all(boxes: Tensor, objects: Tensor, anchors: Tensor, rule: _Rule, result: Assignment) -> None:
    """The definition, on the matrix of all objects and anchors of an image; on a device, which likes it, of all."""
    if boxes.device.type == "cpu" and len(boxes) > 1:
        for image in range(len(boxes)):
            own = anchors if anchors.ndim == 2 else anchors[image : image + 1]
            part = Assignment(*(rows[image : image + 1] for rows in result))
            _compare_all(boxes[image : image + 1], objects[image : image + 1], own, rule, part)
        return
    overlaps = masked_overlaps(boxes, objects, anchors)
    quality, best = overlaps.max(dim=1)
    claims = _greedy_claims if rule.greedy else _independent_claims
    claimed = claims(overlaps, rule.force_match_zero)
    matched = torch.where(claimed >= 0, claimed, threshold_labels(best, quality, rule.positive_iou, rule.negative_iou))
    chosen = overlaps.gather(1, matched.clamp(min=0)[:, None]).squeeze(1)
    result.matched.copy_(matched)
    result.quality.copy_(torch.where(matched >= 0, chosen, 0))


def _worth_forcing(overlaps: Tensor, force_match_zero: bool) -> Tensor:
    return overlaps >= 0 if force_match_zero else overlaps > _SMALLEST_OVERLAP


def _greedy_claims(overlaps: Float[Tensor, "B T N"], force_match_zero: bool) -> Int[Tensor, "B N"]:
    """For each anchor the object that takes it in the greedy part, else -1.

    An object can lose at most T - 1 anchors to others, so its T best anchors are all it can ever need: the rounds
    run on (T, T) candidates instead of (T, N) pairs.
    """
    images, length, count = overlaps.shape
    claimed = overlaps.new_full((images, count), NEGATIVE, dtype=torch.int64)
    anchors = stable_topk(overlaps, length)
    values = overlaps.gather(2, anchors)
    order = torch.where(_worth_forcing(values, force_match_zero), pair_keys(values.clamp(min=0), anchors), -1)
    for _ in range(length):
        top, place = order.flatten(1).max(dim=1)
        row = place // order.shape[2]
        anchor = anchors.flatten(1).gather(1, place[:, None])
        free = top[:, None] >= 0
        claimed.scatter_(1, anchor, torch.where(free, row[:, None], claimed.gather(1, anchor)))
        same_object = torch.arange(length, device=row.device) == row[:, None]
        spent = (anchors == anchor[..., None]) | same_object[..., None]
        order = torch.where(spent & free[..., None], -1, order)
    return claimed


def _independent_claims(overlaps: Float[Tensor, "B T N"], force_match_zero: bool) -> Int[Tensor, "B N"]:
    """For each anchor the last object whose best anchor it is, else -1: torchvision's rule for SSD."""
    claimed = overlaps.new_full((overlaps.shape[0], overlaps.shape[2]), NEGATIVE, dtype=torch.int64)
    values, anchors = overlaps.max(dim=2)
    numbers = torch.arange(overlaps.shape[1], device=overlaps.device)
    claims = torch.where(_worth_forcing(values, force_match_zero), numbers, NEGATIVE)
    return claimed.scatter_reduce(1, anchors, claims, "amax")


def _search(index: OverlapIndex, group: ImageGroup, rule: _Rule, result: Assignment) -> bool:
    """The same from the pairs that matter; False where they are too many.

    These are the pairs with IoU >= ``negative_iou``, and for every object those that compete for its claim: first about
    its best, then, as long as an object has lost all of them to others, more.
    """
    least = index.reachable(group.sides).clamp(max=rule.negative_iou)
    while True:
        pairs = index.pairs(group.sides, least)
        if pairs is None:
            return False
        cells = group.image[pairs.objects] * result.matched.shape[1] + pairs.anchors
        rows = group.row[pairs.objects]
        claims = _proposals(pairs, cells, rows, len(least)) if rule.greedy else _best_pairs(pairs, len(least))
        unlucky = torch.ones_like(least, dtype=torch.bool).index_fill_(0, pairs.objects[claims], False)
        again = unlucky & (least > _SMALLEST_OVERLAP)
        if not rule.greedy or not again.any():
            break
        least = torch.where(again, least / 4, least)
    matched, quality = (values.view(-1) for values in result)
    fit = best_fit(cells, rows, pairs.overlaps, matched)
    write_labels(matched, quality, cells, threshold_labels(*fit, rule.positive_iou, rule.negative_iou), fit.overlap)
    order = rows[claims].argsort(stable=True)  # of two claims on one anchor the later object's is written last
    claims = claims[order]
    write_labels(matched, quality, cells[claims], rows[claims], pairs.overlaps[claims])
    return True


def _best_pairs(pairs: Pairs, count: int) -> Int[Tensor, "C"]:
    """Of every object the pair with its best anchor, the lower one of equals, if it is worth forcing."""
    keys = pair_keys(pairs.overlaps, pairs.anchors)
    best = keys.new_zeros(count).scatter_reduce_(0, pairs.objects, keys, "amax")
    return ((keys == best[pairs.objects]) & (pairs.overlaps > _SMALLEST_OVERLAP)).nonzero().squeeze(1)


def _proposals(pairs: Pairs, cells: Int[Tensor, "P"], rows: Int[Tensor, "P"], count: int) -> Int[Tensor, "C"]:
    """The pairs that the greedy part takes.

    Every object proposes to its best anchor; an anchor holds on to its best proposal, and who is refused goes on to the
    next. As both sides rank pairs by one order, this ends where taking the best pair of all, again and again, ends; but
    objects far apart don't wait for each other.
    """
    order = pair_keys(pairs.overlaps, pairs.anchors).argsort(descending=True)
    order = order[pairs.overlaps[order] > _SMALLEST_OVERLAP]
    order = order[pairs.objects[order].argsort(stable=True)]
    counts = pairs.objects[order].bincount(minlength=count)
    last = counts.cumsum(0)
    place = last - counts
    offers = pair_keys(pairs.overlaps, rows)[order]
    spots = cells[order]
    names, spots = spots.unique(return_inverse=True)
    held = offers.new_full(names.shape, -1)
    asking = (place < last).nonzero().squeeze(1)
    while len(asking):
        held.scatter_reduce_(0, spots[place[asking]], offers[place[asking]], "amax")
        live = (place < last).nonzero().squeeze(1)
        asking = live[held[spots[place[live]]] != offers[place[live]]]
        place[asking] += 1
        asking = asking[place[asking] < last[asking]]
    return order[place[place < last]]
