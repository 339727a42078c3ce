"""The stage that classifies whole images."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from detkit._door import door
from detkit._inputs import promote
from detkit._ranges import Count, Fraction, NotNegative
from detkit._ranking import stable_topk
from detkit.detectors.detector import Stage
from detkit.losses import label_smoothed_cross_entropy, mean_count
from detkit.structures import IGNORED, Detections, Images, Targets
from detkit.structures.labels import check_labels


class ClassificationOutputs(NamedTuple):
    """Class logits of each image."""

    logits: Float[Tensor, "B C"]


class ClassificationStage(Stage):
    """Predicts the class of each image; the whole image is the box of its best classes.

    ``head(features, images)`` returns logits (B, C), as :class:`~detkit.heads.ImageHead` does. Detections are the
    ``max_detections`` best classes of each image, in the box of the image, and ``image_scores`` (B, C), the softmax of
    all classes; a stage behind this one may find them a better box: :class:`~detkit.detectors.LocalizationStage`.

    An image learns the class in ``image_labels`` (B,), -1 for none; without that entry the classes of its objects, each
    to a part in proportion to its weight. The loss is ``weight`` times the mean cross-entropy over the images that
    learn something, in all processes; an image whose objects weigh less than 1 together counts as much as they do.
    ``label_smoothing`` is the mass moved from the true class to the others. Raises ValueError for image_labels of
    another shape, and labels out of range (on accelerators with ``DETKIT_CHECKS=full``).

    >>> from detkit.heads import ImageHead
    >>> stage = ClassificationStage(ImageHead(8, 3), max_detections=2)
    >>> images = Images(torch.zeros(1, 3, 64, 96), torch.tensor([[64, 96]]))
    >>> found = stage.detections(stage([torch.zeros(1, 8, 4, 6)], images, None), images)
    >>> found.labels, found.boxes[0, 0], found.image_scores
    (tensor([[0, 1]]), tensor([ 0.,  0., 96., 64.]), tensor([[0.3333, 0.3333, 0.3333]]))
    """

    @door
    def __init__(
        self,
        head: nn.Module,
        *,
        max_detections: Count = 5,
        weight: NotNegative = 1.0,
        label_smoothing: Fraction = 0.0,
        branch: str | None = None,
    ) -> None:
        super().__init__(branch=branch)
        self.head, self.max_detections, self.weight = head, max_detections, weight
        self.label_smoothing = label_smoothing

    @door
    def forward(
        self, features: list[Tensor], images: Images, detections: Detections | None, targets: Targets | None = None
    ) -> ClassificationOutputs:
        """Logits of each image; targets make no difference. Raises ValueError for a head that returns no (B, C)."""
        logits = promote(self.head(features, images))
        if logits.ndim != 2:
            raise ValueError(f"ClassificationStage: the head returns {tuple(logits.shape)}; allowed is (B, C)")
        return ClassificationOutputs(logits)

    @door
    def loss(self, outputs: ClassificationOutputs, targets: Targets) -> dict[str, Tensor]:
        """The loss "classification"."""
        labels, weights = _lessons(targets)
        num_classes = outputs.logits.shape[-1]
        check_labels(labels, num_classes, lowest=0, function="ClassificationStage", name="labels of targets")
        logits = outputs.logits[:, None].expand(-1, labels.shape[1], -1)
        costs = label_smoothed_cross_entropy(logits, labels, smoothing=self.label_smoothing)
        totals = torch.where(labels != IGNORED, weights.to(costs), 0).sum(1)
        means = (costs * weights).sum(1) / totals.clamp(min=1)
        count = mean_count(totals > 0, means, weights=totals.clamp(max=1))
        return {"classification": self.weight * means.sum() / count}

    @door
    def detections(self, outputs: ClassificationOutputs, images: Images) -> Detections:
        """The best classes of each image, without gradient; classes whose score is not a number are none."""
        scores = outputs.logits.detach().softmax(-1)
        usable = torch.isfinite(scores)
        labels = stable_topk(torch.where(usable, scores, -1), self.max_detections)
        boxes = image_boxes(images)[:, None].expand(-1, labels.shape[1], -1)
        found = Detections.padded(boxes, scores.gather(1, labels), labels, usable.gather(1, labels))
        return found._replace(image_scores=scores)


def image_boxes(images: Images) -> Float[Tensor, "B 4"]:
    """Where each image lies in the frame of its batch, xyxy.

    >>> image_boxes(Images(torch.zeros(1, 3, 8, 8), torch.tensor([[6, 8]]), offsets=torch.tensor([[2, 0]])))
    tensor([[0., 2., 8., 6.]])
    """
    offsets = torch.zeros_like(images.sizes) if images.offsets is None else images.offsets
    return torch.cat((offsets.flip(-1), images.sizes.flip(-1)), dim=-1).to(torch.float32)


def solid_objects(targets: Targets) -> Bool[Tensor, "B T"]:
    """Which rows are objects with width and height.

    >>> targets = Targets(torch.zeros(1, 1, 4), torch.zeros(1, 1).long(), *torch.tensor([[[True]], [[False]]]))
    >>> solid_objects(targets)
    tensor([[False]])
    """
    return targets.objects & (targets.boxes[..., 2:] > targets.boxes[..., :2]).all(-1)


def _lessons(targets: Targets) -> tuple[Int[Tensor, "B L"], Shaped[Tensor, "B L"]]:
    """The classes that each image learns, IGNORED for none, and their weights."""
    if targets.image_labels is None:
        weights = torch.ones_like(targets.boxes[..., 0]) if targets.weights is None else targets.weights
        return torch.where(solid_objects(targets), targets.labels, IGNORED), weights
    if targets.image_labels.ndim != 1 or targets.image_labels.is_floating_point():
        shape, kind = tuple(targets.image_labels.shape), targets.image_labels.dtype
        raise ValueError(
            f"ClassificationStage: image_labels have shape {shape} and are {kind}; allowed is one whole number for "
            "each image (B,): its class, or -1 for none"
        )
    labels = targets.image_labels[:, None].to(torch.int64)
    return torch.where(labels == -1, IGNORED, labels), torch.ones_like(labels)
