"""Segmentation beside a box and a class of the image, after "Multitask Learning in Image Recognition, Segmentation, and
Classification": one stage for each task, on any trunk.
"""

from collections.abc import Sequence

from torch import nn

from detkit._door import door
from detkit._ranges import Count, Size
from detkit.detectors.classification import ClassificationStage
from detkit.detectors.detector import Detector
from detkit.detectors.localization import LocalizationStage
from detkit.detectors.preprocess import Preprocess
from detkit.detectors.recipe import recipe
from detkit.detectors.segmentation import SegmentationStage
from detkit.heads import ImageHead, SegmentationHead
from detkit.losses import distance_box_iou_loss

HIDDEN = (80,)
"""The source's counts of parameters differ by 162 = 2 (80 + 1) between heads of two and of four outputs."""


@recipe
def segmenter(num_classes: Count, trunk: nn.Module, *, size: Size = (128, 128)) -> Detector:
    """The source's baseline: the class of each pixel, from an encoder and a decoder of residual blocks.

    ``trunk`` is any backbone: it has ``out_channels``, finest first. Images are resized to ``size``. The source's code
    of 512 x 4 x 4 is that of ``SmallBackbone((32, 128, 256, 512))``. Background is one of the classes.

    >>> from detkit.backbones import SmallBackbone
    >>> segmenter(2, SmallBackbone((8, 16))).stage_names
    ('segmentation',)
    """
    stage = segmentation_stage(num_classes, _channels(trunk))
    return Detector(trunk, preprocess=Preprocess(size), segmentation=stage)


@recipe
def three_tasks(
    num_classes: Count, trunk: nn.Module, *, segmentation_classes: Count = 2, size: Size = (128, 128)
) -> Detector:
    """The source's network of three tasks: the image's class, the box of its one object, and the class of each pixel.

    ``trunk`` returns the feature maps of the branches "classification", "boxes" and "segmentation" and has their
    ``out_channels``: a :class:`~detkit.multitask.StitchedTrunk` of three backbones is the source's, a
    :class:`~detkit.multitask.SharedTrunk` of one shares all, a :class:`~detkit.multitask.TransferTrunk` is its
    sequential variant. Leave a stage out for an ablation. An image's detections are its ``num_classes`` classes, best
    first, all in its box. Source: section 2.1; the box's loss is DIoU as published (the source's equation 2 lacks a
    square).

    >>> from detkit.backbones import SmallBackbone
    >>> from detkit.multitask import SharedTrunk
    >>> trunk = SharedTrunk(SmallBackbone((8, 16)), ["classification", "boxes", "segmentation"])
    >>> three_tasks(2, trunk).stage_names
    ('classification', 'boxes', 'segmentation')
    """
    channels = _channels(trunk)
    return Detector(
        trunk,
        preprocess=Preprocess(size),
        classification=image_class_stage(num_classes, channels[-1], branch="classification"),
        boxes=image_box_stage(channels[-1], branch="boxes"),
        segmentation=segmentation_stage(segmentation_classes, channels, branch="segmentation"),
    )


@door
def segmentation_stage(
    num_classes: Count, channels: Sequence[Count], *, skips: bool = False, branch: str | None = None
) -> SegmentationStage:
    """A decoder of residual blocks on feature maps of ``channels``, finest first, and pixel cross-entropy.

    Without ``skips`` it reads the coarsest map alone, as the source's figure shows it.

    >>> segmentation_stage(3, (8, 16), branch="pixels").branch
    'pixels'
    """
    return SegmentationStage(SegmentationHead(channels, num_classes, skips=skips), branch=branch)


@door
def image_class_stage(num_classes: Count, channels: Count, *, branch: str | None = None) -> ClassificationStage:
    """The class of the image from the means of its ``channels``, by two fully connected layers, 80 wide inside.

    >>> image_class_stage(2, 8).max_detections
    2
    """
    head = ImageHead(channels, num_classes, hidden=HIDDEN)
    return ClassificationStage(head, max_detections=num_classes, branch=branch)


@door
def image_box_stage(
    channels: Count, *, cells: Count = 4, alone: bool = False, branch: str | None = None
) -> LocalizationStage:
    """The box of the image's one object, from the means of ``channels`` in ``cells`` x ``cells`` parts, with DIoU.

    It is that of the classes found before, or with ``alone`` a detection of its own.

    >>> image_box_stage(8, alone=True).alone
    True
    """
    head = ImageHead(channels, 4, hidden=HIDDEN, cells=cells)
    return LocalizationStage(head, cost=distance_box_iou_loss, alone=alone, branch=branch)


def _channels(trunk: nn.Module) -> Sequence[int]:
    if not hasattr(trunk, "out_channels"):
        raise ValueError(f"multitask: trunk is a {type(trunk).__name__} without out_channels; give a backbone")
    return trunk.out_channels  # pyright: ignore[reportReturnType]
