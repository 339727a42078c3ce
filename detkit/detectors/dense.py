"""The stage of all one-shot detectors: it predicts classes and boxes for every anchor at once."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from detkit._door import door
from detkit._inputs import on_host, takes
from detkit.anchors import BalancedSampler, gather_assigned
from detkit.anchors.sample import sampled_rows
from detkit.detectors.detector import Stage
from detkit.detectors.levelwise import LevelwisePostprocess
from detkit.detectors.postprocess import Postprocess
from detkit.detectors.set_prediction import with_embeddings
from detkit.losses import DenseCriterion
from detkit.structures import (
    Anchors,
    Assignment,
    ClaimedAssignment,
    DensePredictions,
    Detections,
    Images,
    Predictions,
    Targets,
    take_rows,
)
from detkit.structures.labels import check_labels

_SCORES_AT_ONCE = 1 << 19  # of some images on the host
_EMBEDDED = 256  # of an image, as many as queries: metric losses compare all pairs


class DenseOutputs(NamedTuple):
    """Predictions for every anchor of every image, and the anchors, which are the same for all images.

    ``features`` are there where the loss reads them again, at the few anchors that it looks at.
    """

    predictions: DensePredictions
    anchors: Anchors
    features: list[Tensor] | None = None


class DenseStage(Stage):
    """Wires head, anchors, matcher, coder, criterion and postprocess into SSD, RetinaNet, FCOS, YOLOX and their kin.

    Each kind of part has one calling convention, so any part can be swapped, also for one of your own:

    - ``head(features)`` returns :class:`~detkit.structures.DensePredictions`: logits (B, N, Q), deltas (B, N, D) and
      optionally quality (B, N); :class:`~detkit.heads.DenseHead` composes one from parts;
    - ``anchors(features, images)`` returns :class:`~detkit.structures.Anchors` in the same order;
    - ``matcher(anchors, targets, predictions)`` returns an Assignment; predictions (boxes, scores and logits, without
      gradient) are computed only for a matcher whose ``reads_predictions`` is True;
    - ``coder.encode(boxes, anchors)`` and ``coder.decode(deltas, anchors)`` translate between boxes and deltas;
    - ``criterion(predictions, assigned, anchors, coder)`` returns the losses, ``criterion.scores(predictions)`` the
      scores (B, N, C): a :class:`~detkit.losses.DenseCriterion`;
    - ``postprocess(scores, boxes, sizes, counts)`` returns Detections; ``counts`` are the numbers of anchors per level.

    Where the head predicts embeddings and the postprocess has ``rows=True``, detections carry those of their anchors;
    the next stage learns on the embeddings of positive anchors, at most 256 of an image, drawn at random.

    Raises ValueError for parts that cannot be called this way or do not fit each other, and says what to use instead.

    >>> from detkit.detectors import tiny_ssd
    >>> type(tiny_ssd(num_classes=2).dense).__name__
    'DenseStage'
    """

    def __init__(
        self,
        *,
        head: nn.Module,
        anchors: nn.Module,
        matcher: nn.Module,
        coder: nn.Module,
        criterion: DenseCriterion,
        postprocess: nn.Module,
        branch: str | None = None,
    ) -> None:
        super().__init__(branch=branch)
        self.head, self.anchors, self.matcher = head, anchors, matcher
        self.coder, self.criterion, self.postprocess = coder, criterion, postprocess
        check_parts(self)

    @door
    def forward(
        self, features: list[Tensor], images: Images, detections: Detections | None, targets: Targets | None = None
    ) -> DenseOutputs:
        """Predictions for every anchor; targets make no difference."""
        return predict(self, features, images)

    @door
    def loss(self, outputs: DenseOutputs, targets: Targets) -> dict[str, Tensor]:
        """The criterion's losses for the targets that the matcher assigns to the anchors.

        Raises ValueError for an object whose label is out of range (on accelerators with ``DETKIT_CHECKS=full``).
        """
        predictions, anchors, _ = outputs
        check_objects("DenseStage", targets, self.criterion.num_classes(predictions))
        assigned = gather_assigned(assign(self, outputs, targets), targets)
        return self.criterion(predictions, assigned, anchors, self.coder)

    @door
    def detections(self, outputs: DenseOutputs, images: Images) -> Detections:
        """Decoded, thresholded and suppressed boxes."""
        return with_embeddings(detect(self, outputs, images.sizes), outputs.predictions.embeddings)

    @door
    def handover(self, outputs: DenseOutputs, images: Images, targets: Targets) -> Detections:
        """Positive anchors with their embeddings, at most 256 of an image at random; without any, the detections."""
        predictions, anchors, _ = outputs
        if predictions.embeddings is None:
            return self.detections(outputs, images)
        matched = assign(self, outputs, targets).matched
        rows, _ = sampled_rows(BalancedSampler(_EMBEDDED, positive_fraction=1.0)(matched), matched, _EMBEDDED)
        boxes = take_rows(self.coder.decode(predictions.deltas.detach(), anchors), rows)  # pyright: ignore[reportCallIssue]
        best, labels = take_rows(self.criterion.scores(predictions).detach(), rows).max(-1)
        own = matched.gather(1, rows)
        found = Detections.padded(boxes, best, labels, own >= 0)
        return found._replace(matched=own.clamp(min=0), embeddings=take_rows(predictions.embeddings, rows))


def predict(stage: Any, features: list[Tensor], images: Images) -> DenseOutputs:
    """What the stage's head says of its anchors.

    Raises ValueError for a head that does not give DensePredictions, or gives them for another number of anchors or
    other numbers for a box than the coder decodes.

    >>> from detkit.detectors import tiny_ssd
    >>> detector, images = tiny_ssd(num_classes=2), Images(torch.zeros(1, 3, 64, 64), torch.tensor([[64, 64]]))
    >>> predict(detector.dense, detector.trunk(images.tensors), images).anchors.boxes.shape
    torch.Size([344, 4])
    """
    predictions = stage.head(features)
    if not isinstance(predictions, DensePredictions):
        raise ValueError(
            f"{type(stage).__name__}: head is a {type(stage.head).__name__}, which gives a "
            f"{type(predictions).__name__}; give one that returns DensePredictions: DenseHead(class_head, box_head)"
        )
    anchors = stage.anchors(features, images)
    if not torch.compiler.is_compiling() and predictions.logits.shape[1] != len(anchors.boxes):
        raise ValueError(
            f"{type(stage).__name__}: head predicts for {predictions.logits.shape[1]} anchors of an image and anchors "
            f"are {len(anchors.boxes)}; build the head with the anchors' per_cell"
        )
    _check_numbers(stage, predictions.deltas.shape[-1])
    return DenseOutputs(predictions, anchors)


def detect(stage: Any, outputs: DenseOutputs, sizes: Shaped[Tensor, "B 2"]) -> Detections:
    """Decoded, thresholded and suppressed boxes; on the host of a few images at a time, whose scores stay in the cache.

    Those of a postprocess of your own may have a length that depends on the batch, so it gets all images at once.

    >>> from detkit.detectors import tiny_ssd
    >>> predictions = DensePredictions(torch.zeros(2, 1, 3), torch.zeros(2, 1, 4))
    >>> outputs = DenseOutputs(predictions, Anchors.of(torch.ones(1, 4)))
    >>> detect(tiny_ssd(num_classes=2).dense, outputs, torch.tensor([[9, 9]] * 2)).scores.shape
    torch.Size([2, 2])
    """
    predictions, anchors, _ = outputs
    apart = on_host(predictions.logits) and type(stage.postprocess) in (Postprocess, LevelwisePostprocess)
    step = max(1, _SCORES_AT_ONCE // max(1, predictions.logits.shape[1:].numel())) if apart else 0
    if not 0 < step < len(sizes):
        boxes, scores = stage.coder.decode(predictions.deltas, anchors), stage.criterion.scores(predictions)
        return stage.postprocess(scores, boxes, sizes, anchors.counts)
    some = sizes.split(step)
    columns = zip(*([None] * len(some) if rows is None else rows.split(step) for rows in predictions), strict=True)
    few = (DenseOutputs(DensePredictions(*column), anchors) for column in columns)
    parts = (detect(stage, *part) for part in zip(few, some, strict=True))
    return Detections._make(None if rows[0] is None else torch.cat(rows) for rows in zip(*parts, strict=True))


@torch.no_grad()
def assign(stage: Any, outputs: DenseOutputs, targets: Targets) -> Assignment | ClaimedAssignment:
    """Run the stage's matcher on the anchors; predictions are decoded only for a matcher that reads them.

    >>> from detkit.detectors import tiny_ssd
    >>> from detkit.structures import pad_targets
    >>> stage = tiny_ssd(num_classes=2).dense
    >>> anchors = Anchors(torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([[9.0, 9]]), (1,))
    >>> outputs = DenseOutputs(DensePredictions(torch.zeros(1, 1, 3), torch.zeros(1, 1, 4)), anchors)
    >>> targets = pad_targets([{"boxes": torch.tensor([[0.0, 0, 9, 8]]), "labels": torch.tensor([1])}])
    >>> assign(stage, outputs, targets).matched
    tensor([[0]])
    """
    predictions, anchors, _ = outputs
    if not getattr(stage.matcher, "reads_predictions", False):
        return stage.matcher(anchors, targets)
    boxes = stage.coder.decode(predictions.deltas, anchors)
    seen = Predictions(boxes, stage.criterion.scores(predictions), predictions.logits)
    return stage.matcher(anchors, targets, seen)


def check_parts(stage: Any) -> None:
    """Raise ValueError if a part of a dense stage has another calling convention or does not fit another part.

    >>> from detkit.detectors import tiny_ssd
    >>> check_parts(tiny_ssd(num_classes=2).dense)
    """
    name = type(stage).__name__
    check_call(name, "head", stage.head, "features")
    check_call(name, "anchors", stage.anchors, "features, images")
    check_call(name, "matcher", stage.matcher, "anchors, targets, predictions")
    _check_matcher(name, stage.matcher)
    for method in ("encode", "decode"):
        check_call(name, "coder", stage.coder, "boxes, anchors", method=method)
    if not isinstance(stage.criterion, DenseCriterion):
        raise ValueError(
            f"{name}: criterion is a {type(stage.criterion).__name__}; give a DenseCriterion, as MultiBoxLoss, "
            "RetinaNetLoss, FCOSLoss, QualityLoss, ObjectnessLoss and YOLOLoss are"
        )
    check_call(name, "postprocess", stage.postprocess, "scores, boxes, sizes, counts")
    _check_pairs(name, stage)


def _check_matcher(name: str, matcher: Any) -> None:
    """Raise ValueError for a matcher that needs predictions and would get none."""
    reads = getattr(matcher, "reads_predictions", False)
    if not reads and not takes(getattr(matcher, "forward", matcher), "anchors", "targets"):
        raise ValueError(
            f"{name}: matcher is a {type(matcher).__name__}, which does not say that it reads predictions and cannot "
            "be called without them; give it reads_predictions = True, or the default predictions=None"
        )


def check_call(stage: str, name: str, part: Any, arguments: str, *, method: str | None = None) -> None:
    """Raise ValueError unless ``part``, a module or a function, or its ``method`` takes the ``arguments`` by position.

    >>> check_call("DenseStage", "matcher", lambda anchors, targets: None, "anchors, targets, predictions")
    Traceback (most recent call last):
    ValueError: DenseStage: matcher is a function, which is not called as matcher(anchors, targets, predictions); ...
    """
    call: Any = getattr(part, "forward", part) if method is None else getattr(part, method, None)
    if isinstance(part, type) or not takes(call, *arguments.split(", ")):
        called = name if method is None else f"{name}.{method}"
        raise ValueError(
            f"{stage}: {name} is a {type(part).__name__}, which is not called as {called}({arguments}); "
            "give a part that is"
        )


def _check_pairs(name: str, stage: Any) -> None:
    """Raise ValueError for parts that do not fit each other."""
    head, coder, criterion, matcher = (
        type(part).__name__ for part in (stage.head, stage.coder, stage.criterion, stage.matcher)
    )
    given, wanted = getattr(stage.head, "gives_quality", None), stage.criterion.reads_quality
    if given is False and wanted:
        raise ValueError(
            f"{name}: {criterion} reads a quality, which {head} does not predict; give DenseHead a quality_head"
        )
    if given is True and not wanted:
        raise ValueError(
            f"{name}: {head} predicts a quality that {criterion} does not read, so that it would never learn; take the "
            "quality_head away, or a criterion that reads it: FCOSLoss, ObjectnessLoss or YOLOLoss"
        )
    read = getattr(stage.coder, "numbers", None)
    _check_numbers(stage, getattr(stage.head, "numbers", None))
    for part in (stage.coder, stage.matcher):
        if getattr(part, "reads_cells", False) and getattr(stage.anchors, "clip", False):
            raise ValueError(
                f"{name}: {type(part).__name__} places boxes in the cells that anchors are the centers of, which "
                f"clipping moves; give {type(stage.anchors).__name__} clip=False"
            )
    distributions = read is not None and read != 4
    if stage.criterion.reads_distributions != distributions:
        raise ValueError(
            f"{name}: {criterion} and {coder} disagree on whether boxes are distributions; a DistributionCoder goes "
            "with a QualityLoss whose distribution_weight is above 0, and only with that"
        )
    if getattr(stage.matcher, "gives_gray", False) != stage.criterion.reads_gray:
        raise ValueError(
            f"{name}: {criterion} and {matcher} disagree on gray anchors; a GrayMatcher goes with "
            "HourglassLoss(gray=True), and only with that"
        )
    if getattr(stage.matcher, "reads_fractions", False):
        raise ValueError(
            f"{name}: {matcher} matches boxes as fractions of the image, as sets of queries predict them; give a "
            "matcher of anchors: ThresholdMatcher, BipartiteMatcher, ATSSMatcher, TaskAlignedMatcher, SimOTAMatcher"
        )


def _check_numbers(stage: Any, numbers: int | None) -> None:
    read = getattr(stage.coder, "numbers", None)
    if None not in (numbers, read) and numbers != read:
        head, coder = type(stage.head).__name__, type(stage.coder).__name__
        raise ValueError(
            f"{type(stage).__name__}: {head} predicts {numbers} numbers for a box and {coder} decodes {read}; give the "
            f"box head outputs={read}"
        )


def check_objects(function: str, targets: Targets, num_classes: int) -> None:
    """Raise ValueError for an object whose label is out of range: -1 would otherwise be learned as background.

    >>> from detkit.structures import pad_targets
    >>> check_objects("f", pad_targets([{"boxes": torch.ones(1, 4), "labels": torch.tensor([-1])}]), 3)
    Traceback (most recent call last):
    ValueError: f: targets.labels[0, 0]=-1 must lie in 0..2, ...
    """
    labels = torch.where(targets.objects, targets.labels, 0)
    check_labels(labels, num_classes, lowest=0, function=function, name="targets.labels")
