"""The SSD family: one trunk, default boxes, a class head and a box head at every level."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

from detkit._door import door
from detkit._ranges import Count
from detkit.anchors import BipartiteMatcher, DefaultBoxes, GridAnchors
from detkit.backbones import Backbone, SSDVGGBackbone, tiny_ssd_backbone, vgg_features
from detkit.boxes import DeltaCoder
from detkit.detectors.dense import DenseStage
from detkit.detectors.detector import Detector
from detkit.detectors.postprocess import Postprocess
from detkit.detectors.preprocess import Preprocess
from detkit.detectors.recipe import recipe
from detkit.detectors.recipes.trunks import Norm, small_pyramid
from detkit.heads import DenseHead, MultiBoxHead, prediction_conv
from detkit.losses import MultiBoxLoss
from detkit.necks import SSD512_LEVELS, SSDExtra

VGG_MEAN, VGG_STD = (0.48235, 0.45882, 0.40784), (1 / 255, 1 / 255, 1 / 255)
"""The input that VGG-16 was trained on: pixels in 0..255 minus the channel means."""


@recipe
def ssd(
    num_classes: Count,
    trunk: nn.Module,
    out_channels: Sequence[Count],
    anchors: DefaultBoxes,
    *,
    preprocess: Preprocess,
    postprocess: Postprocess | None = None,
) -> Detector:
    """An SSD on any trunk: ``trunk`` returns one feature map per level, level l with ``out_channels[l]`` channels.

    It matches at IoU .5, codes deltas with variances .1 and .2, and mines 3 hard negatives per positive.
    Source: Liu et al. 2016.

    >>> from detkit.backbones import SmallBackbone
    >>> trunk = SmallBackbone((16, 32), levels=(0, 1))
    >>> anchors = DefaultBoxes([(16, 24), (32, 48)], aspect_ratios=[(2,), (2,)], strides=trunk.strides)
    >>> detector = ssd(3, trunk, trunk.out_channels, anchors, preprocess=Preprocess((64, 64)))
    >>> list(detector.stages)
    ['dense']
    """
    stage = ssd_stage(num_classes, out_channels, anchors, postprocess=postprocess)
    return Detector(trunk, preprocess=preprocess, dense=stage)


@door
def ssd_stage(
    num_classes: Count,
    out_channels: Sequence[Count],
    anchors: DefaultBoxes | GridAnchors,
    *,
    convolution: Callable[[int, int], nn.Module] = prediction_conv,
    matcher: nn.Module | None = None,
    coder: nn.Module | None = None,
    criterion: MultiBoxLoss | None = None,
    postprocess: Postprocess | None = None,
) -> DenseStage:
    """SSD's stage on levels of ``out_channels``: parts that are left out are those of :func:`ssd`.

    ``convolution`` makes what predicts the classes of a level, and what predicts its boxes: see
    :class:`~detkit.heads.MultiBoxHead`.

    >>> ssd_stage(3, [16], DefaultBoxes([(16, 24)], aspect_ratios=[(2,)])).matcher
    BipartiteMatcher(positive_iou=0.5, negative_iou=0.5, greedy=True)
    """
    classes, boxes = (
        MultiBoxHead(out_channels, anchors.per_cell, outputs=outputs, convolution=convolution)
        for outputs in (num_classes + 1, 4)
    )
    return DenseStage(
        head=DenseHead(classes, boxes),
        anchors=anchors,
        matcher=BipartiteMatcher(positive_iou=0.5) if matcher is None else matcher,
        coder=DeltaCoder((10.0, 10.0, 5.0, 5.0)) if coder is None else coder,
        criterion=MultiBoxLoss(negatives_per_positive=3.0) if criterion is None else criterion,
        postprocess=Postprocess() if postprocess is None else postprocess,
    )


@recipe
def ssd300(num_classes: Count, *, features: nn.Sequential | None = None) -> Detector:
    """SSD300 on VGG-16: images resized to 300 x 300, six levels, 8732 default boxes.

    ``features`` are the layers of a (pretrained) VGG-16, ``torchvision.models.vgg16(...).features``; by default they
    are random. Sizes and steps are those of the authors' release for VOC. Source: Liu et al. 2016, section 3.

    >>> sum(p.numel() for p in ssd300(num_classes=90).parameters())
    35641826
    """
    backbone = SSDVGGBackbone(vgg_features() if features is None else features)
    neck = SSDExtra(backbone.out_channels, backbone.strides)
    edges = (30, 60, 111, 162, 213, 264, 315)
    anchors = DefaultBoxes(
        list(pairwise(edges)),
        aspect_ratios=[(2,), (2, 3), (2, 3), (2, 3), (2,), (2,)],
        strides=(8, 16, 32, 64, 100, 300),
    )
    preprocess = Preprocess((300, 300), mean=VGG_MEAN, std=VGG_STD)
    return ssd(num_classes, nn.Sequential(backbone, neck), neck.out_channels, anchors, preprocess=preprocess)


@recipe
def ssd512(num_classes: Count, *, features: nn.Sequential | None = None) -> Detector:
    """SSD512 on VGG-16: images resized to 512 x 512, seven levels, 24,564 default boxes; otherwise as :func:`ssd300`.

    Source: Liu et al. 2016, section 3.3 ("SSD512"), sizes and steps of the authors' release for VOC.

    >>> ssd512(num_classes=20).dense.anchors.per_cell
    (4, 6, 6, 6, 6, 4, 4)
    """
    backbone = SSDVGGBackbone(vgg_features() if features is None else features)
    neck = SSDExtra(backbone.out_channels, backbone.strides, levels=SSD512_LEVELS)
    edges = (35.84, 76.8, 153.6, 230.4, 307.2, 384.0, 460.8, 537.6)
    anchors = DefaultBoxes(
        list(pairwise(edges)),
        aspect_ratios=[(2,), (2, 3), (2, 3), (2, 3), (2, 3), (2,), (2,)],
        strides=(8, 16, 32, 64, 128, 256, 512),
    )
    preprocess = Preprocess((512, 512), mean=VGG_MEAN, std=VGG_STD)
    return ssd(num_classes, nn.Sequential(backbone, neck), neck.out_channels, anchors, preprocess=preprocess)


@recipe
def tiny_ssd(num_classes: Count) -> Detector:
    """TinySSD: images resized to 256 x 256, five levels of 32, 16, 8, 4 and 1 cells a side, 5444 default boxes.

    It trains with SSD's loss and hard negatives; the source takes a plain mean over all anchors.
    Source: Dive into Deep Learning, section 14.7.

    >>> tiny_ssd(num_classes=1).dense.anchors.per_cell
    (4, 4, 4, 4, 4)
    """
    backbone = tiny_ssd_backbone()
    relative = [(0.2, 0.272), (0.37, 0.447), (0.54, 0.619), (0.71, 0.79), (0.88, 0.961)]
    sizes = [(256 * first, 256 * second**2 / first) for first, second in relative]
    anchors = DefaultBoxes(sizes, aspect_ratios=[(2,)] * 5)
    return ssd(num_classes, backbone, backbone.out_channels, anchors, preprocess=Preprocess((256, 256)))


@recipe
def fpn_ssd(
    num_classes: Count,
    *,
    size: tuple[Count, Count] = (320, 320),
    channels: Count = 64,
    blocks: Count = 1,
    norm: Norm = nn.BatchNorm2d,
    backbone: Backbone | None = None,
) -> Detector:
    """A small SSD to train from scratch: a residual net with a feature pyramid, levels at strides 8, 16 and 32.

    Images are resized to ``size`` (height, width); default boxes are 3, 4.5 and 6 strides wide, which suits objects of
    about 20 to 250 pixels *after resizing*. ``channels`` is the width of the pyramid, ``blocks`` the number of residual
    blocks per backbone stage; ``norm``, called with the number of channels, builds its normalization layers. In their
    place ``backbone`` is one of your own, or of torchvision or timm, with trained weights or without:
    :class:`~detkit.backbones.TorchvisionBackbone`, :class:`~detkit.backbones.TimmBackbone`.

    >>> fpn_ssd(num_classes=3, size=(240, 320)).preprocess.size
    (240, 320)
    """
    trunk, strides = small_pyramid(channels, blocks, norm, backbone)
    sizes = [(3.0 * stride, 6.0 * stride) for stride in strides]
    anchors = DefaultBoxes(sizes, aspect_ratios=[(2,)] * len(sizes), strides=strides)
    return ssd(num_classes, trunk, [channels] * len(strides), anchors, preprocess=Preprocess(size))
