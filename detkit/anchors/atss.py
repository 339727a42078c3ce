"""ATSS: of the anchors near an object, those with an unusually high IoU are positive."""

from collections.abc import Sequence
from importlib import import_module
from types import NotImplementedType

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from detkit._door import door
from detkit._ranges import Count
from detkit._ranking import stable_topk
from detkit.anchors.assigned import ignore_crowds
from detkit.anchors.candidates import PAIRS_IN_CACHE
from detkit.anchors.claims import highest_claim
from detkit.anchors.matcher import AnchorBoxes, read_boxes
from detkit.anchors.matrix import pairs_at_once
from detkit.boxes import box_centers, paired_box_iou, points_in_boxes
from detkit.kernels.switch import takes_over
from detkit.structures import Anchors, Assignment, Predictions, Targets, take_rows

_FARTHEST = 1e18  # coordinates count as at most this: squared distances stay finite


class ATSSMatcher(nn.Module):
    """Adaptive training sample selection: each object sets its own IoU threshold.

    The candidates of an object are, on every level, the ``candidates`` anchors whose centers are nearest to its own.
    Positive are those whose IoU is above 0 and at least the mean plus the standard deviation of the candidates' IoUs
    (unbiased, as in the authors' code; 0 for a single candidate), and whose center lies strictly inside the object. An
    anchor that several objects claim goes to the one with the highest IoU. Ties go to the lower anchor and the lower
    object. The other anchors are NEGATIVE, or IGNORED if more than half their area lies in a crowd. ``quality`` is the
    IoU of the match, 0 without one. An object may have no positive anchor, for example if no candidate has its center
    inside. Padding rows and boxes that are not finite match nothing; such an anchor is no candidate. IoUs are compared
    in float32.

    Raises ValueError for fewer than 1 candidate, shapes that disagree, targets without a single row, and level counts
    that do not add up to the number of anchors; with ``DETKIT_CHECKS=full`` for boxes that are not finite or inverted.

    Source: Zhang et al. 2020, algorithm 1.

    >>> from detkit.structures import pad_targets
    >>> targets = pad_targets([{"boxes": torch.tensor([[0.0, 0, 10, 9]]), "labels": torch.tensor([7])}])
    >>> boxes = torch.tensor([[0.0, 0, 10, 10], [4, 4, 14, 14], [8, 8, 18, 18], [20, 0, 40, 20]])
    >>> ATSSMatcher(candidates=3)(Anchors.of(boxes)._replace(counts=(3, 1)), targets).matched
    tensor([[ 0, -1, -1, -1]])
    """

    reads_predictions = False

    @door
    def __init__(self, *, candidates: Count = 9) -> None:
        super().__init__()
        self.candidates = candidates

    @door
    @torch.no_grad()
    def forward(self, anchors: AnchorBoxes, targets: Targets, predictions: Predictions | None = None) -> Assignment:
        """Match ``anchors``, (N, 4) or (B, N, 4) xyxy, with the objects of B images; predictions are not read.

        The levels are those of ``anchors.counts``; plain boxes are one level.
        """
        boxes, targets = read_boxes("ATSSMatcher", anchors, targets)
        count, truth = boxes.shape[-2], targets.boxes
        counts = anchors.counts if isinstance(anchors, Anchors) else (count,)
        if sum(counts) != count or any(level < 0 for level in counts):
            raise ValueError(
                f"ATSSMatcher: anchors.counts={list(counts)} add up to {sum(counts)}; "
                f"allowed is one count for each level, together the {count} anchors"
            )
        points, goals = box_centers(boxes), box_centers(truth)
        places = torch.ops.detkit.nearest_points(points, goals, list(counts), self.candidates)
        near = take_rows(boxes.expand(truth.shape[0], -1, 4), places.flatten(1)).unflatten(1, places.shape[1:])
        overlaps = paired_box_iou(near, truth[:, :, None]).float()
        fits = overlaps >= _threshold(overlaps, torch.isfinite(near).all(-1))[..., None]
        chosen = fits & (overlaps > 0) & points_in_boxes(box_centers(near), truth[:, :, None])
        matched, quality = highest_claim(places, overlaps, chosen & targets.objects[..., None], count)
        return Assignment(ignore_crowds(matched, boxes, truth, targets.crowds), quality)

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"candidates={self.candidates}"


def _nearest_points(points: Tensor, goals: Tensor, counts: Sequence[int], candidates: int) -> Tensor:
    """Indices (B, T, K) of the points, (N, 2) or (B, N, 2), nearest to each goal (B, T, 2), level after level."""
    places, start = [goals.new_zeros((*goals.shape[:2], 0), dtype=torch.int64)], 0
    for level in points.split(list(counts), dim=-2):
        places.append(_nearest(level.expand(goals.shape[0], -1, 2), goals, candidates) + start)
        start += level.shape[-2]
    return torch.cat(places, dim=2)


def _nearest(points: Float[Tensor, "B N 2"], goals: Float[Tensor, "B T 2"], count: int) -> Int[Tensor, "B T K"]:
    """Indices of the points nearest to each goal, computed for a few goals at a time to bound memory."""
    points, goals = (_bounded(rows) for rows in (points, goals))
    most = pairs_at_once(points.device, on_cpu=PAIRS_IN_CACHE)
    step = max(1, min(goals.shape[1], most // max(1, points[..., 0].numel())))
    parts = []
    for some in goals.split(step, dim=1):
        x, y = (points[:, None] - some[:, :, None]).unbind(-1)
        parts.append(stable_topk(torch.nan_to_num(-(x * x + y * y), nan=-torch.inf), count))
    return torch.cat(parts, dim=1)


def _bounded(rows: Float[Tensor, "... 2"]) -> Float[Tensor, "... 2"]:
    return rows.clamp(-_FARTHEST, _FARTHEST)


def _nearest_on_device(
    points: Tensor, goals: Tensor, counts: Sequence[int], candidates: int
) -> Tensor | NotImplementedType:
    """As :func:`_nearest_points`, by a kernel that never holds the distances of all pairs."""
    if points.dtype != torch.float32 or goals.dtype != torch.float32:
        return NotImplemented
    kernel = import_module("detkit.kernels.nearest")
    return kernel.nearest(_bounded(points), _bounded(goals), counts, candidates)


_operator = torch.library.custom_op("detkit::nearest_points", _nearest_points, mutates_args=())
takes_over(_operator, _nearest_points, lambda: _nearest_on_device)


@_operator.register_fake
def _(points: Tensor, goals: Tensor, counts: Sequence[int], candidates: int) -> Tensor:
    width = sum(torch.sym_min(count, candidates) for count in counts)
    return goals.new_empty((*goals.shape[:2], width), dtype=torch.int64)


def _threshold(overlaps: Float[Tensor, "B T K"], usable: Bool[Tensor, "B T K"]) -> Tensor:
    """Mean plus standard deviation of the usable IoUs; in float64, where the mean of equal numbers is exact."""
    values = torch.where(usable, overlaps, 0).double()
    number = usable.sum(-1)
    mean = values.sum(-1) / number.clamp(min=1)
    squares = torch.where(usable, values - mean[..., None], 0).square().sum(-1)
    return mean + (squares / (number - 1).clamp(min=1)).sqrt()
