"""SSD's matcher: each object gets its best free anchor, and every other anchor with a high enough IoU is added."""

import math
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from detkit._door import door
from detkit._inputs import on_host
from detkit._ranges import Fraction
from detkit._ranking import stable_topk
from detkit._threads import on_one_thread
from detkit.anchors.assigned import matched_overlaps, threshold_labels
from detkit.anchors.claims import SMALLEST_CLAIM, pair_keys
from detkit.anchors.matcher import AnchorBoxes, check_thresholds, match_batch, match_images, read_boxes, traced_matches
from detkit.anchors.matrix import best_objects, overlap_matrix
from detkit.anchors.search.bipartite import accepted_offers, search_bipartite
from detkit.anchors.search.overlap_index import Pairs
from detkit.boxes.iou_blocks import iou_matrix
from detkit.boxes.measures import BoxSides
from detkit.structures import NEGATIVE, Assignment, Predictions, Targets

_PAIRS_AT_ONCE = 2**19
_SAMPLE = 2**16


def match_bipartite(
    overlaps: Float[Tensor, "B T N"],
    *,
    positive_iou: float,
    negative_iou: float,
    greedy: bool = True,
    force_match_zero: bool = False,
) -> Assignment:
    """The rule of :class:`BipartiteMatcher`, on the IoU of every object with every anchor: claims before thresholds.

    >>> match_bipartite(torch.tensor([[[0.3, 0.2], [0.4, 0.6]]]), positive_iou=0.5, negative_iou=0.5).matched
    tensor([[0, 1]])
    """
    overlap, row = overlaps.max(dim=1)
    claimed = (greedy_claims if greedy else independent_claims)(overlaps, force_match_zero=force_match_zero)
    matched = torch.where(claimed >= 0, claimed, threshold_labels(overlap, row, positive_iou, negative_iou))
    return Assignment(matched, matched_overlaps(overlaps, matched))


def greedy_claims(overlaps: Float[Tensor, "B T N"], *, force_match_zero: bool = False) -> Int[Tensor, "B N"]:
    """For each anchor the object that claims it, else -1: T times the best pair left is taken, and both are spent.

    >>> greedy_claims(torch.tensor([[[0.3, 0.2], [0.6, 0.5]]]))
    tensor([[1, 0]])
    """
    if overlaps.device.type == "cpu":
        return torch.stack([_claims_by_level(image, force_match_zero) for image in overlaps])
    return _claims_in_turn(overlaps, force_match_zero)


def _claims_by_level(overlaps: Float[Tensor, "T N"], force_match_zero: bool) -> Int[Tensor, "N"]:
    """The same for one image on the host: first among the pairs with the highest IoU, then among the best of those
    whose object and anchor are left, and so on. So no pair is sorted twice, and few are sorted at all."""
    claimed = torch.full(overlaps.shape[1:], NEGATIVE)
    rows, columns = (torch.arange(length) for length in overlaps.shape)
    least, level = 0.0 if force_match_zero else SMALLEST_CLAIM, math.inf
    while level > least:
        left = overlaps if len(rows) * len(columns) == overlaps.numel() else overlaps[rows].index_select(1, columns)
        level = _level(left, least)
        found = ((left >= level) & (left > least)).nonzero()
        pairs = Pairs(found[:, 0], found[:, 1], left[found[:, 0], found[:, 1]])
        taken = accepted_offers(pairs, pairs.anchors, pairs.objects, len(rows))
        objects, anchors = pairs.objects[taken], pairs.anchors[taken]
        claimed[columns[anchors]] = rows[objects]
        rows, columns = _without(rows, objects), _without(columns, anchors)
    if force_match_zero:  # all that are left tie at 0
        rows, columns = rows[(overlaps[rows] >= 0).any(1)], columns[(overlaps[:, columns] >= 0).any(0)]
        count = min(len(rows), len(columns))
        claimed[columns[:count]] = rows[:count]
    return claimed


def _level(overlaps: Float[Tensor, "M N"], least: float) -> float:
    """About the IoU that ``_PAIRS_AT_ONCE`` of the pairs reach, or ``least`` if that is lower."""
    sample = overlaps.flatten()[:: -(-overlaps.numel() // _SAMPLE) or 1]
    lower = len(sample) - round(len(sample) * _PAIRS_AT_ONCE / max(1, overlaps.numel()))
    return max(least, sample.kthvalue(lower).values.item()) if lower > 0 else least


def _without(numbers: Int[Tensor, "M"], places: Int[Tensor, "K"]) -> Int[Tensor, "L"]:
    return numbers[torch.ones_like(numbers, dtype=torch.bool).index_fill_(0, places, False)]


def _claims_in_turn(overlaps: Float[Tensor, "B T N"], force_match_zero: bool) -> Int[Tensor, "B N"]:
    """One claim of every image after another: no look at the values of a device."""
    images, length, count = overlaps.shape
    claimed = overlaps.new_full((images, count), NEGATIVE, dtype=torch.int64)
    anchors = stable_topk(overlaps, length)  # of each object: it can lose at most T - 1 of them to others
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
    """For each anchor the last object whose best anchor it is, else -1: torchvision's rule in SSD.

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
    """SSD's matching: each object gets its best free anchor, then every anchor with a high enough IoU is added.

    The first part is greedy: of all pairs of an object and an anchor the one with the highest IoU is matched and both
    are removed, until every object has an anchor. Pairs with IoU <= 1e-6 are not matched unless ``force_match_zero``.
    Then each other anchor whose highest IoU is at least ``positive_iou`` is matched with that object, whether it has an
    anchor already or not. An anchor whose highest IoU lies in [``negative_iou``, ``positive_iou``) is IGNORED, the rest
    are NEGATIVE; ``negative_iou`` defaults to ``positive_iou``. Anchors with more than half their area in a crowd are
    IGNORED too, unless they are positive. Padding rows and boxes that are not finite match nothing. Ties go to the
    lower anchor, then to the lower object. ``greedy=False`` is torchvision's rule for the first part: each object
    claims its best anchor, and where two claim the same one the later object wins. IoUs are compared in float32.

    Raises ValueError for thresholds outside [0, 1] or in the wrong order, for targets without a single row, and for
    anchors of another batch size.

    Source: Liu et al. 2016, section 2.2 ("Matching strategy").

    >>> anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 4], [50, 50, 60, 60]])
    >>> from detkit.structures import pad_targets
    >>> targets = pad_targets([{"boxes": torch.tensor([[0.0, 0, 10, 9]]), "labels": torch.tensor([7])}])
    >>> BipartiteMatcher(positive_iou=0.5)(anchors, targets).matched
    tensor([[ 0, -1, -1]])
    """

    reads_predictions = False

    @door
    def __init__(
        self,
        *,
        positive_iou: Fraction = 0.5,
        negative_iou: Fraction | None = None,
        greedy: bool = True,
        force_match_zero: bool = False,
    ) -> None:
        super().__init__()
        self.positive_iou, self.negative_iou = positive_iou, positive_iou if negative_iou is None else negative_iou
        check_thresholds("BipartiteMatcher", self.positive_iou, self.negative_iou)
        self.greedy, self.force_match_zero = greedy, force_match_zero

    @door
    @torch.no_grad()
    def forward(self, anchors: AnchorBoxes, targets: Targets, predictions: Predictions | None = None) -> Assignment:
        """Match ``anchors``, (N, 4) or (B, N, 4) xyxy, with the objects of B images; predictions are not read.

        ``quality`` is the IoU of the match, 0 for an anchor without one.
        """
        boxes, targets = read_boxes("BipartiteMatcher", anchors, targets)
        rows = targets.boxes, targets.valid, targets.ignore, boxes
        rule = (self.positive_iou, self.negative_iou, self.greedy, self.force_match_zero)
        match = _match_rows if on_host(boxes) else torch.ops.detkit.match_bipartite
        return Assignment(*match(*rows, *rule))

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"positive_iou={self.positive_iou}, negative_iou={self.negative_iou}, greedy={self.greedy}"


@on_one_thread
def _match_rows(
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


torch.library.custom_op("detkit::match_bipartite", _match_rows, mutates_args=()).register_fake(traced_matches)


def _compare(
    boxes: Float[Tensor, "B T 4"], objects: Bool[Tensor, "B T"], anchors: Float[Tensor, "*B N 4"], **rule: Any
) -> Assignment:
    """The rule; on the CPU of an image's own objects at a time: the matrix of a batch would not fit the cache."""
    if boxes.device.type != "cpu":
        return match_bipartite(overlap_matrix(boxes, objects, anchors), **rule)
    if rule["negative_iou"] > 0 and not rule["force_match_zero"]:
        return match_images(boxes, objects, anchors, partial(_compare_image, **rule))
    images = zip(boxes.split(1), objects.split(1), anchors.expand(len(boxes), -1, -1).split(1), strict=True)
    found = [
        match_bipartite(overlap_matrix(*image), **rule) for image in images
    ]  # here 0 with what is no object counts
    return Assignment(*(torch.cat(columns) for columns in zip(*found, strict=True)))


def _compare_image(
    objects: BoxSides,
    rows: Int[Tensor, "M"],
    anchors: BoxSides,
    *,
    positive_iou: float,
    negative_iou: float,
    greedy: bool,
    force_match_zero: bool,
) -> tuple[Int[Tensor, "N"], Float[Tensor, "N"]]:
    """As :func:`match_bipartite`, of one image in few calls: claims, which are few, are written over the rest."""
    overlaps = iou_matrix(objects, anchors).float()
    claims = (_claims_in_pairs if greedy else _last_claims)(overlaps, rows, force_match_zero)
    overlap, place = best_objects(overlaps)
    matched = threshold_labels(overlap, rows.index_select(0, place), positive_iou, negative_iou)
    quality = overlap.masked_fill_(matched < 0, 0)
    spots, claimants, values = claims
    return matched.scatter_(0, spots, claimants), quality.scatter_(0, spots, values)


def _claims_in_pairs(
    overlaps: Float[Tensor, "M N"], rows: Int[Tensor, "M"], force_match_zero: bool
) -> tuple[Int[Tensor, "K"], Int[Tensor, "K"], Float[Tensor, "K"]]:
    """The anchors of one image that are claimed greedily, the row of the object that claims each, and their IoU."""
    claimed = _claims_by_level(overlaps, force_match_zero)
    spots = (claimed >= 0).nonzero().squeeze(1)
    objects = claimed[spots]
    return spots, rows[objects], overlaps[objects, spots]


def _last_claims(
    overlaps: Float[Tensor, "M N"], rows: Int[Tensor, "M"], force_match_zero: bool
) -> tuple[Int[Tensor, "K"], Int[Tensor, "K"], Float[Tensor, "K"]]:
    """The same for claims that ask nobody: an anchor stands there once for each, the object that wins last."""
    values, spots = overlaps.max(1)
    worth = _worth_forcing(values, force_match_zero)
    return (spots, rows, values) if worth.all() else (spots[worth], rows[worth], values[worth])
