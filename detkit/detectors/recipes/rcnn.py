"""Two-stage detectors: Fast, Faster, Mask and Keypoint R-CNN on a feature pyramid, and small ones to train on a CPU."""

from collections.abc import Sequence

from torch import nn
from torchvision.models.resnet import resnet50

from detkit._door import door
from detkit._ranges import Count, Positive
from detkit.anchors import BalancedSampler, GridAnchors, ThresholdMatcher
from detkit.backbones import Backbone, ResNetBackbone
from detkit.boxes import DeltaCoder, PyramidRoIAlign
from detkit.detectors.detector import Detector
from detkit.detectors.keypoint import KeypointStage
from detkit.detectors.mask import MaskStage
from detkit.detectors.postprocess import Postprocess
from detkit.detectors.preprocess import Preprocess
from detkit.detectors.recipe import recipe
from detkit.detectors.recipes.trunks import Norm, short_side_800, small_pyramid
from detkit.detectors.roi import BoxStage
from detkit.detectors.rpn import ProposalPostprocess, RPNStage
from detkit.heads import BoxHead, KeypointHead, MaskHead, RPNHead, dense_body
from detkit.losses import RCNNLoss, RPNLoss
from detkit.necks import FPN


@recipe
def faster_rcnn(
    num_classes: Count, *, backbone: Backbone | None = None, preprocess: Preprocess | None = None
) -> Detector:
    """Faster R-CNN with a feature pyramid: proposals from five levels, regions pooled from the finest four.

    ``backbone`` has strides 4, 8, 16 and 32 (default: an untrained ResNet-50); images are resized to a short side of
    800 pixels, the long side at most 1333, unless ``preprocess`` says otherwise. Settings are torchvision's.
    Source: Ren et al. 2015; Lin et al. 2017, "Feature Pyramid Networks".

    >>> sum(parameter.numel() for parameter in faster_rcnn(num_classes=90).parameters())
    41804306
    """
    trunk, channels, strides = _pyramid(backbone)
    return Detector(
        trunk,
        preprocess=short_side_800() if preprocess is None else preprocess,
        rpn=rpn_stage(channels, rpn_anchors(strides)),
        box=box_stage(num_classes, channels, strides[:-1]),
    )


@recipe
def fast_rcnn(
    num_classes: Count, *, backbone: Backbone | None = None, preprocess: Preprocess | None = None
) -> Detector:
    """Fast R-CNN with a feature pyramid: proposals come from outside, ``detector(images, targets, proposals)``.

    Arguments as in :func:`faster_rcnn`. Source: Girshick 2015.

    >>> list(fast_rcnn(num_classes=2).stages)
    ['box']
    """
    trunk, channels, strides = _pyramid(backbone)
    return Detector(
        trunk,
        preprocess=short_side_800() if preprocess is None else preprocess,
        box=box_stage(num_classes, channels, strides[:-1]),
    )


@recipe
def mask_rcnn(
    num_classes: Count, *, backbone: Backbone | None = None, preprocess: Preprocess | None = None
) -> Detector:
    """Mask R-CNN: :func:`faster_rcnn`, and a mask for each detection. Targets need ``masks``. Source: He et al. 2017.

    >>> sum(parameter.numel() for parameter in mask_rcnn(num_classes=90).parameters())
    44450156
    """
    trunk, channels, strides = _pyramid(backbone)
    return Detector(
        trunk,
        preprocess=short_side_800() if preprocess is None else preprocess,
        rpn=rpn_stage(channels, rpn_anchors(strides)),
        box=box_stage(num_classes, channels, strides[:-1]),
        mask=mask_stage(num_classes, channels, strides[:-1]),
    )


@recipe
def keypoint_rcnn(
    num_classes: Count = 1,
    *,
    num_keypoints: Count = 17,
    backbone: Backbone | None = None,
    preprocess: Preprocess | None = None,
) -> Detector:
    """Keypoint R-CNN: :func:`faster_rcnn`, and the keypoints of each detection. Targets need ``keypoints``.

    Source: He et al. 2017, section 5.

    >>> list(keypoint_rcnn().stages)
    ['rpn', 'box', 'keypoint']
    """
    trunk, channels, strides = _pyramid(backbone)
    return Detector(
        trunk,
        preprocess=short_side_800() if preprocess is None else preprocess,
        rpn=rpn_stage(channels, rpn_anchors(strides)),
        box=box_stage(num_classes, channels, strides[:-1]),
        keypoint=keypoint_stage(num_keypoints, channels, strides[:-1]),
    )


@recipe
def small_faster_rcnn(
    num_classes: Count,
    *,
    size: tuple[Count, Count] = (320, 320),
    channels: Count = 64,
    blocks: Count = 1,
    norm: Norm = nn.BatchNorm2d,
    backbone: Backbone | None = None,
) -> Detector:
    """A small Faster R-CNN to train from scratch, also on a CPU: a residual net, a pyramid at strides 8, 16 and 32.

    Images are resized to ``size`` (height, width); anchors are 4 strides wide. ``channels`` is the width of the
    pyramid, ``blocks`` the number of residual blocks per backbone stage, ``norm`` builds its normalization layers.
    ``backbone`` takes their place, as in :func:`~detkit.detectors.fpn_ssd`.

    >>> small_faster_rcnn(num_classes=3, size=(240, 320)).preprocess.size
    (240, 320)
    """
    trunk, strides = small_pyramid(channels, blocks, norm, backbone)
    return Detector(trunk, preprocess=Preprocess(size), **_small_stages(num_classes, channels, strides))


@recipe
def small_mask_rcnn(
    num_classes: Count,
    *,
    size: tuple[Count, Count] = (320, 320),
    channels: Count = 64,
    blocks: Count = 1,
    norm: Norm = nn.BatchNorm2d,
    backbone: Backbone | None = None,
) -> Detector:
    """:func:`small_faster_rcnn` with masks: two convolutions and a deconvolution on regions of 14 x 14.

    >>> list(small_mask_rcnn(num_classes=3).stages)
    ['rpn', 'box', 'mask']
    """
    trunk, strides = small_pyramid(channels, blocks, norm, backbone)
    mask = mask_stage(num_classes, channels, strides, widths=(channels, channels), canonical_size=_SMALL_CANONICAL)
    return Detector(trunk, preprocess=Preprocess(size), **_small_stages(num_classes, channels, strides), mask=mask)


@door
def rpn_anchors(strides: Sequence[Count], *, size: Positive = 8.0) -> GridAnchors:
    """Anchors of one size, ``size`` strides, at each level, in ratios h/w of 1/2, 1 and 2, as torchvision rounds them.

    >>> rpn_anchors((4, 8)).per_cell
    (3, 3)
    """
    sizes = [(size * stride,) for stride in strides]
    return GridAnchors(sizes, aspect_ratios=(0.5, 1.0, 2.0), ratio_is="h/w", centered=False, whole_pixels=True)


@door
def rpn_stage(
    channels: Count,
    anchors: GridAnchors,
    *,
    depth: Count = 1,
    postprocess: ProposalPostprocess | None = None,
    training_postprocess: ProposalPostprocess | None = None,
) -> RPNStage:
    """A region proposal network on levels of ``channels``: positive at IoU .7, negative below .3, 256 sampled.

    It returns at most 1000 proposals, 2000 in training, unless the postprocesses say otherwise.

    >>> rpn_stage(16, rpn_anchors((8, 16))).sampler
    BalancedSampler(256, positive_fraction=0.5)
    """
    if postprocess is None:
        postprocess = ProposalPostprocess()
        training_postprocess = training_postprocess or ProposalPostprocess(
            candidates_per_level=2000, max_proposals=2000
        )
    return RPNStage(
        head=RPNHead(channels, anchors.per_cell[0], depth=depth),
        anchors=anchors,
        matcher=ThresholdMatcher(positive_iou=0.7, negative_iou=0.3, low_quality=True),
        sampler=BalancedSampler(256, positive_fraction=0.5),
        coder=DeltaCoder(),
        criterion=RPNLoss(),
        postprocess=postprocess,
        training_postprocess=training_postprocess,
    )


@door
def box_stage(
    num_classes: Count,
    channels: Count,
    strides: Sequence[Count],
    *,
    head: BoxHead | None = None,
    sampler: BalancedSampler | None = None,
    canonical_size: Positive = 224,
) -> BoxStage:
    """Fast R-CNN's stage on levels of ``channels``: 7 x 7 regions, positive at IoU .5, 512 sampled, a quarter positive.

    >>> box_stage(3, 16, (8, 16)).pool
    PyramidRoIAlign(7, strides=(8, 16), sampling_ratio=2)
    """
    return BoxStage(
        pool=PyramidRoIAlign(7, strides=strides, canonical_size=canonical_size),
        head=BoxHead(dense_body(channels, 7), 1024, num_classes=num_classes) if head is None else head,
        matcher=ThresholdMatcher(positive_iou=0.5, negative_iou=0.5, low_quality=False),
        sampler=BalancedSampler(512, positive_fraction=0.25) if sampler is None else sampler,
        coder=DeltaCoder((10.0, 10.0, 5.0, 5.0)),
        criterion=RCNNLoss(),
        postprocess=Postprocess(
            score_threshold=0.05, iou_threshold=0.5, max_detections=100, candidates_per_class=None, min_size=1e-2
        ),
    )


@door
def mask_stage(
    num_classes: Count,
    channels: Count,
    strides: Sequence[Count],
    *,
    widths: Sequence[Count] = (256, 256, 256, 256),
    canonical_size: Positive = 224,
) -> MaskStage:
    """Mask R-CNN's stage on levels of ``channels``: masks of 28 x 28 from regions of 14 x 14.

    >>> mask_stage(3, 16, (8, 16)).pool.output_size
    14
    """
    return MaskStage(
        pool=PyramidRoIAlign(14, strides=strides, canonical_size=canonical_size),
        head=MaskHead(channels, num_classes, channels=widths),
    )


@door
def keypoint_stage(num_keypoints: Count, channels: Count, strides: Sequence[Count]) -> KeypointStage:
    """Keypoint R-CNN's stage on levels of ``channels``: heatmaps of 56 x 56 from regions of 14 x 14.

    >>> keypoint_stage(5, 16, (8, 16)).pool.output_size
    14
    """
    return KeypointStage(pool=PyramidRoIAlign(14, strides=strides), head=KeypointHead(channels, num_keypoints))


_SMALL_CANONICAL = 96.0


def _pyramid(backbone: Backbone | None) -> tuple[nn.Sequential, int, tuple[int, ...]]:
    """The backbone with its pyramid, and the pyramid's channels and strides; its last level serves proposals only."""
    if backbone is None:
        backbone = ResNetBackbone(resnet50(weights=None), levels=("layer1", "layer2", "layer3", "layer4"))
    neck = FPN(backbone.out_channels, backbone.strides, extra=1)
    return nn.Sequential(backbone, neck), neck.out_channels[0], neck.strides


def _small_stages(num_classes: int, channels: int, strides: Sequence[int]) -> dict[str, RPNStage | BoxStage]:
    proposals = ProposalPostprocess(candidates_per_level=300, max_proposals=300)
    width = 4 * channels
    head = BoxHead(dense_body(channels, 7, width=width), width, num_classes=num_classes)
    sampler = BalancedSampler(128, positive_fraction=0.25)
    return {
        "rpn": rpn_stage(channels, rpn_anchors(strides, size=4.0), postprocess=proposals),
        "box": box_stage(num_classes, channels, strides, head=head, sampler=sampler, canonical_size=_SMALL_CANONICAL),
    }
