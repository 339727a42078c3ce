"""RetinaNet: one trunk with a feature pyramid, nine anchors at every cell, a focal loss over all of them."""

from collections.abc import Sequence
from functools import partial

from torch import nn

from detkit._door import door
from detkit._ranges import Count, Positive
from detkit.anchors import GridAnchors, ThresholdMatcher
from detkit.backbones import Backbone
from detkit.boxes import DeltaCoder
from detkit.detectors.dense import DenseStage
from detkit.detectors.detector import Detector
from detkit.detectors.levelwise import LevelwisePostprocess
from detkit.detectors.preprocess import Preprocess
from detkit.detectors.recipe import recipe
from detkit.detectors.recipes.one_shot import one_shot_stage
from detkit.detectors.recipes.trunks import Norm, pyramid, short_side_800, small_pyramid
from detkit.layers import conv_tower
from detkit.losses import RetinaNetLoss, giou_cost


@recipe
def retinanet(
    num_classes: Count, *, backbone: Backbone | None = None, preprocess: Preprocess | None = None
) -> Detector:
    """RetinaNet: five pyramid levels of 256 channels, two of them on top of ``backbone``, L1 on the deltas.

    ``backbone`` has strides 8, 16 and 32 (default: an untrained ResNet-50); images are resized to a short side of 800
    pixels, the long side at most 1333, unless ``preprocess`` says otherwise. Level P6 is computed from the backbone's
    last feature map, as in the paper (torchvision's first version: from the pyramid's). Source: Lin et al. 2017, "Focal
    Loss", section 4; box loss as in torchvision.

    >>> sum(parameter.numel() for parameter in retinanet(num_classes=91).parameters())
    38196887
    """
    trunk, neck = pyramid(backbone)
    stage = retinanet_stage(num_classes, 256, retinanet_anchors(neck.strides))
    return Detector(trunk, preprocess=short_side_800() if preprocess is None else preprocess, dense=stage)


@recipe
def retinanet_v2(
    num_classes: Count, *, backbone: Backbone | None = None, preprocess: Preprocess | None = None
) -> Detector:
    """:func:`retinanet` with group norm in the heads and a GIoU loss on the boxes: torchvision's second version.

    Source: Zhang et al. 2020 (ATSS), section 3.1, for both improvements.

    >>> sum(parameter.numel() for parameter in retinanet_v2(num_classes=91).parameters())
    38198935
    """
    trunk, neck = pyramid(backbone)
    stage = retinanet_stage(
        num_classes,
        256,
        retinanet_anchors(neck.strides),
        norm=partial(nn.GroupNorm, 32),
        criterion=RetinaNetLoss(giou_cost),
    )
    return Detector(trunk, preprocess=short_side_800() if preprocess is None else preprocess, dense=stage)


@recipe
def small_retinanet(
    num_classes: Count,
    *,
    size: tuple[Count, Count] = (320, 320),
    channels: Count = 64,
    blocks: Count = 1,
    norm: Norm = nn.BatchNorm2d,
    backbone: Backbone | None = None,
) -> Detector:
    """A small RetinaNet to train from scratch, also on a CPU: a residual net, a pyramid at strides 8, 16 and 32.

    Images are resized to ``size`` (height, width); anchors are 3 to 4.8 strides wide. ``channels`` is the width of the
    pyramid, ``blocks`` the number of residual blocks per backbone stage, ``norm`` builds its normalization layers.
    ``backbone`` takes their place, as in :func:`~detkit.detectors.fpn_ssd`.

    >>> small_retinanet(num_classes=3, size=(240, 320)).preprocess.size
    (240, 320)
    """
    trunk, strides = small_pyramid(channels, blocks, norm, backbone)
    stage = retinanet_stage(num_classes, channels, retinanet_anchors(strides, size=3.0), depth=1)
    return Detector(trunk, preprocess=Preprocess(size), dense=stage)


@door
def retinanet_anchors(strides: Sequence[Count], *, size: Positive = 4.0) -> GridAnchors:
    """Anchors of 1, 1.26 and 1.59 times ``size`` strides in ratios h/w of 1/2, 1 and 2, as torchvision rounds them.

    >>> retinanet_anchors((8, 16)).per_cell
    (9, 9)
    """
    sizes = [[int(size * stride * 2 ** (step / 3)) for step in range(3)] for stride in strides]
    return GridAnchors(sizes, aspect_ratios=(0.5, 1.0, 2.0), ratio_is="h/w", centered=False, whole_pixels=True)


@door
def retinanet_stage(
    num_classes: Count,
    channels: Count,
    anchors: GridAnchors,
    *,
    depth: Count = 4,
    norm: Norm | None = None,
    criterion: RetinaNetLoss | None = None,
    postprocess: LevelwisePostprocess | None = None,
) -> DenseStage:
    """RetinaNet's stage on levels of ``channels``: positive at IoU .5, negative below .4, ``depth`` convolutions a
    tower.

    >>> retinanet_stage(3, 16, retinanet_anchors((8, 16)), depth=1).matcher
    ThresholdMatcher(positive_iou=0.5, negative_iou=0.4, low_quality=True)
    """
    return one_shot_stage(
        num_classes,
        channels,
        anchors,
        matcher=ThresholdMatcher(positive_iou=0.5, negative_iou=0.4, low_quality=True),
        coder=DeltaCoder(),
        criterion=RetinaNetLoss() if criterion is None else criterion,
        tower=partial(conv_tower, depth=depth, norm=norm),
        postprocess=postprocess,
    )
