"""The stage of FCOS: classes, distances and centerness for every point of the feature maps, at once."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from detkit.anchors import gather_assigned
from detkit.boxes import DistanceCoder
from detkit.detectors.dense import check_objects
from detkit.detectors.detector import Stage
from detkit.detectors.levelwise import LevelwisePostprocess
from detkit.losses.fcos import FCOSLoss
from detkit.structures import Detections, Images, Targets


class FCOSOutputs(NamedTuple):
    """Predictions for every point, its anchor (a square of one stride around it), and how many each level has."""

    logits: Float[Tensor, "B N C"]
    distances: Float[Tensor, "B N 4"]
    center_logits: Float[Tensor, "B N"]
    anchors: Float[Tensor, "N 4"]
    counts: Sequence[Any]


class FCOSStage(Stage):
    """Wires heads, points, matcher, coder, loss and postprocess into FCOS.

    ``class_head`` maps the list of features to logits (B, N, C), ``box_head`` to distances (B, N, 4) and centerness
    logits (B, N); ``anchors(features, images)`` gives one square (N, 4) for each cell, in the same order;
    ``matcher(anchors, targets)`` an Assignment; ``coder`` translates boxes to distances and back.

    >>> from detkit.detectors.recipes.fcos import small_fcos
    >>> type(small_fcos(num_classes=2).dense).__name__
    'FCOSStage'
    """

    def __init__(
        self,
        *,
        class_head: nn.Module,
        box_head: nn.Module,
        anchors: nn.Module,
        matcher: nn.Module,
        coder: DistanceCoder,
        criterion: FCOSLoss,
        postprocess: LevelwisePostprocess,
    ) -> None:
        super().__init__()
        self.class_head, self.box_head, self.anchors = class_head, box_head, anchors
        self.matcher, self.coder, self.criterion, self.postprocess = matcher, coder, criterion, postprocess

    def forward(
        self, features: list[Tensor], images: Images, detections: Detections | None, targets: Targets | None = None
    ) -> FCOSOutputs:
        """Logits, distances and centerness for every point; the same with targets as without."""
        counts = [level.shape[-2] * level.shape[-1] for level in features]
        distances, center_logits = self.box_head(features)
        return FCOSOutputs(self.class_head(features), distances, center_logits, self.anchors(features, images), counts)

    def loss(self, outputs: FCOSOutputs, targets: Targets) -> dict[str, Tensor]:
        """The criterion's losses against the targets that the matcher gives the points.

        Raises ValueError for an object whose label is no class (on accelerators with ``DETKIT_CHECKS=full``).
        """
        check_objects("FCOSStage", targets, outputs.logits.shape[-1])
        assigned = gather_assigned(self.matcher(outputs.anchors, targets), targets)
        return self.criterion(
            outputs.logits,
            outputs.distances,
            outputs.center_logits,
            assigned.labels,
            self.coder.encode(assigned.boxes, outputs.anchors),
            None if targets.weights is None else assigned.weights,
        )

    def detections(self, outputs: FCOSOutputs, images: Images) -> Detections:
        """Decoded, thresholded and suppressed boxes."""
        boxes = self.coder.decode(outputs.distances, outputs.anchors)
        scores = self.criterion.scores(outputs.logits, outputs.center_logits)
        return self.postprocess(scores, boxes, images.sizes, counts=outputs.counts)
