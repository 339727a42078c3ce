"""The first of two stages: which anchors hold an object of any class. Its detections are the next stage's proposals."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from detkit._door import door
from detkit._inputs import promote
from detkit._ranges import Count, Fraction, NotNegative
from detkit._ranking import stable_topk
from detkit.anchors import BalancedSampler, gather_assigned
from detkit.anchors.sample import sampled_rows
from detkit.boxes import clip_boxes_to_image, nms_padded
from detkit.detectors.dense import DenseOutputs, assign, check_call, check_parts, predict
from detkit.detectors.detector import Stage
from detkit.detectors.levelwise import check_levels
from detkit.losses import DenseCriterion
from detkit.structures import IGNORED, Anchors, Assignment, DensePredictions, Detections, Images, Targets, take_rows


class ProposalPostprocess(nn.Module):
    """Turn objectness into proposals: keep the best of each level, suppress within the level, keep the best of all.

    The best ``candidates_per_level`` anchors of each level are decoded. Boxes with a side below ``min_size`` pixels
    after clipping, or a score below ``score_threshold``, are dropped. If two of a level overlap with IoU strictly above
    ``iou_threshold``, the lower-scoring one is suppressed; at most ``max_proposals`` remain. Defaults are
    torchvision's. Source: Ren et al. 2015, section 3.3; Lin et al. 2017, "Feature Pyramid Networks", section 4.1.
    Raises ValueError for a threshold outside [0, 1] and counts below 1.

    >>> ProposalPostprocess(max_proposals=300)
    ProposalPostprocess(candidates_per_level=1000, max_proposals=300, iou_threshold=0.7, min_size=0.001)
    """

    @door
    def __init__(
        self,
        *,
        candidates_per_level: Count = 1000,
        max_proposals: Count = 1000,
        iou_threshold: Fraction = 0.7,
        min_size: NotNegative = 1e-3,
        score_threshold: Fraction = 0.0,
    ) -> None:
        super().__init__()
        self.candidates_per_level, self.max_proposals = candidates_per_level, max_proposals
        self.iou_threshold, self.min_size, self.score_threshold = iou_threshold, min_size, score_threshold

    @door
    @torch.no_grad()
    def forward(
        self,
        scores: Float[Tensor, "B N 1"],
        boxes: Float[Tensor, "B N 4"],
        sizes: Shaped[Tensor, "B 2"],
        counts: Sequence[Any] | None = None,
    ) -> Detections:
        """Proposals of B images, clipped to ``sizes`` (B, 2), best first, all of label 0; padding rows hold zeros.

        ``counts``, the anchors per level, add up to N; without them there is one level. NaN scores are left out.
        Raises ValueError for scores of several classes, and if the numbers of anchors, boxes and scores differ.
        """
        counts = (scores.shape[1],) if counts is None else counts
        if scores.shape[2] != 1:
            raise ValueError(f"ProposalPostprocess: scores have shape {tuple(scores.shape)}; allowed is (B, N, 1)")
        check_levels("ProposalPostprocess", scores, boxes, counts)
        scores, valid = scores[..., 0], scores[..., 0] > -torch.inf
        if any(isinstance(count, torch.SymInt) or count > self.candidates_per_level for count in counts):
            rows, counts, valid = best_of_levels(scores, counts, self.candidates_per_level)
            scores, boxes = scores.gather(1, rows), take_rows(boxes, rows)
        levels = torch.cat([scores.new_full((count,), level, dtype=torch.long) for level, count in enumerate(counts)])
        finite = torch.isfinite(boxes).all(-1)  # clipping would make infinite boxes finite
        boxes = clip_boxes_to_image(boxes, sizes)
        valid &= finite & (boxes[..., 2:] - boxes[..., :2] >= self.min_size).all(-1) & (scores >= self.score_threshold)
        kept, valid = nms_padded(
            boxes,
            scores,
            self.iou_threshold,
            groups=levels.expand(scores.shape),
            valid=valid,
            max_detections=self.max_proposals,
        )
        return Detections.padded(take_rows(boxes, kept), scores.gather(1, kept), torch.zeros_like(kept), valid)

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

    Its parts are those of a :class:`~detkit.detectors.DenseStage`, with one logit per anchor, or several for a
    criterion with background, of which the first is the object's; ``sampler`` chooses which of the assigned anchors
    enter the ``criterion``, from each level by itself where the criterion says ``levels_apart``. A head with a method
    ``at(features, rows)`` that :attr:`~detkit.heads.RPNHead.is_local` learns from these alone: faster, with less kept.
    ``postprocess`` makes the proposals at inference, ``training_postprocess`` those that the next stage trains on
    (default: the same). Raises ValueError for parts that do not fit each other.

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
        coder: nn.Module,
        criterion: DenseCriterion,
        postprocess: ProposalPostprocess,
        training_postprocess: ProposalPostprocess | None = None,
    ) -> None:
        super().__init__()
        self.head, self.anchors, self.matcher, self.sampler = head, anchors, matcher, sampler
        self.coder, self.criterion, self.postprocess = coder, criterion, postprocess
        self.training_postprocess = postprocess if training_postprocess is None else training_postprocess
        check_parts(self)
        _check_proposals(self)

    @door
    def forward(
        self, features: list[Tensor], images: Images, detections: Detections | None, targets: Targets | None = None
    ) -> DenseOutputs:
        """Logits and deltas for every anchor; targets make no difference.

        Raises ValueError for a head with logits of more than one class for each anchor.
        """
        apart = targets is not None and getattr(self.head, "is_local", False)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not apart):
            outputs = predict(self, features, images)
        outputs = outputs._replace(features=features) if apart else outputs
        shape, background = tuple(outputs.predictions.logits.shape), self.criterion.has_background
        if self.criterion.num_classes(outputs.predictions) != 1 or (shape[2] > 1) != background:
            allowed = "those of one class, and of background behind it" if background else "(B, N, 1)"
            raise ValueError(f"RPNStage: head is a {type(self.head).__name__}, logits {shape}; allowed is {allowed}")
        return outputs

    @door
    def loss(self, outputs: DenseOutputs, targets: Targets) -> dict[str, Tensor]:
        """The criterion's losses over the sampled anchors."""
        predictions, anchors, features = outputs
        targets = targets._replace(labels=torch.zeros_like(targets.labels))  # objects are all of one class
        assignment = assign(self, outputs, targets)
        rows, valid, counts = self._sampled(assignment.matched, anchors.counts)
        sampled = Assignment(*(column.gather(1, rows) for column in assignment[:2]))
        assigned = gather_assigned(sampled, targets)
        if features is None:
            chosen = DensePredictions(take_rows(predictions.logits, rows), take_rows(predictions.deltas, rows))
        else:
            chosen = cast(Any, self.head).at(features, rows)
        return self.criterion(
            chosen,
            assigned._replace(labels=torch.where(valid, assigned.labels, IGNORED)),
            Anchors(anchors.boxes[rows], anchors.strides[rows], counts),
            self.coder,
        )

    @door
    def detections(self, outputs: DenseOutputs, images: Images) -> Detections:
        """Proposals."""
        return self._proposals(outputs, images, self.postprocess)

    @door
    def handover(self, outputs: DenseOutputs, images: Images, targets: Targets) -> Detections:
        """Proposals to train on; usually more than at inference."""
        return self._proposals(outputs, images, self.training_postprocess)

    def _sampled(
        self, matched: Int[Tensor, "B N"], counts: Sequence[Any]
    ) -> tuple[Int[Tensor, "B K"], Bool[Tensor, "B K"], tuple[int, ...]]:
        """Which anchors enter the criterion, padded, which of these are no padding, and how many are of each level."""
        rows, valid, start = [], [], 0
        for labels in matched.split(list(counts), dim=1) if self.criterion.levels_apart else (matched,):
            own, real = sampled_rows(self.sampler(labels), labels, self.sampler.most)
            rows.append(own + start)
            valid.append(real)
            start += labels.shape[1]
        return torch.cat(rows, 1), torch.cat(valid, 1), tuple(part.shape[1] for part in rows)

    @torch.no_grad()
    def _proposals(self, outputs: DenseOutputs, images: Images, postprocess: ProposalPostprocess) -> Detections:
        """Anchors are chosen by their log-odds, which tie less often than scores, and only the chosen ones are
        decoded."""
        (logits, deltas, *_), anchors, _ = outputs
        odds = logits[..., 0]
        if self.criterion.has_background:
            odds = promote(odds) - promote(logits[..., 1:]).logsumexp(-1)
        rows, counts, valid = best_of_levels(odds, anchors.counts, postprocess.candidates_per_level)
        chosen = Anchors(anchors.boxes[rows], anchors.strides[rows], counts)
        boxes = self.coder.decode(take_rows(deltas, rows), chosen)  # pyright: ignore[reportCallIssue]
        scores = torch.where(valid[..., None], odds.gather(1, rows)[..., None].to(boxes).sigmoid(), torch.nan)
        return postprocess(scores, boxes, images.sizes, counts)


def _check_proposals(stage: RPNStage) -> None:
    """Raise ValueError for parts that fit a DenseStage, but no RPNStage."""
    if stage.criterion.reads_quality:
        raise ValueError(
            f"RPNStage: {type(stage.criterion).__name__} reads a quality, which proposals are not ranked by; give "
            "RPNLoss, or another criterion of one logit"
        )
    if getattr(stage.head, "embedding_head", None) is not None:
        raise ValueError(
            "RPNStage: the head has an embedding_head, which would never learn: proposals carry no embeddings; take it "
            "away, and give an EmbeddingStage behind the boxes a pool"
        )
    check_call("RPNStage", "sampler", stage.sampler, "labels")
    if not hasattr(stage.sampler, "most"):
        raise ValueError(
            f"RPNStage: sampler is a {type(stage.sampler).__name__}, which does not say how many it samples at most; "
            "give a BalancedSampler, or a sampler with `most`"
        )
    for name in ("postprocess", "training_postprocess"):
        part = getattr(stage, name)
        check_call("RPNStage", name, part, "scores, boxes, sizes, counts")
        if not hasattr(part, "candidates_per_level"):
            raise ValueError(
                f"RPNStage: {name} is a {type(part).__name__}, which has no candidates_per_level; give a "
                "ProposalPostprocess"
            )


def best_of_levels(
    scores: Float[Tensor, "B N"], counts: Sequence[Any], most: int
) -> tuple[Int[Tensor, "B K"], tuple[int, ...], Bool[Tensor, "B K"]]:
    """Indices of the ``most`` highest scores of each level; ``counts``, the lengths of the levels, add up to N.

    Returns indices (B, K) into N, the number of indices per level, and which are valid: NaN and -inf scores are not.
    Ties go to the lower index; a level no longer than ``most`` is taken whole and keeps its order. A level whose length
    is symbolic in export always contributes ``most`` to K.

    >>> best_of_levels(torch.tensor([[0.1, 0.9, 0.5, 0.7]]), [3, 1], 2)
    (tensor([[1, 2, 3]]), (2, 1), tensor([[True, True, True]]))
    """
    rows, valid, start = [], [], 0
    for length in counts:
        own = scores[:, start : start + length].float().nan_to_num(-torch.inf, torch.inf, -torch.inf)
        symbolic = isinstance(length, torch.SymInt)
        if symbolic or length > most:
            own = F.pad(own, (0, most), value=-torch.inf) if symbolic else own
            best = stable_topk(own, most)
        else:
            best = torch.arange(length, device=own.device).expand(own.shape)
        valid.append(own.gather(1, best) > -torch.inf)
        rows.append(torch.where(valid[-1], best, 0) + start)
        start += length
    return torch.cat(rows, 1), tuple(part.shape[1] for part in rows), torch.cat(valid, 1)
