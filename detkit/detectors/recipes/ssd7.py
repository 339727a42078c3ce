"""SSD7, an SSD of seven convolutions to train from scratch, and its last four on a residual net."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from detkit._inputs import check_image_size
from detkit._ranges import Count, Positive, Size
from detkit.anchors import BipartiteMatcher, GridAnchors
from detkit.anchors.sample import Scope
from detkit.backbones import modified_ssd_backbone, ssd7_backbone
from detkit.boxes import DeltaCoder
from detkit.detectors.dense import DenseStage
from detkit.detectors.detector import Detector
from detkit.detectors.preprocess import Preprocess
from detkit.detectors.recipe import recipe
from detkit.detectors.recipes.ssd import ssd_stage
from detkit.layers import init_convolutions
from detkit.losses import MultiBoxLoss, l2_cost, smooth_l1_cost
from detkit.losses.dense import BoxCost


@recipe
def ssd7(
    num_classes: Count,
    *,
    size: Size = (300, 480),
    scales: Sequence[Positive] = (0.08, 0.16, 0.32, 0.64, 0.96),
    scope: Scope = "batch",
) -> Detector:
    """SSD7: images resized to ``size``, four levels at strides 8 to 64, four default boxes a cell: 11,692 at 300 x 480.

    ``scales`` are sides of default boxes as fractions of the shorter side of the image, one for each level and the one
    after the last; the defaults suit road traffic seen from a car, while the authors' builder has .1, .3, .5, .7, .9.
    Matching is SSD's, and a box that overlaps an object by .3 up to .5 is neutral: it learns nothing. Deltas have no
    variances. Hard negatives, 3 for each positive, are the worst of the whole batch, images without objects included;
    ``scope="image"`` mines in each image by itself, as :func:`~detkit.detectors.ssd` does. Raises ValueError for
    another number of scales and a side below 64.
    Source: ssd_keras, keras_ssd7; predictors start by He's rule, without Keras' truncation.

    >>> sum(parameter.numel() for parameter in ssd7(num_classes=5).parameters())
    213232
    """
    check_image_size(size, 64, function="ssd7")
    backbone = ssd7_backbone()
    criterion = MultiBoxLoss(smooth_l1_cost, negatives_per_positive=3.0, scope=scope)
    stage = _stage("ssd7", num_classes, backbone.out_channels, min(size), scales, criterion)
    return Detector(backbone, preprocess=Preprocess(size, mean=(0.5,) * 3, std=(0.5,) * 3), dense=stage)


@recipe
def modified_ssd(
    num_classes: Count,
    *,
    size: Size = (224, 224),
    scales: Sequence[Positive] = (0.1, 0.3, 0.5, 0.7, 0.9),
    stride: Count = 16,
    box_cost: BoxCost = l2_cost,
) -> Detector:
    """SSD7's last four convolutions and its predictors on a residual net: 1,020 default boxes at 224 x 224.

    Images are resized to ``size``. Levels have ``stride`` 16, 32, 64 and 128: 14, 7, 3 and 1 cells a side. With a
    ``stride`` of 8 the residual net ends one stage earlier, for smaller objects: 4,152 default boxes, as SSD7 has. The
    rest is that of :func:`ssd7`, with the ``scales`` of the builder, and L2 for boxes, as the source says.
    Raises ValueError for another stride, and a side of less than 7 strides and two pixels.
    Source: Howard, Williamson and Sarma, "Object Classification and Localization on ImageNet", section 3.3, which
    leaves the levels open; the deviation of :func:`~detkit.backbones.residual_backbone`.

    >>> modified_ssd(num_classes=25).trunk.strides
    (16, 32, 64, 128)
    """
    backbone = modified_ssd_backbone(stride=stride)
    check_image_size(size, 7 * stride + 2, function="modified_ssd")
    criterion = MultiBoxLoss(box_cost, negatives_per_positive=3.0, scope="batch")
    stage = _stage("modified_ssd", num_classes, backbone.out_channels, min(size), scales, criterion)
    return Detector(backbone, preprocess=Preprocess(size, mean=(0.0,) * 3, std=(1.0,) * 3), dense=stage)


def _stage(
    recipe: str,
    num_classes: int,
    out_channels: Sequence[int],
    side: int,
    scales: Sequence[float],
    criterion: MultiBoxLoss,
) -> DenseStage:
    """SSD7's stage on four levels, for images whose shorter side is ``side``."""
    if len(scales) != len(out_channels) + 1:
        raise ValueError(f"{recipe}: scales={tuple(scales)} must be five: one for each level, and one after the last")
    stage = ssd_stage(
        num_classes,
        out_channels,
        GridAnchors(shapes=[_shapes(*pair) for pair in pairwise(scale * side for scale in scales)]),
        matcher=BipartiteMatcher(positive_iou=0.5, negative_iou=0.3),
        coder=DeltaCoder(),
        criterion=criterion,
    )
    init_convolutions(stage.head, nn.init.kaiming_normal_)
    return stage


def _shapes(side: float, following: float) -> list[tuple[float, float]]:
    """(width, height): w/h of 1/2, 1 and 2, and a larger square after the one."""
    root, between = math.sqrt(2), math.sqrt(side * following)
    return [(side / root, side * root), (side, side), (between, between), (side * root, side / root)]
