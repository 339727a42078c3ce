"""The stage that says of each region which classes it shows, any number of them; its last hidden layer is a code."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from detkit._door import door
from detkit._inputs import as_boxes, promote
from detkit._ranges import Count, Fraction, NotNegative
from detkit.anchors import gather_assigned
from detkit.boxes import box_iou
from detkit.detectors.detector import Stage
from detkit.detectors.matched_boxes import matched_objects, weighted_mean
from detkit.detectors.roi import learns_from_rows, on_valid_rows
from detkit.structures import Detections, Images, Targets, take_rows
from detkit.structures.labels import check_labels

_CROSS_ENTROPY = partial(F.binary_cross_entropy_with_logits, reduction="none")


class LabelSetOutputs(NamedTuple):
    """The neural code and the class logits of each region, and the regions; in training, what each learns."""

    codes: Float[Tensor, "B K D"]
    logits: Float[Tensor, "B K C"]
    detections: Detections
    label_sets: Bool[Tensor, "B K C"] | None = None


class LabelSetStage(Stage):
    """Classifies each proposal into any number of classes, without background, and gives it a neural code.

    ``pool(features, boxes, rows)`` pools regions as :class:`~detkit.boxes.PyramidRoIAlign` and
    :class:`~detkit.boxes.SpatialPyramidPool` do; ``head`` maps them to codes (M, D), as
    :class:`~detkit.heads.EmbeddingHead` does; ``classifier`` maps codes to logits (M, C). ``postprocess(scores, boxes,
    sizes)`` with ``rows=True`` picks the detections, which carry ``class_scores``, the sigmoid of all logits, and the
    codes as ``embeddings``.

    A proposal learns the classes of all objects that it overlaps with IoU strictly above ``iou_threshold``; one without
    such an object teaches nothing. ``criterion(logits, label_sets)`` gives costs (M, C), by default torch's binary
    cross-entropy. The loss is ``weight`` times their mean over classes and learning proposals of all processes, each
    weighted by the object that it overlaps most (the sum counts as 1 at least). The next stage learns on the same
    proposals, each ``matched`` to the object that it overlaps most. Raises ValueError for a postprocess without rows.
    Source: the multi-label patches of neural codes; Babenko et al. 2014, "Neural Codes for Image Retrieval".

    >>> from detkit.boxes import PyramidRoIAlign
    >>> from detkit.detectors import Postprocess
    >>> from detkit.heads import EmbeddingHead
    >>> head = EmbeddingHead(8 * 3 * 3, 16, rectified=True)
    >>> pool, postprocess = PyramidRoIAlign(3, strides=(4,)), Postprocess(rows=True)
    >>> stage = LabelSetStage(pool, head, nn.Linear(16, 5), postprocess=postprocess)
    >>> images, boxes = Images(torch.zeros(1, 3, 64, 64), torch.tensor([[64, 64]])), torch.tensor([[[8.0, 8, 40, 50]]])
    >>> found = Detections(boxes, torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int64), torch.tensor([[True]]))
    >>> found = stage.detections(stage([torch.zeros(1, 8, 16, 16)], images, found), images)
    >>> found.class_scores.shape, found.embeddings.shape
    (torch.Size([1, 5, 5]), torch.Size([1, 5, 16]))
    """

    @door
    def __init__(
        self,
        pool: nn.Module,
        head: nn.Module,
        classifier: nn.Module,
        *,
        postprocess: nn.Module,
        criterion: Callable[[Tensor, Tensor], Tensor] = _CROSS_ENTROPY,
        iou_threshold: Fraction = 0.5,
        weight: NotNegative = 1.0,
        branch: str | None = None,
    ) -> None:
        super().__init__(branch=branch)
        if not getattr(postprocess, "rows", False):
            raise ValueError("LabelSetStage: postprocess does not say which proposal each detection was: rows=True")
        self.pool, self.head, self.classifier, self.postprocess = pool, head, classifier, postprocess
        self.criterion, self.iou_threshold, self.weight = criterion, iou_threshold, weight

    @door
    def forward(
        self, features: list[Tensor], images: Images, detections: Detections | None, targets: Targets | None = None
    ) -> LabelSetOutputs:
        """Codes and logits of all proposals; those that learn nothing are left out if there are targets."""
        if detections is None:
            raise ValueError("LabelSetStage: got no proposals; put a stage that makes them before it, or proposals=")
        if targets is None:
            return LabelSetOutputs(*self._described(features, detections), detections)
        overlaps = overlaps_of(detections.boxes, targets, self.iou_threshold)
        best, matched = overlaps.max(2)
        detections = detections._replace(valid=detections.valid & (best > 0), matched=matched)
        codes, logits = self._described(features, detections)
        return LabelSetOutputs(codes, logits, detections, label_sets_of(overlaps > 0, targets, logits.shape[2]))

    @door
    def loss(self, outputs: LabelSetOutputs, targets: Targets) -> dict[str, Tensor]:
        """ "label_sets": the mean cost; without a proposal that learns 0, with a gradient of zeros."""
        assert outputs.label_sets is not None
        rows = outputs.detections.valid
        logits = torch.where(rows[..., None], outputs.logits, 0)
        costs = self.criterion(logits.flatten(0, 1), outputs.label_sets.flatten(0, 1).to(logits)).mean(1)
        weights = gather_assigned(matched_objects(outputs.detections), targets).weights
        return {"label_sets": self.weight * weighted_mean(costs.view_as(rows), weights, rows)}

    @door
    def detections(self, outputs: LabelSetOutputs, images: Images) -> Detections:
        """The detections with ``class_scores`` (B, K, C) and ``embeddings`` (B, K, D)."""
        scores = torch.where(outputs.detections.valid[..., None], outputs.logits.sigmoid(), 0)
        found = self.postprocess(scores, outputs.detections.boxes, images.sizes)
        kept = found.valid[..., None]
        return found._replace(
            class_scores=torch.where(kept, take_rows(scores, found.rows), 0),
            embeddings=torch.where(kept, take_rows(outputs.codes, found.rows), 0),
        )

    @door
    def handover(self, outputs: LabelSetOutputs, images: Images, targets: Targets) -> Detections:
        """The proposals that learned, with their codes."""
        return outputs.detections._replace(embeddings=outputs.codes)

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"iou_threshold={self.iou_threshold}, weight={self.weight}"

    def _described(self, features: list[Tensor], detections: Detections) -> tuple[Tensor, Tensor]:
        """Codes and logits of all valid rows."""

        def run(rows: Tensor | None) -> tuple[Tensor, Tensor]:
            codes = promote(self.head(self.pool(features, detections.boxes, rows)))
            return codes, promote(self.classifier(codes))

        always = learns_from_rows(self.head) or learns_from_rows(self.classifier)
        codes, logits = on_valid_rows(run, detections.valid, always=always)
        return codes, logits


@door
def overlaps_of(
    boxes: Shaped[Tensor, "B K 4"], targets: Targets, iou_threshold: Fraction = 0.5
) -> Float[Tensor, "B K T"]:
    """The IoU of each box with each object where it lies strictly above the threshold, otherwise 0.

    Crowds and padding are no objects.

    >>> from detkit.structures import pad_targets
    >>> targets = pad_targets([{"boxes": torch.tensor([[0.0, 0, 8, 8]]), "labels": torch.tensor([1])}])
    >>> overlaps_of(torch.tensor([[[0.0, 0, 8, 4], [0, 0, 8, 6]]]), targets)
    tensor([[[0.0000],
             [0.7500]]])
    """
    overlaps = box_iou(as_boxes(boxes, function="overlaps_of"), targets.boxes)
    return torch.where((overlaps > iou_threshold) & targets.objects[:, None], overlaps, 0)


@door
def label_sets_of(covered: Bool[Tensor, "B K T"], targets: Targets, num_classes: Count) -> Bool[Tensor, "B K C"]:
    """The classes of all objects that each box covers: their ``label_sets``, or without these their labels.

    Raises ValueError for labels outside 0..num_classes-1 (on accelerators with ``DETKIT_CHECKS=full``) and for label
    sets of another width.

    >>> from detkit.structures import pad_targets
    >>> targets = pad_targets([{"boxes": torch.tensor([[0.0, 0, 8, 8]] * 2), "labels": torch.tensor([2, 0])}])
    >>> label_sets_of(torch.tensor([[[True, True], [False, True]]]), targets, 3)
    tensor([[[ True, False,  True],
             [ True, False, False]]])
    """
    return (covered.float() @ _label_sets(targets, num_classes)) > 0


def _label_sets(targets: Targets, num_classes: Count) -> Float[Tensor, "B T C"]:
    if targets.label_sets is None:
        labels: Int[Tensor, "B T"] = torch.where(targets.objects, targets.labels, 0)
        check_labels(labels, num_classes, lowest=0, function="LabelSetStage", name="labels of targets")
        return F.one_hot(labels.clamp(0, num_classes - 1), num_classes).float()
    if targets.label_sets.shape[2] != num_classes:
        raise ValueError(
            f"LabelSetStage: label_sets of targets have {targets.label_sets.shape[2]} classes; the classifier has "
            f"{num_classes}"
        )
    return (targets.label_sets > 0).float()
