"""The stage of one-shot detectors: classes and boxes for every anchor, at once."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detkit.anchors import gather_assigned
from detkit.boxes import DeltaCoder
from detkit.detectors.detector import Stage
from detkit.detectors.levelwise import LevelwisePostprocess
from detkit.detectors.postprocess import Postprocess
from detkit.losses.labels import check_labels
from detkit.structures import Detections, Images, Targets


class DenseOutputs(NamedTuple):
    """Predictions for every anchor of every image, the anchors, which all images share, and the cells of each level."""

    logits: Float[Tensor, "B N classes"]
    deltas: Float[Tensor, "B N 4"]
    anchors: Float[Tensor, "N 4"]
    cells: Sequence[Any] = ()


@runtime_checkable
class DenseCriterion(Protocol):
    """A loss of :class:`DenseStage`: judges the predictions, and says what its logits mean as scores."""

    def __call__(
        self, logits: Tensor, deltas: Tensor, labels: Tensor, delta_targets: Tensor, weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Losses from logits (B, N, Q), deltas (B, N, 4), labels (B, N), delta_targets (B, N, 4), weights (B, N)."""
        ...

    def scores(self, logits: Tensor) -> Tensor:
        """Scores (B, N, C) in [0, 1] from logits (B, N, Q)."""
        ...


class DenseStage(Stage):
    """Wires heads, anchors, matcher, coder, loss and postprocess into SSD, RetinaNet and their kin.

    ``class_head`` and ``box_head`` map the list of features to (B, N, Q) and (B, N, 4); ``anchors(features, images)``
    gives (N, 4) in the same order; ``matcher(anchors, targets)`` an Assignment; ``coder`` translates boxes to deltas
    and back; ``criterion`` is a :class:`DenseCriterion`; ``postprocess(scores, boxes, sizes)`` gives Detections. A
    :class:`~detkit.detectors.LevelwisePostprocess` is also told how many anchors each level has, by
    ``anchors.per_cell``.

    >>> from detkit.detectors import tiny_ssd
    >>> type(tiny_ssd(num_classes=2).dense).__name__
    'DenseStage'
    """

    def __init__(
        self,
        *,
        class_head: nn.Module,
        box_head: nn.Module,
        anchors: nn.Module,
        matcher: nn.Module,
        coder: DeltaCoder,
        criterion: DenseCriterion,
        postprocess: Postprocess | LevelwisePostprocess,
    ) -> None:
        super().__init__()
        self.class_head, self.box_head, self.anchors = class_head, box_head, anchors
        self.matcher, self.coder, self.criterion, self.postprocess = matcher, coder, criterion, postprocess

    def forward(
        self, features: list[Tensor], images: Images, detections: Detections | None, targets: Targets | None = None
    ) -> DenseOutputs:
        """Logits and deltas for every anchor; the same with targets as without."""
        cells = [level.shape[-2] * level.shape[-1] for level in features]
        return DenseOutputs(self.class_head(features), self.box_head(features), self.anchors(features, images), cells)

    def loss(self, outputs: DenseOutputs, targets: Targets) -> dict[str, Tensor]:
        """The criterion's losses against the targets that the matcher gives the anchors.

        Raises ValueError for an object whose label is no class (on accelerators with ``DETKIT_CHECKS=full``).
        """
        check_objects("DenseStage", targets, self.criterion.scores(outputs.logits[:, :0]).shape[-1])
        assigned = gather_assigned(self.matcher(outputs.anchors, targets), targets)
        delta_targets = self.coder.encode(assigned.boxes, outputs.anchors)
        weights = None if targets.weights is None else assigned.weights
        return self.criterion(outputs.logits, outputs.deltas, assigned.labels, delta_targets, weights)

    def detections(self, outputs: DenseOutputs, images: Images) -> Detections:
        """Decoded, thresholded and suppressed boxes."""
        boxes = self.coder.decode(outputs.deltas, outputs.anchors)
        scores = self.criterion.scores(outputs.logits)
        if not isinstance(self.postprocess, LevelwisePostprocess):
            return self.postprocess(scores, boxes, images.sizes)
        per_cell: Sequence[int] = cast(Any, self.anchors).per_cell
        counts = [cells * each for cells, each in zip(outputs.cells, per_cell, strict=True)]
        return self.postprocess(scores, boxes, images.sizes, counts=counts)


def check_objects(function: str, targets: Targets, num_classes: int) -> None:
    """Raise ValueError for an object whose label is no class: -1 would else be learned as background.

    >>> from detkit.structures import pad_targets
    >>> check_objects("f", pad_targets([{"boxes": torch.ones(1, 4), "labels": torch.tensor([-1])}]), 3)
    Traceback (most recent call last):
    ValueError: f: targets.labels[0, 0]=-1 must lie in 0..2, ...
    """
    labels = torch.where(targets.valid & ~targets.ignore, targets.labels, 0)
    check_labels(labels, num_classes, lowest=0, function=function, name="targets.labels")
