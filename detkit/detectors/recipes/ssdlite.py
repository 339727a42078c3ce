"""SSDlite: SSD whose predictors and extra levels are separable convolutions."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from torch import nn
from torchvision.models import mobilenet_v3_large

from detkit._ranges import Count
from detkit.anchors import DefaultBoxes
from detkit.backbones import mobilenet_backbone
from detkit.detectors.detector import Detector
from detkit.detectors.postprocess import Postprocess
from detkit.detectors.preprocess import Preprocess
from detkit.detectors.recipe import recipe
from detkit.detectors.recipes.ssd import ssd_stage
from detkit.detectors.recipes.trunks import Norm
from detkit.layers import SeparableConv, init_convolutions
from detkit.necks import ExtraLevel, SSDExtra

SSDLITE_LEVELS = (ExtraLevel(256, 512), ExtraLevel(128, 256), ExtraLevel(128, 256), ExtraLevel(64, 128))
"""The four extra levels of SSDlite: 5, 3, 2 and 1 cells wide at 320 pixels."""
SIDE = 320
normal = partial(nn.init.normal_, std=0.03)


@recipe
def ssdlite(
    num_classes: Count,
    trunk: nn.Module,
    out_channels: Sequence[Count],
    anchors: DefaultBoxes,
    *,
    preprocess: Preprocess,
    postprocess: Postprocess | None = None,
    norm: Norm = nn.BatchNorm2d,
) -> Detector:
    """An SSDlite on any trunk: :func:`~detkit.detectors.ssd` with separable predictors.

    ``norm``, called with the number of channels, builds the normalization within the predictors.
    Source: Sandler et al. 2018 (MobileNetV2), section 6.2.

    >>> from detkit.backbones import SmallBackbone
    >>> trunk = SmallBackbone((16, 32), levels=(0, 1))
    >>> anchors = DefaultBoxes([(16, 24), (32, 48)], aspect_ratios=[(2,), (2,)], strides=trunk.strides)
    >>> detector = ssdlite(3, trunk, trunk.out_channels, anchors, preprocess=Preprocess((64, 64)))
    >>> type(detector.dense.head.class_head.levels[0]).__name__
    'SeparableConv'
    """
    convolution = partial(SeparableConv, norm=norm, linear=True)
    stage = ssd_stage(num_classes, out_channels, anchors, convolution=convolution, postprocess=postprocess)
    init_convolutions(stage.head, normal)
    return Detector(trunk, preprocess=preprocess, dense=stage)


@recipe
def ssdlite320_mobilenet_v3_large(num_classes: Count, *, features: nn.Sequential | None = None) -> Detector:
    """SSDlite on MobileNetV3 large: images resized to 320 x 320, six levels, 3234 default boxes.

    ``features`` are the layers of a (pretrained) MobileNet, ``torchvision.models.mobilenet_v3_large(...).features``; by
    default they are random, and the last ones half as wide. Sizes, normalization and thresholds are torchvision's; the
    matcher is :func:`~detkit.detectors.ssd`'s, which gives each object a default box of its own, as torchvision's does
    not where two claim the same. Source: Howard et al. 2019 (MobileNetV3), section 6.3.

    >>> sum(p.numel() for p in ssdlite320_mobilenet_v3_large(num_classes=90).parameters())
    3440060
    """
    norm = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.03)
    backbone = mobilenet_backbone(_random_features(norm) if features is None else features)
    neck = SSDExtra(
        backbone.out_channels,
        backbone.strides,
        levels=SSDLITE_LEVELS,
        norm=norm,
        activation=nn.ReLU6,
        convolution=SeparableConv,
    )
    init_convolutions(neck, normal)
    edges = [SIDE * scale for scale in (0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0)]
    return ssdlite(
        num_classes,
        nn.Sequential(backbone, neck),
        neck.out_channels,
        DefaultBoxes(list(pairwise(edges)), aspect_ratios=[(2, 3)] * 6, max_side=SIDE),
        preprocess=Preprocess((SIDE, SIDE), mean=(0.5,) * 3, std=(0.5,) * 3),
        postprocess=Postprocess(
            score_threshold=0.001, iou_threshold=0.55, max_detections=300, candidates_per_class=300
        ),
        norm=norm,
    )


def _random_features(norm: Norm) -> nn.Sequential:
    features = mobilenet_v3_large(weights=None, reduced_tail=True, norm_layer=norm).features
    init_convolutions(features, normal)
    return features
