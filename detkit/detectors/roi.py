"""The second stage of a two-stage detector: it classifies each proposal and refines its box."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from detkit._door import door
from detkit._inputs import promote
from detkit._ranking import stable_topk
from detkit.anchors import BalancedSampler, gather_assigned
from detkit.anchors.assigned import Assigned
from detkit.anchors.sample import sampled_rows
from detkit.boxes import DeltaCoder
from detkit.detectors.dense import check_objects
from detkit.detectors.detector import Stage
from detkit.detectors.postprocess import Postprocess
from detkit.losses import DenseCriterion
from detkit.structures import IGNORED, Assignment, DensePredictions, Detections, Images, Targets, take_rows

Result = TypeVar("Result", Tensor, tuple[Tensor, ...])


class BoxOutputs(NamedTuple):
    """Predictions for every pooled box; in training, also the targets that each box learns."""

    logits: Float[Tensor, "B K classes"]
    deltas: Float[Tensor, "B K C 4"]
    boxes: Float[Tensor, "B K 4"]
    valid: Bool[Tensor, "B K"]
    matched: Int[Tensor, "B K"] | None = None
    assigned: Assigned | None = None


class BoxStage(Stage):
    """Fast R-CNN: pools each proposal, predicts its class, and refines its box.

    ``pool(features, boxes, rows)`` pools regions (M, D, S, S) as :class:`~detkit.boxes.PyramidRoIAlign` does;
    ``head`` maps them to logits (M, C + 1) and deltas (M, C or 1, 4). In training the ground-truth boxes are added to
    the proposals, ``matcher`` assigns them, ``sampler`` samples the ones to train on, and the next stage gets the
    sampled positives unrefined. Proposals come from the previous stage or from the caller of the detector.

    >>> from detkit.detectors import faster_rcnn
    >>> type(faster_rcnn(num_classes=2).box).__name__
    'BoxStage'
    """

    def __init__(
        self,
        *,
        pool: nn.Module,
        head: nn.Module,
        matcher: nn.Module,
        sampler: BalancedSampler,
        coder: DeltaCoder,
        criterion: DenseCriterion,
        postprocess: Postprocess,
        branch: str | None = None,
    ) -> None:
        super().__init__(branch=branch)
        self.pool, self.head, self.matcher, self.sampler = pool, head, matcher, sampler
        self.coder, self.criterion, self.postprocess = coder, criterion, postprocess
        if getattr(matcher, "gives_gray", False) or getattr(sampler, "gray_per_other", 0):
            raise ValueError(
                f"BoxStage: matcher {type(matcher).__name__} or sampler {sampler} knows gray boxes; allowed are those "
                "without: only an RPNStage has a criterion for gray"
            )

    @door
    def forward(
        self, features: list[Tensor], images: Images, detections: Detections | None, targets: Targets | None = None
    ) -> BoxOutputs:
        """Logits and deltas for every proposal; with targets, for the sampled proposals."""
        if detections is None:
            raise ValueError("BoxStage: got no proposals; put a stage that makes them before it, or give proposals=")
        boxes, valid, matched, assigned = detections.boxes, detections.valid, None, None
        if targets is not None:
            boxes, valid, matched, assigned = self._sample(detections, targets)
        logits, deltas = on_valid_rows(
            lambda rows: self.head(self.pool(features, boxes, rows)), valid, always=learns_from_rows(self.head)
        )
        return BoxOutputs(logits, deltas, boxes, valid, matched, assigned)

    @door
    def loss(self, outputs: BoxOutputs, targets: Targets) -> dict[str, Tensor]:
        """The criterion's losses over the sampled proposals; each box trains the deltas of its own class.

        Raises ValueError for an object whose label is no class (on accelerators with ``DETKIT_CHECKS=full``).
        """
        assert outputs.assigned is not None
        labels, deltas = outputs.assigned.labels, outputs.deltas
        check_objects("BoxStage", targets, self.criterion.num_classes(_predictions(outputs)))
        own = torch.zeros_like(labels) if deltas.shape[2] == 1 else labels.clamp(min=0)
        deltas = deltas.gather(2, own[..., None, None].expand(-1, -1, 1, 4)).squeeze(2)
        return self.criterion(DensePredictions(outputs.logits, deltas), outputs.assigned, outputs.boxes, self.coder)

    @door
    def detections(self, outputs: BoxOutputs, images: Images) -> Detections:
        """The boxes, decoded, thresholded and suppressed."""
        scores = torch.where(outputs.valid[..., None], self.criterion.scores(_predictions(outputs)), 0)
        deltas, boxes = outputs.deltas, outputs.boxes
        if scores.device.type == "cpu" and not torch.compiler.is_compiling():
            rows = self._promising(scores)
            scores, boxes, deltas = (take_rows(values, rows) for values in (scores, boxes, deltas))
        boxes = self.coder.decode(deltas, boxes[:, :, None])
        boxes = boxes.squeeze(2) if boxes.shape[2] == 1 else boxes
        return self.postprocess(scores, boxes, images.sizes)

    @door
    def handover(self, outputs: BoxOutputs, images: Images, targets: Targets) -> Detections:
        """The sampled positives, with their boxes as proposed."""
        assert outputs.matched is not None
        assert outputs.assigned is not None
        most = min(max(self.sampler.most_positives, 1), outputs.boxes.shape[1])
        labels, matched = outputs.assigned.labels[:, :most], outputs.matched[:, :most]
        positive = labels >= 0
        return Detections(
            boxes=outputs.boxes[:, :most],
            scores=positive.to(outputs.boxes),
            labels=labels.clamp(min=0),
            valid=positive,
            matched=matched.clamp(min=0),
        )

    def _promising(self, scores: Float[Tensor, "B K C"]) -> Int[Tensor, "B L"]:
        """Rows with a score above the threshold, in their order; decoding the others would be most of the work."""
        likely = (scores > self.postprocess.score_threshold).any(2)
        least = -(-self.postprocess.max_detections // scores.shape[2])  # rows that leave the padded length as it is
        return stable_topk(likely.float(), max([least, *likely.sum(1).tolist()]))

    @torch.no_grad()
    def _sample(self, proposals: Detections, targets: Targets) -> tuple[Tensor, Tensor, Tensor, Assigned]:
        """Sampled proposals and objects, positives first: boxes, valid rows, matched objects, training targets."""
        given = promote(proposals.boxes)
        boxes = torch.cat((given, targets.boxes.to(given)), dim=1)
        valid = torch.cat((proposals.valid, targets.objects), dim=1)
        assignment = self.matcher(boxes, targets)
        candidates = torch.where(valid, assignment.matched, IGNORED)
        rows, valid = sampled_rows(self.sampler(candidates), candidates, self.sampler.count)
        matched = torch.where(valid, candidates.gather(1, rows), IGNORED)
        boxes = torch.where(valid[..., None], take_rows(boxes, rows), 0)
        assigned = gather_assigned(Assignment(matched, assignment.quality.gather(1, rows)), targets)
        return boxes, valid, matched, assigned


def _predictions(outputs: BoxOutputs) -> DensePredictions:
    """Predictions in the form that a criterion reads, with the deltas of all classes in one row."""
    return DensePredictions(outputs.logits, outputs.deltas.flatten(2))


def on_valid_rows(
    run: Callable[[Int[Tensor, " M"] | None], Result], valid: Bool[Tensor, "B K"], *, always: bool = False
) -> Result:
    """The results of ``run`` for each of B * K rows, as (B, K, ...), skipping padding where that is free.

    ``run(rows)`` returns (M, ...) for the flat ``rows`` (M,), ``run(None)`` for all rows; a tuple of tensors works too.
    On a CPU only valid rows are run, and the others are zeros. An accelerator would have to wait for their number, and
    compiled code does not know it: there all rows are run, unless ``always``, and invalid rows hold arbitrary values.
    So training with a batch norm in the head, which needs ``always``, does not compile as a whole: freeze the batch
    norm or use GroupNorm.

    >>> on_valid_rows(lambda rows: torch.ones(2 if rows is None else len(rows)), torch.tensor([[True, False]]))
    tensor([[1., 0.]])
    """
    choose = always or (valid.device.type == "cpu" and not torch.compiler.is_compiling())
    if not choose or bool(valid.all()):
        return _each(run(None), lambda values: values.unflatten(0, tuple(valid.shape)))
    rows = valid.flatten().nonzero().squeeze(1)

    def spread(values: Tensor) -> Tensor:
        whole = values.new_zeros((valid.numel(), *values.shape[1:]))
        return whole.index_copy(0, rows, values).unflatten(0, tuple(valid.shape))

    return _each(run(rows), spread)


def learns_from_rows(head: nn.Module) -> bool:
    """Whether ``head`` contains a batch norm in training mode, whose statistics padding rows would distort.

    >>> learns_from_rows(nn.Sequential(nn.BatchNorm2d(3))), learns_from_rows(nn.GroupNorm(1, 3))
    (True, False)
    """
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training for part in head.modules())


def _each(values: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return tuple(map(change, values)) if isinstance(values, tuple) else change(values)
