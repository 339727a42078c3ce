"""One-shot detectors whose levels share one head: it is composed to fit a matcher, a coder and a criterion."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from detkit._door import door
from detkit._ranges import Count, Positive, Whole
from detkit.anchors import GridAnchors, SimOTAMatcher, TaskAlignedMatcher
from detkit.backbones import Backbone
from detkit.boxes import DeltaCoder, DistanceCoder, DistributionCoder
from detkit.detectors.dense import DenseStage, check_call
from detkit.detectors.detector import Detector
from detkit.detectors.levelwise import LevelwisePostprocess
from detkit.detectors.preprocess import Preprocess
from detkit.detectors.recipe import recipe
from detkit.detectors.recipes.trunks import Finest, Norm, pyramid, short_side_800, small_pyramid
from detkit.heads import ClassificationHead, DenseHead, RegressionHead
from detkit.layers import conv_tower
from detkit.losses import DenseCriterion, ObjectnessLoss, QualityLoss
from detkit.structures import Anchors

Tower = Callable[[int], nn.Module]
_PRIOR = 0.01


@door
def one_shot_stage(
    num_classes: Count,
    channels: Count,
    anchors: nn.Module,
    *,
    matcher: nn.Module,
    coder: nn.Module,
    criterion: DenseCriterion,
    tower: Tower | None = None,
    postprocess: nn.Module | None = None,
) -> DenseStage:
    """A stage on levels of ``channels`` with one shared head that fits ``coder`` and ``criterion``; swap any of them.

    The head has a class part, a box part of as many numbers as the coder decodes and, where the criterion reads it, a
    quality part; classes get a background column where the criterion's softmax has one. Each part has a tower of its
    own, which the function ``tower(channels)`` builds and which keeps channels, height and width: by default one
    convolution with group norm (:func:`~detkit.layers.conv_tower`). Classes and quality start at .01 where they are
    independent, and boxes at their anchors, unless they are distributions.

    Raises ValueError unless all levels of ``anchors`` have equally many boxes per cell, for a coder that is none, and
    for a tower already built.

    >>> from detkit.anchors import ATSSMatcher
    >>> from detkit.boxes import GridCoder
    >>> parts = {"matcher": ATSSMatcher(), "coder": GridCoder(), "criterion": ObjectnessLoss()}
    >>> stage = one_shot_stage(3, 16, square_anchors((8, 16)), **parts)
    >>> stage.head.class_head.num_classes, type(stage.head.quality_head).__name__
    (3, 'ClassificationHead')
    """
    per_cell: list[int] = [*getattr(anchors, "per_cell", ())]
    if len(set(per_cell)) != 1:
        raise ValueError(
            f"one_shot_stage: anchors have per_cell={tuple(per_cell)}; all levels share one head, so allowed are equal "
            "numbers"
        )
    check_call("one_shot_stage", "coder", coder, "boxes, anchors", method="encode")
    tower = conv_tower if tower is None else tower
    if isinstance(tower, nn.Module):
        raise ValueError(
            f"one_shot_stage: tower is a {type(tower).__name__}; give a function that builds one for each part of the "
            "head: tower(channels)"
        )
    prior = None if criterion.has_background else _PRIOR
    part = partial(ClassificationHead, channels, per_cell[0], prior=prior)
    outputs = num_classes + criterion.has_background
    return DenseStage(
        head=DenseHead(
            part(num_classes=outputs, tower=tower(channels)),
            _box_part(channels, per_cell[0], tower(channels), coder),
            quality_head=part(num_classes=1, tower=tower(channels)) if criterion.reads_quality else None,
        ),
        anchors=anchors,
        matcher=matcher,
        coder=coder,
        criterion=criterion,
        postprocess=LevelwisePostprocess() if postprocess is None else postprocess,
    )


@door
def square_anchors(strides: Sequence[Count], *, times: Positive = 4.0) -> GridAnchors:
    """One square in each cell, ``times`` strides wide, in the middle of the cell.

    >>> square_anchors((8, 16)).per_cell
    (1, 1)
    """
    return GridAnchors([(times * stride,) for stride in strides], aspect_ratios=(1.0,), strides=strides)


@recipe
def tood(num_classes: Count, *, backbone: Backbone | None = None, preprocess: Preprocess | None = None) -> Detector:
    """TOOD: the anchors of an object are those whose predictions serve it best, by class and by box together.

    Five pyramid levels of 256 channels on ``backbone`` (strides 8, 16 and 32; default: an untrained ResNet-50), images
    resized to a short side of 800 pixels, the long side at most 1333, unless ``preprocess`` says otherwise. The head
    has two towers of four convolutions in place of the paper's task-aligned one. Source: Feng et al. 2021, sections 3.1
    (without the aligned head) and 3.2.

    >>> import torch
    >>> with torch.device("meta"):
    ...     detector = tood(num_classes=80)
    >>> detector.dense.matcher
    TaskAlignedMatcher(candidates=13, alpha=1.0, beta=6.0)
    """
    trunk, neck = pyramid(backbone)
    stage = tood_stage(num_classes, 256, square_anchors(neck.strides, times=8), tower=partial(conv_tower, depth=4))
    return Detector(trunk, preprocess=short_side_800() if preprocess is None else preprocess, dense=stage)


@recipe
def small_tood(
    num_classes: Count,
    *,
    size: tuple[Count, Count] = (320, 320),
    channels: Count = 64,
    blocks: Count = 1,
    norm: Norm = nn.BatchNorm2d,
    bins: Whole = 16,
    finest: Finest = 8,
    backbone: Backbone | None = None,
) -> Detector:
    """A small :func:`tood` to train from scratch, also on a CPU: a residual net, a pyramid at strides 8, 16 and 32.

    Images are resized to ``size`` (height, width). ``channels``, a multiple of 8, is the width of the pyramid,
    ``blocks`` the number of residual blocks per backbone stage, ``norm`` builds its normalization layers. Sides of
    boxes are distributions over ``bins`` half strides, as in GFL, or with ``bins=0`` deltas, as in TOOD's paper. With
    ``finest=4`` the pyramid begins at stride 4, for objects of less than 16 pixels, and a step takes twice as long.
    ``backbone`` is that of :func:`~detkit.detectors.fpn_ssd`.

    >>> small_tood(num_classes=3, size=(240, 320)).preprocess.size
    (240, 320)
    """
    trunk, strides = small_pyramid(channels, blocks, norm, backbone, finest)
    stage = tood_stage(num_classes, channels, square_anchors(strides), bins=bins)
    return Detector(trunk, preprocess=Preprocess(size), dense=stage)


@recipe
def yolox(num_classes: Count, *, backbone: Backbone | None = None, preprocess: Preprocess | None = None) -> Detector:
    """YOLOX's way of learning: cells instead of anchors, decoupled towers, and matching that follows the predictions.

    Trunk, ``backbone`` and ``preprocess`` are as in :func:`tood`, not the paper's CSPDarknet on 640 x 640 pixels; its
    mosaic and mixup are augmentations, not parts. A center is linear in the cell's size, so that an object is also
    learned from cells beside its own. Source: Ge et al. 2021, section 2.1 ("Decoupled head", "Anchor-free", "SimOTA").

    >>> import torch
    >>> with torch.device("meta"):
    ...     detector = yolox(num_classes=80)
    >>> type(detector.dense.criterion).__name__, detector.dense.anchors.per_cell
    ('ObjectnessLoss', (1, 1, 1, 1, 1))
    """
    trunk, neck = pyramid(backbone)
    tower = partial(conv_tower, depth=2, activation=nn.SiLU)
    stage = yolox_stage(num_classes, 256, square_anchors(neck.strides, times=1), tower=tower)
    return Detector(trunk, preprocess=short_side_800() if preprocess is None else preprocess, dense=stage)


@recipe
def small_yolox(
    num_classes: Count,
    *,
    size: tuple[Count, Count] = (320, 320),
    channels: Count = 64,
    blocks: Count = 1,
    norm: Norm = nn.BatchNorm2d,
    backbone: Backbone | None = None,
) -> Detector:
    """A small :func:`yolox` to train from scratch, also on a CPU; arguments as in :func:`small_tood`.

    >>> small_yolox(num_classes=3).dense.anchors.per_cell
    (1, 1, 1)
    """
    trunk, strides = small_pyramid(channels, blocks, norm, backbone)
    stage = yolox_stage(num_classes, channels, square_anchors(strides, times=1))
    return Detector(trunk, preprocess=Preprocess(size), dense=stage)


@door
def tood_stage(
    num_classes: Count, channels: Count, anchors: GridAnchors, *, bins: Whole = 0, tower: Tower | None = None
) -> DenseStage:
    """TOOD's stage on levels of ``channels``: task-aligned matching, scores that learn the assigned quality.

    With ``bins`` boxes are distributions over as many eighths of an anchor, trained by distribution focal loss. Boxes
    are suppressed above IoU .6, as in the paper.

    >>> tood_stage(3, 16, square_anchors((8, 16)), bins=16).coder
    DistributionCoder(
      bins=16
      (coder): DistanceCoder(unit=0.125)
    )
    """
    distributions = DistributionCoder(DistanceCoder(unit=1 / 8), bins=bins) if bins else None
    return one_shot_stage(
        num_classes,
        channels,
        anchors,
        matcher=TaskAlignedMatcher(),
        coder=distributions or DeltaCoder((10.0, 10.0, 5.0, 5.0)),
        criterion=QualityLoss(quality="assigned", distribution_weight=0.25 if bins else 0.0),
        tower=tower,
        postprocess=LevelwisePostprocess(iou_threshold=0.6),
    )


@door
def yolox_stage(num_classes: Count, channels: Count, anchors: GridAnchors, *, tower: Tower | None = None) -> DenseStage:
    """YOLOX's stage on levels of ``channels``; ``anchors`` are its cells: squares as wide as the stride.

    >>> yolox_stage(3, 16, square_anchors((8, 16), times=1)).matcher
    SimOTAMatcher(candidates=10, radius=2.5, iou_weight=3.0)
    """
    return one_shot_stage(
        num_classes,
        channels,
        anchors,
        matcher=SimOTAMatcher(),
        coder=DeltaCoder(),
        criterion=ObjectnessLoss(),
        tower=tower,
    )


def _box_part(channels: int, per_cell: int, tower: nn.Module, coder: Any) -> RegressionHead:
    """A box head whose bias is what the coder says of an anchor relative to itself, if it decodes what it encodes."""
    head = RegressionHead(channels, per_cell, tower=tower, outputs=getattr(coder, "numbers", 4))
    square = Anchors(torch.tensor([[0.0, 0, 1, 1]]), torch.ones(1, 2), (1,))
    start = coder.encode(square.boxes, square)[0]
    if len(start) == head.outputs:
        with torch.no_grad():
            head.deltas.get_parameter("bias").copy_(start.repeat(per_cell))
    return head
