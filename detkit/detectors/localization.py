"""The stage that finds the one object of each image, by regression."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detkit._door import door
from detkit._inputs import promote
from detkit._ranges import NotNegative
from detkit._sent import numbers_like
from detkit.boxes import (
    box_area,
    clip_boxes_to_image,
    cxcywh_to_xyxy,
    fractions_to_pixels,
    pixels_to_fractions,
    xyxy_to_cxcywh,
)
from detkit.detectors.classification import solid_objects
from detkit.detectors.detector import Stage
from detkit.detectors.matched_boxes import weighted_mean
from detkit.structures import Detections, Images, Targets, take_rows


class LocalizationOutputs(NamedTuple):
    """A box of each image, cx, cy, w, h as fractions of its size, and the detections it is for."""

    boxes: Float[Tensor, "B 4"]
    images: Images
    detections: Detections | None


class LocalizationStage(Stage):
    """Regresses one box for each image and gives it to all detections of the stage before, whatever their class.

    Behind a :class:`~detkit.detectors.ClassificationStage` it makes the joint classifier and localizer of the first
    ImageNet years: the losses of the two stages add up. ``head(features, images)`` returns (B, 4), as
    :class:`~detkit.heads.ImageHead` does: what to add to the center and the size of the whole image, in fractions of
    the image. There is no activation; a side below 0 counts as 0, and boxes are clipped to the image.

    The loss is ``weight`` times the mean squared difference of the four numbers to the largest object of each image,
    averaged over the images with an object, in all processes, and weighted by its weight (their sum counts as 1 at
    least). ``cost`` takes its place: a function of the boxes found and the true ones, both (B, 4) xyxy in pixels, to
    (B,), such as :func:`~detkit.losses.distance_box_iou_loss`. ``alone``: the box is a detection of its own, of label 0
    and score 1, whatever came before. Source: Sermanet et al. 2014 (OverFeat), section 4, with one
    box for all classes and without sliding windows.

    >>> from detkit.heads import ImageHead
    >>> stage, images = LocalizationStage(ImageHead(8, 4)), Images(torch.zeros(1, 3, 64, 96), torch.tensor([[64, 96]]))
    >>> one = torch.ones(1, 1)
    >>> found = Detections(torch.zeros(1, 1, 4), one, one.long(), one.bool())
    >>> stage.detections(stage([torch.zeros(1, 8, 4, 6)], images, found), images).boxes
    tensor([[[ 0.,  0., 96., 64.]]])
    """

    @door
    def __init__(
        self,
        head: nn.Module,
        *,
        weight: NotNegative = 1.0,
        cost: Callable[[Tensor, Tensor], Tensor] | None = None,
        alone: bool = False,
        branch: str | None = None,
    ) -> None:
        super().__init__(branch=branch)
        self.head, self.weight, self.cost, self.alone = head, weight, cost, alone

    @door
    def forward(
        self, features: list[Tensor], images: Images, detections: Detections | None, targets: Targets | None = None
    ) -> LocalizationOutputs:
        """The box of each image.

        Raises ValueError for no detections to give it to, unless there are targets, and for other than four numbers.
        """
        if detections is None and targets is None and not self.alone:
            raise ValueError(
                "LocalizationStage: gives its box to the detections of a stage before, and there is none; put a "
                "ClassificationStage in front: Detector(trunk, preprocess=..., classify=..., localize=...), or give it "
                "alone=True"
            )
        shifts = promote(self.head(features, images))
        if shifts.ndim != 2 or shifts.shape[1] != 4:
            raise ValueError(f"LocalizationStage: the head returns {tuple(shifts.shape)}; allowed is (B, 4)")
        found = _one_each(shifts) if self.alone else detections
        return LocalizationOutputs(shifts + numbers_like((0.5, 0.5, 1.0, 1.0), shifts), images, found)

    @door
    def loss(self, outputs: LocalizationOutputs, targets: Targets) -> dict[str, Tensor]:
        """The loss "box"."""
        solid = solid_objects(targets)
        largest = torch.where(solid, box_area(targets.boxes), -1).argmax(1, keepdim=True)
        boxes = take_rows(targets.boxes, largest)
        learned = solid.any(1)
        costs = (_squared if self.cost is None else self._pixels)(outputs, boxes, learned[:, None])
        weights = torch.ones_like(costs) if targets.weights is None else targets.weights.gather(1, largest)[:, 0]
        return {"box": self.weight * weighted_mean(costs, weights, learned)}

    def _pixels(self, outputs: LocalizationOutputs, boxes: Tensor, learned: Tensor) -> Float[Tensor, "B"]:
        """What ``cost`` says; images without an object compare their true box, none, with itself."""
        assert self.cost is not None
        wanted = torch.where(learned, boxes[:, 0], 0).to(outputs.boxes)
        found = cxcywh_to_xyxy(torch.where(learned, outputs.boxes, 0))[:, None]
        return self.cost(fractions_to_pixels(found, outputs.images.sizes)[:, 0], wanted)

    @door
    def detections(self, outputs: LocalizationOutputs, images: Images) -> Detections:
        """The detections of the stage before in the box of their image; none if that is not finite. No gradient."""
        found = outputs.detections
        assert found is not None
        centers, sides = outputs.boxes.detach().split(2, dim=-1)
        boxes = cxcywh_to_xyxy(torch.cat((centers, sides.clamp(min=0)), dim=-1))[:, None]
        boxes = clip_boxes_to_image(fractions_to_pixels(boxes, images.sizes), images.sizes)
        boxes = boxes.expand_as(found.boxes)
        usable = found.valid & torch.isfinite(boxes).all(-1)
        return Detections.padded(boxes, found.scores, found.labels, usable)


def _squared(outputs: LocalizationOutputs, boxes: Tensor, learned: Tensor) -> Float[Tensor, "B"]:
    """The mean squared difference of center and size, in fractions of the image."""
    wanted = xyxy_to_cxcywh(pixels_to_fractions(boxes, outputs.images.sizes))[:, 0].to(outputs.boxes)
    return torch.where(learned, outputs.boxes - wanted, 0).square().mean(1)


def _one_each(like: Tensor) -> Detections:
    """A detection of each image, of label 0 and score 1."""
    one = like.new_ones(len(like), 1)
    return Detections(like.new_zeros(len(like), 1, 4), one, torch.zeros_like(one, dtype=torch.int64), one > 0)
