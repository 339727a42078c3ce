"""The stage that classifies every pixel of an image."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from detkit._door import door
from detkit._inputs import promote
from detkit._ranges import NotNegative
from detkit.detectors.classification import image_boxes
from detkit.detectors.detector import Stage
from detkit.detectors.matched_boxes import refuse_objects_without
from detkit.losses import mean_count
from detkit.structures import IGNORED, VOID, Detections, Images, Targets, draw_segmentation
from detkit.structures.labels import check_labels
from detkit.structures.segmentation import of_owners, pixel_owners


class SegmentationOutputs(NamedTuple):
    """Class logits of the frame at the head's resolution, the images, and the detections of the stage before."""

    logits: Float[Tensor, "B C h w"]
    images: Images
    detections: Detections | None


class SegmentationStage(Stage):
    """Predicts the class of each pixel and adds it to the detections of the stage before, which stay as they are.

    ``head(features)`` returns logits (B, C, h, w) of the batch's frame at any resolution, as
    :class:`~detkit.heads.SegmentationHead` does; they are enlarged bilinearly. Detections get ``segmentation``: the
    best class of each pixel (B, H, W), or with ``scores`` the softmax of all classes (B, C, h, w). As the first stage
    it finds no boxes.

    A pixel learns its class in ``segmentation`` of the targets, 0..C-1, or nothing where that is VOID (a border that is
    neither, padding). Without that entry it learns what :func:`~detkit.structures.draw_segmentation` draws from the
    masks of the objects: 1 + the label, or 0; pixels of an object then count as often as it weighs. The loss is
    ``weight`` times the mean cross-entropy over the pixels that learn something, in all processes. Raises ValueError
    for targets with objects and neither entry, a segmentation of another size than the frame, and classes out of range
    (on accelerators with ``DETKIT_CHECKS=full``).
    Source: Long, Shelhamer and Darrell 2015 (FCN), section 4, there summed over the pixels.

    >>> from detkit.heads import SegmentationHead
    >>> stage = SegmentationStage(SegmentationHead([8], 3))
    >>> images = Images(torch.zeros(1, 3, 64, 96), torch.tensor([[64, 96]]))
    >>> found = stage.detections(stage([torch.zeros(1, 8, 16, 24)], images, None), images)
    >>> found.segmentation.shape, found.boxes.shape
    (torch.Size([1, 64, 96]), torch.Size([1, 0, 4]))
    """

    @door
    def __init__(
        self, head: nn.Module, *, weight: NotNegative = 1.0, scores: bool = False, branch: str | None = None
    ) -> None:
        super().__init__(branch=branch)
        self.head, self.weight, self.scores = head, weight, scores

    @door
    def forward(
        self, features: list[Tensor], images: Images, detections: Detections | None, targets: Targets | None = None
    ) -> SegmentationOutputs:
        """Logits; targets make no difference. Raises ValueError for a head that returns no (B, C, h, w), or C > 255."""
        logits = promote(self.head(features))
        if logits.ndim != 4 or logits.shape[1] > VOID:
            raise ValueError(
                f"SegmentationStage: the head returns {tuple(logits.shape)}; allowed is (B, C, h, w) of at most {VOID} "
                "classes"
            )
        return SegmentationOutputs(logits, images, detections)

    @door
    def loss(self, outputs: SegmentationOutputs, targets: Targets) -> dict[str, Tensor]:
        """The loss "segmentation"."""
        labels, weights = _lessons(targets, outputs.images)
        check_labels(labels, outputs.logits.shape[1], lowest=0, function="SegmentationStage", name="segmentation")
        judged = labels != IGNORED
        logits = torch.where(judged[:, None], _enlarged(outputs), 0)  # what is not judged may hold anything
        costs = F.cross_entropy(logits, torch.where(judged, labels, 0), reduction="none")
        total = (torch.where(judged, costs, 0) * weights).sum()
        return {"segmentation": self.weight * total / mean_count(judged, costs, weights=weights)}

    @door
    def detections(self, outputs: SegmentationOutputs, images: Images) -> Detections:
        """The detections of the stage before with ``segmentation``, without gradient."""
        found = _no_boxes(outputs.logits) if outputs.detections is None else outputs.detections
        if self.scores:
            return found._replace(segmentation=outputs.logits.detach().softmax(1))
        classes = _enlarged(outputs).detach().max(1).indices  # torch often takes several times as long for argmax
        return found._replace(segmentation=classes)

    @door
    def handover(self, outputs: SegmentationOutputs, images: Images, targets: Targets) -> Detections | None:
        """The detections of the stage before: nobody learns on the segmentation."""
        return outputs.detections

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"weight={self.weight}, scores={self.scores}"


def _enlarged(outputs: SegmentationOutputs) -> Float[Tensor, "B C H W"]:
    frame = outputs.images.tensors.shape[-2:]
    return F.interpolate(outputs.logits, size=frame, mode="bilinear", align_corners=False)


def _no_boxes(like: Tensor) -> Detections:
    rows = like.new_zeros(len(like), 0)
    return Detections(like.new_zeros(len(like), 0, 4), rows, rows.to(torch.int64), rows.to(torch.bool))


def _lessons(targets: Targets, images: Images) -> tuple[Int[Tensor, "B H W"], Float[Tensor, "B H W"]]:
    """The class that each pixel of the frame learns, IGNORED for none, and how often the pixel counts."""
    frame = images.tensors.shape[-2:]
    labels, weights = _drawn(targets, frame) if targets.segmentation is None else (targets.segmentation, None)
    size = labels.shape[-2:]
    missing = [whole - own for whole, own in zip(frame, size, strict=True)]
    if min(missing) < 0:
        raise ValueError(
            f"SegmentationStage: segmentation or masks of {tuple(size)} pixels (height, width); allowed are those of "
            f"the frame {tuple(frame)}, or less: the rest is padding"
        )
    labels = F.pad(labels, (0, missing[1], 0, missing[0]), value=VOID).to(torch.int64)
    labels = torch.where(_inside(images) & (labels != VOID), labels, IGNORED)
    ones = torch.ones_like(labels, dtype=torch.float32)
    return labels, ones if weights is None else F.pad(weights, (0, missing[1], 0, missing[0]))


def _drawn(targets: Targets, frame: Sequence[int]) -> tuple[Int[Tensor, "B _ _"], Float[Tensor, "B _ _"] | None]:
    """What the masks of objects teach, and how much; without masks, an image without objects is background."""
    if targets.masks is None:
        refuse_objects_without("segmentation and no masks", "SegmentationStage", targets)
        return targets.labels.new_zeros((len(targets.labels), *frame)), None
    classes = draw_segmentation(targets.masks, targets.labels, targets.objects, targets.crowds)
    if targets.weights is None:
        return classes, None
    owners = pixel_owners(targets.masks, targets.objects)
    return classes, torch.where(owners >= 0, of_owners(targets.weights, owners), 1)


def _inside(images: Images) -> Bool[Tensor, "B H W"]:
    """Which pixels of the frame are the image's."""
    left, top, right, bottom = image_boxes(images)[:, :, None].unbind(1)
    y, x = (torch.arange(n, device=images.sizes.device) for n in images.tensors.shape[-2:])
    rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
    return rows[:, :, None] & columns[:, None]
