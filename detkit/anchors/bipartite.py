"""SSD's matcher: every object takes its best free anchor, and every anchor that fits well enough joins in."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from detkit.anchors.assigned import in_crowd
from detkit.boxes import box_iou
from detkit.checks import check_fraction
from detkit.ranking import stable_topk
from detkit.structures import IGNORED, NEGATIVE, Assignment, Targets

_SMALLEST_OVERLAP = 1e-6


class BipartiteMatcher(nn.Module):
    """SSD's matching: every object gets its best free anchor, and every anchor that fits well enough joins in.

    First the greedy part: of all pairs the one with the highest IoU is matched, its anchor and object leave, and so on
    until every object has an anchor. Pairs with IoU <= 1e-6 are left alone unless ``force_match_zero``. Then each other
    anchor whose best IoU is at least ``positive`` takes that object, whether it has an anchor already or not. An anchor
    whose best IoU lies in [``negative``, ``positive``) is IGNORED, the rest are NEGATIVE; ``negative`` defaults to
    ``positive``. Anchors that lie with more than half their area in an ignored target (a crowd) are IGNORED too, unless
    they are positive. Ties go to the lower anchor, then to the lower object. ``greedy=False`` is torchvision's rule for
    the first part: every object claims its best anchor, and of two that claim the same one the later wins. Overlaps are
    compared in float32. Raises ValueError for thresholds outside [0, 1] or in the wrong order, and for targets
    without a single row.

    Source: Liu et al. 2016, section 2.2 ("Matching strategy").

    >>> anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 4], [50, 50, 60, 60]])
    >>> from detkit.structures import pad_targets
    >>> targets = pad_targets([{"boxes": torch.tensor([[0.0, 0, 10, 9]]), "labels": torch.tensor([7])}])
    >>> BipartiteMatcher(positive=0.5)(anchors, targets).matched
    tensor([[ 0, -1, -1]])
    """

    def __init__(
        self,
        *,
        positive: float = 0.5,
        negative: float | None = None,
        greedy: bool = True,
        force_match_zero: bool = False,
    ) -> None:
        super().__init__()
        self.positive, self.negative = positive, positive if negative is None else negative
        for name, value in (("positive", self.positive), ("negative", self.negative)):
            check_fraction(value, name=name, function="BipartiteMatcher")
        if self.negative > self.positive:
            raise ValueError(f"BipartiteMatcher: negative={negative} must not exceed positive={positive}")
        self.greedy, self.force_match_zero = greedy, force_match_zero

    @torch.no_grad()
    def forward(self, anchors: Float[Tensor, "*B N 4"], targets: Targets) -> Assignment:
        """Match ``anchors`` (N, 4) or (B, N, 4) xyxy with the objects of B images; quality is the IoU of the match."""
        if targets.boxes.shape[1] == 0:
            raise ValueError("BipartiteMatcher: targets have 0 rows; allowed is at least 1, as pad_targets makes")
        everything = box_iou(targets.boxes, anchors).float().abs()  # abs: -0.0 has the bits of a large integer
        objects = targets.valid & ~targets.ignore
        overlaps = torch.where(objects[..., None], everything, -1)
        quality, best = overlaps.max(dim=1)
        matched = torch.where(quality >= self.positive, best, NEGATIVE)
        unsure = (quality >= self.negative) | in_crowd(everything, anchors, targets)
        matched = torch.where(unsure & (matched == NEGATIVE), IGNORED, matched)
        claimed = self._greedy_claims(overlaps) if self.greedy else self._independent_claims(overlaps)
        matched = torch.where(claimed >= 0, claimed, matched)
        chosen = overlaps.gather(1, matched.clamp(min=0)[:, None]).squeeze(1)
        return Assignment(matched, torch.where(matched >= 0, chosen, quality.clamp(min=0)))

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"positive={self.positive}, negative={self.negative}, greedy={self.greedy}"

    def _worth_forcing(self, overlaps: Tensor) -> Tensor:
        return overlaps >= 0 if self.force_match_zero else overlaps > _SMALLEST_OVERLAP

    def _greedy_claims(self, overlaps: Float[Tensor, "B T N"]) -> Int[Tensor, "B N"]:
        """For each anchor the object that takes it in the greedy part, else -1.

        An object can lose at most T - 1 anchors to others, so its T best anchors are all it can ever need: the rounds
        run on (T, T) candidates instead of (T, N) pairs.
        """
        images, length, count = overlaps.shape
        claimed = overlaps.new_full((images, count), NEGATIVE, dtype=torch.int64)
        if count == 0:
            return claimed
        anchors = stable_topk(overlaps.clamp(min=0), length)
        values = overlaps.gather(2, anchors)
        values = torch.where(self._worth_forcing(values), values, -1)
        order = _rank(values, anchors, count)
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

    def _independent_claims(self, overlaps: Float[Tensor, "B T N"]) -> Int[Tensor, "B N"]:
        """For each anchor the last object whose best anchor it is, else -1: torchvision's rule for SSD."""
        claimed = overlaps.new_full((overlaps.shape[0], overlaps.shape[2]), NEGATIVE, dtype=torch.int64)
        if overlaps.shape[2] == 0:
            return claimed
        values, anchors = overlaps.max(dim=2)
        numbers = torch.arange(overlaps.shape[1], device=overlaps.device)
        claims = torch.where(self._worth_forcing(values), numbers, NEGATIVE)
        return claimed.scatter_reduce(1, anchors, claims, "amax")


def _rank(values: Float[Tensor, "B T K"], anchors: Int[Tensor, "B T K"], total: int) -> Int[Tensor, "B T K"]:
    """Integers that order pairs by value, then by lower anchor; -1 where the value is negative."""
    order = (values.clamp(min=0).view(torch.int32).to(torch.int64) << 32) + (total - 1 - anchors)
    return torch.where(values >= 0, order, -1)
