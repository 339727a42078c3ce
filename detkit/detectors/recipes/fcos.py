"""FCOS: one trunk with a feature pyramid, and points instead of anchors, each trained on the object around it."""

from collections.abc import Sequence
from functools import partial

from torch import nn

from detkit._door import door
from detkit._ranges import Count
from detkit.anchors import CenterMatcher, GridAnchors
from detkit.backbones import Backbone
from detkit.boxes import DistanceCoder
from detkit.detectors.dense import DenseStage
from detkit.detectors.detector import Detector
from detkit.detectors.levelwise import LevelwisePostprocess
from detkit.detectors.preprocess import Preprocess
from detkit.detectors.recipe import recipe
from detkit.detectors.recipes.trunks import Norm, pyramid, short_side_800, small_pyramid
from detkit.heads import ClassificationHead, DenseHead, FCOSHead
from detkit.layers import init_convolutions
from detkit.losses import FCOSLoss


@recipe
def fcos(num_classes: Count, *, backbone: Backbone | None = None, preprocess: Preprocess | None = None) -> Detector:
    """FCOS: five pyramid levels of 256 channels, two of them on top of ``backbone``, towers with group norm.

    ``backbone`` has strides 8, 16 and 32 (default: an untrained ResNet-50); images are resized to a short side of 800
    pixels, the long side at most 1333, unless ``preprocess`` says otherwise. Level P6 is computed from the backbone's
    last feature map (torchvision: from the pyramid's). Source: Tian et al. 2019, with the center sampling, GIoU and
    centerness branch of the version of 2020.

    >>> sum(parameter.numel() for parameter in fcos(num_classes=91).parameters())
    36451488
    """
    trunk, neck = pyramid(backbone)
    stage = fcos_stage(num_classes, 256, fcos_anchors(neck.strides))
    return Detector(trunk, preprocess=short_side_800() if preprocess is None else preprocess, dense=stage)


@recipe
def small_fcos(
    num_classes: Count,
    *,
    size: tuple[Count, Count] = (320, 320),
    channels: Count = 64,
    blocks: Count = 1,
    norm: Norm = nn.BatchNorm2d,
    backbone: Backbone | None = None,
) -> Detector:
    """A small FCOS to train from scratch, also on a CPU: a residual net, a pyramid at strides 8, 16 and 32.

    Images are resized to ``size`` (height, width). ``channels``, a multiple of 8, is the width of the pyramid,
    ``blocks`` the number of residual blocks per backbone stage, ``norm`` builds its normalization layers.
    ``backbone`` takes their place, as in :func:`~detkit.detectors.fpn_ssd`.

    >>> small_fcos(num_classes=3, size=(240, 320)).preprocess.size
    (240, 320)
    """
    trunk, strides = small_pyramid(channels, blocks, norm, backbone)
    stage = fcos_stage(num_classes, channels, fcos_anchors(strides), depth=1, norm=partial(nn.GroupNorm, 8))
    return Detector(trunk, preprocess=Preprocess(size), dense=stage)


@door
def fcos_anchors(strides: Sequence[Count]) -> GridAnchors:
    """One square per cell, as wide as the stride, whose center is the point; placed as in torchvision.

    >>> fcos_anchors((8, 16)).per_cell
    (1, 1)
    """
    sizes = [(stride,) for stride in strides]
    return GridAnchors(sizes, aspect_ratios=(1.0,), ratio_is="h/w", centered=False, whole_pixels=True)


@door
def fcos_stage(
    num_classes: Count,
    channels: Count,
    anchors: GridAnchors,
    *,
    depth: Count = 4,
    norm: Norm | None = None,
    postprocess: LevelwisePostprocess | None = None,
) -> DenseStage:
    """FCOS's stage on levels of ``channels``: center sampling within 1.5 strides, towers of ``depth`` convolutions.

    ``norm`` builds the normalization layer of each convolution in the towers (default: group norm of 32 groups).

    >>> fcos_stage(3, 64, fcos_anchors((8, 16)), depth=1).matcher
    CenterMatcher(radius=1.5, reach=(4.0, 8.0))
    """
    norm = partial(nn.GroupNorm, 32) if norm is None else norm
    towers = [_tower(channels, depth, norm) for _ in range(2)]
    if postprocess is None:
        postprocess = LevelwisePostprocess(score_threshold=0.2, iou_threshold=0.6, max_detections=100)
    return DenseStage(
        head=DenseHead(
            ClassificationHead(channels, 1, num_classes=num_classes, tower=towers[0], prior=0.01),
            FCOSHead(channels, tower=towers[1]),
        ),
        anchors=anchors,
        matcher=CenterMatcher(),
        coder=DistanceCoder(unit=1.0),
        criterion=FCOSLoss(),
        postprocess=postprocess,
    )


def _tower(channels: int, depth: int, norm: Norm) -> nn.Sequential:
    """A chain of convolution, norm and ReLU; the convolutions keep their bias despite the norm, as published."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Conv2d(channels, channels, 3, padding=1), norm(channels), nn.ReLU()]
    tower = nn.Sequential(*layers)
    init_convolutions(tower, partial(nn.init.normal_, std=0.01))
    return tower
