"""The first stage of two: which anchors hold an object of any class. Its detections are the proposals of the next."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from detkit._inputs import check_fraction
from detkit._ranking import stable_topk
from detkit.anchors import BalancedSampler, gather_assigned
from detkit.anchors.sample import sampled_rows
from detkit.boxes import DeltaCoder, clip_boxes_to_image, nms_padded
from detkit.detectors.detector import Stage
from detkit.structures import IGNORED, Assignment, Detections, Images, Targets


class RPNOutputs(NamedTuple):
    """Predictions for every anchor, the anchors that all images share, and how many of them each level has."""

    logits: Float[Tensor, "B N 1"]
    deltas: Float[Tensor, "B N 4"]
    anchors: Float[Tensor, "N 4"]
    counts: Sequence[int]


class ProposalPostprocess(nn.Module):
    """From objectness to proposals: the best of each level, decoded, suppressed within the level, the best of all.

    ``candidates_per_level`` anchors of each level are decoded; boxes that clipping leaves narrower or lower than
    ``min_size`` pixels are dropped, and those scoring below ``score_threshold``; of two with IoU strictly above
    ``iou_threshold`` the better stays; ``max_proposals`` remain. Defaults are torchvision's. Source: Ren et al. 2015,
    section 3.3; Lin et al. 2017, "Feature Pyramid Networks", section 4.1. Raises ValueError for a threshold outside
    [0, 1] and counts below 1.

    >>> ProposalPostprocess(max_proposals=300)
    ProposalPostprocess(candidates_per_level=1000, max_proposals=300, iou_threshold=0.7, min_size=0.001)
    """

    def __init__(
        self,
        *,
        candidates_per_level: int = 1000,
        max_proposals: int = 1000,
        iou_threshold: float = 0.7,
        min_size: float = 1e-3,
        score_threshold: float = 0.0,
    ) -> None:
        super().__init__()
        check_fraction(score_threshold, name="score_threshold", function="ProposalPostprocess")
        check_fraction(iou_threshold, name="iou_threshold", function="ProposalPostprocess")
        if candidates_per_level < 1 or max_proposals < 1 or not min_size >= 0:
            raise ValueError(
                f"ProposalPostprocess: candidates_per_level={candidates_per_level}, max_proposals={max_proposals}, "
                f"min_size={min_size}; allowed are at least 1, at least 1, at least 0"
            )
        self.candidates_per_level, self.max_proposals = candidates_per_level, max_proposals
        self.iou_threshold, self.min_size, self.score_threshold = iou_threshold, min_size, score_threshold

    @torch.no_grad()
    def forward(self, outputs: RPNOutputs, coder: DeltaCoder, sizes: Tensor) -> Detections:
        """Proposals of B images, clipped to ``sizes`` (B, 2), best first, all of label 0; padding rows hold zeros."""
        logits = outputs.logits[..., 0].detach()
        rows, levels, valid = best_of_levels(logits, outputs.counts, self.candidates_per_level)
        boxes = coder.decode(_rows(outputs.deltas.detach(), rows), outputs.anchors[rows])
        valid &= torch.isfinite(boxes).all(-1)  # clipping would make infinite ones good
        boxes = clip_boxes_to_image(boxes, sizes)
        valid &= (boxes[..., 2:] - boxes[..., :2] >= self.min_size).all(-1)
        scores = logits.gather(1, rows).to(boxes.dtype).sigmoid()
        valid &= scores >= self.score_threshold
        kept, valid = nms_padded(
            boxes,
            scores,
            self.iou_threshold,
            groups=levels.expand_as(rows),
            valid=valid,
            max_detections=self.max_proposals,
        )
        return Detections(
            boxes=torch.where(valid[..., None], _rows(boxes, kept), 0),
            scores=torch.where(valid, scores.gather(1, kept), 0),
            labels=torch.zeros_like(kept),
            valid=valid,
        )

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        names = (
            "candidates_per_level",
            "max_proposals",
            "iou_threshold",
            "min_size",
            *(("score_threshold",) if self.score_threshold else ()),
        )
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)


class RPNStage(Stage):
    """A region proposal network: objectness and a box for every anchor.

    ``head(features)`` gives lists of logits (B, N_l, 1) and deltas (B, N_l, 4), one for each level;
    ``anchors(features, images)`` (N, 4) in the same order; ``matcher(anchors, targets)`` an Assignment, from which
    ``sampler`` chooses what ``criterion(logits, deltas, labels, delta_targets, weights)`` judges; ``postprocess`` makes
    proposals at inference, ``training_postprocess`` those that the next stage learns on (default: the same).

    >>> from detkit.detectors import faster_rcnn
    >>> type(faster_rcnn(num_classes=2).rpn).__name__
    'RPNStage'
    """

    def __init__(
        self,
        *,
        head: nn.Module,
        anchors: nn.Module,
        matcher: nn.Module,
        sampler: BalancedSampler,
        coder: DeltaCoder,
        criterion: nn.Module,
        postprocess: ProposalPostprocess,
        training_postprocess: ProposalPostprocess | None = None,
    ) -> None:
        super().__init__()
        self.head, self.anchors, self.matcher, self.sampler = head, anchors, matcher, sampler
        self.coder, self.criterion, self.postprocess = coder, criterion, postprocess
        self.training_postprocess = postprocess if training_postprocess is None else training_postprocess

    def forward(
        self, features: list[Tensor], images: Images, detections: Detections | None, targets: Targets | None = None
    ) -> RPNOutputs:
        """Logits and deltas for every anchor; the same with targets as without."""
        logits, deltas = self.head(features)
        counts = [level.shape[1] for level in logits]
        return RPNOutputs(torch.cat(logits, 1), torch.cat(deltas, 1), self.anchors(features, images), counts)

    def loss(self, outputs: RPNOutputs, targets: Targets) -> dict[str, Tensor]:
        """The criterion's losses over the sampled anchors."""
        assignment = self.matcher(outputs.anchors, targets)
        rows, valid = sampled_rows(self.sampler(assignment.matched), assignment.matched, self.sampler.count)
        sampled = Assignment(*(column.gather(1, rows) for column in assignment))
        assigned = gather_assigned(sampled, targets)
        return self.criterion(
            _rows(outputs.logits, rows),
            _rows(outputs.deltas, rows),
            torch.where(valid, sampled.matched, IGNORED),  # an object of any class
            self.coder.encode(assigned.boxes, outputs.anchors[rows]),
            None if targets.weights is None else assigned.weights,
        )

    def detections(self, outputs: RPNOutputs, images: Images) -> Detections:
        """Proposals."""
        return self.postprocess(outputs, self.coder, images.sizes)

    def handover(self, outputs: RPNOutputs, images: Images, targets: Targets) -> Detections:
        """Proposals to learn on; usually more."""
        return self.training_postprocess(outputs, self.coder, images.sizes)


def best_of_levels(
    scores: Float[Tensor, "B N"], counts: Sequence[Any], most: int
) -> tuple[Int[Tensor, "B K"], Int[Tensor, " K"], Bool[Tensor, "B K"]]:
    """The ``most`` highest scores of each level, whose lengths ``counts`` add up to N: where they are, and the level.

    Returns indices (B, K) into N, the level (K,) of each column, and which entries are valid: NaN and -inf are not.
    Ties go to the lower index. Where a length is a symbol of export, K counts the whole of ``most`` for it.

    >>> best_of_levels(torch.tensor([[0.1, 0.9, 0.5, 0.7]]), [3, 1], 2)
    (tensor([[1, 2, 3]]), tensor([0, 0, 1]), tensor([[True, True, True]]))
    """
    rows, levels, valid, start = [], [], [], 0
    for level, length in enumerate(counts):
        own = scores[:, start : start + length].float().nan_to_num(-torch.inf, torch.inf, -torch.inf)
        own = F.pad(own, (0, most), value=-torch.inf) if isinstance(length, torch.SymInt) else own
        best = stable_topk(own, most)
        valid.append(own.gather(1, best) > -torch.inf)
        rows.append(torch.where(valid[-1], best, 0) + start)
        levels.append(best.new_full((best.shape[1],), level))
        start += length
    return torch.cat(rows, 1), torch.cat(levels), torch.cat(valid, 1)


def _rows(values: Float[Tensor, "B N Q"], rows: Int[Tensor, "B K"]) -> Float[Tensor, "B K Q"]:
    return values.gather(1, rows[..., None].expand(-1, -1, values.shape[2]))
