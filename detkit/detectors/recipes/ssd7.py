"""SSD7: an SSD of seven convolutions, to train from scratch on objects of a known size."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from detkit._door import door
from detkit._ranges import Count, Positive, Size
from detkit.anchors import BipartiteMatcher, GridAnchors
from detkit.anchors.sample import Scope
from detkit.backbones import ssd7_backbone
from detkit.boxes import DeltaCoder
from detkit.detectors.detector import Detector
from detkit.detectors.preprocess import Preprocess
from detkit.detectors.recipes.ssd import ssd_stage
from detkit.layers import init_convolutions
from detkit.losses import MultiBoxLoss


@door
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
    another number of scales. Source: ssd_keras, keras_ssd7; predictors start by He's rule, without Keras' truncation.

    >>> sum(parameter.numel() for parameter in ssd7(num_classes=5).parameters())
    213232
    """
    backbone = ssd7_backbone()
    if len(scales) != len(backbone.strides) + 1:
        raise ValueError(f"ssd7: scales={tuple(scales)} must be five: one for each level, and one after the last")
    sides = [scale * min(size) for scale in scales]
    stage = ssd_stage(
        num_classes,
        backbone.out_channels,
        GridAnchors(shapes=[_shapes(*pair) for pair in pairwise(sides)]),
        matcher=BipartiteMatcher(positive_iou=0.5, negative_iou=0.3),
        coder=DeltaCoder(),
        criterion=MultiBoxLoss(negatives_per_positive=3.0, scope=scope),
    )
    init_convolutions(stage.head, nn.init.kaiming_normal_)
    return Detector(backbone, preprocess=Preprocess(size, mean=(0.5,) * 3, std=(0.5,) * 3), dense=stage)


def _shapes(side: float, following: float) -> list[tuple[float, float]]:
    """(width, height): w/h of 1/2, 1 and 2, and a larger square after the one."""
    root, between = math.sqrt(2), math.sqrt(side * following)
    return [(side / root, side * root), (side, side), (between, between), (side * root, side / root)]
