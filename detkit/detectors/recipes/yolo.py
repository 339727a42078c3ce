"""The YOLO family: the cells of a grid learn the objects whose centers they contain."""

from collections.abc import Sequence

from torch import nn

from detkit._door import door
from detkit._ranges import Count, Probability
from detkit.anchors import GridAnchors, ResponsibleMatcher, ShapeMatcher
from detkit.anchors.generate import Shapes
from detkit.backbones import (
    Backbone,
    darknet19_backbone,
    darknet53_backbone,
    tiny_darknet_backbone,
    tiny_yolo_v1_backbone,
    yolo_v1_backbone,
)
from detkit.boxes import GridCoder
from detkit.detectors.dense import DenseStage
from detkit.detectors.detector import Detector
from detkit.detectors.postprocess import Postprocess
from detkit.detectors.preprocess import Preprocess
from detkit.detectors.recipe import recipe
from detkit.detectors.recipes.trunks import Norm, small_pyramid
from detkit.heads import CellHead, GridHead
from detkit.losses import YOLOLoss, YOLOv1Loss
from detkit.necks import Neck, PassthroughNeck, YOLONeck

_BLACK, _WHITE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
_CELLS = (1.3221, 1.73145), (3.19275, 4.00944), (5.05587, 8.09892), (9.47112, 4.84053), (11.2364, 10.0071)
_CELLS_TINY = (1.08, 1.19), (3.42, 4.41), (6.63, 11.38), (9.42, 5.11), (16.62, 10.52)
_V2 = tuple((32 * width, 32 * height) for width, height in _CELLS)
_V2_TINY = tuple((32 * width, 32 * height) for width, height in _CELLS_TINY)
_V3 = ((10, 13), (16, 30), (33, 23)), ((30, 61), (62, 45), (59, 119)), ((116, 90), (156, 198), (373, 326))
_V3_TINY = ((10, 14), (23, 27), (37, 58)), ((81, 82), (135, 169), (344, 319))


@recipe
def yolo_v1(num_classes: Count, *, per_cell: Count = 2) -> Detector:
    """YOLO v1: 24 convolutions, two fully connected layers, 7 x 7 cells with ``per_cell`` boxes each.

    Images are resized to 448 x 448, whatever their ratio. As in the paper, the first fully connected layer has 4096
    outputs (the authors' configuration has a locally connected one); as in the configuration, batch norm follows each
    convolution. Source: Redmon et al. 2016.

    >>> import torch
    >>> with torch.device("meta"):  # 271 million parameters, not held
    ...     detector = yolo_v1(num_classes=20)
    >>> detector.dense.head.layers[-1].out_features  # 7 x 7 cells of 20 classes and 2 boxes
    1470
    """
    return _v1(num_classes, yolo_v1_backbone(), per_cell, 4096)


@recipe
def yolo_v1_tiny(num_classes: Count, *, per_cell: Count = 2) -> Detector:
    """YOLO v1 tiny: eight convolutions and one fully connected layer; otherwise as :func:`yolo_v1`.

    Source: the authors' configuration (yolov1-tiny).

    >>> yolo_v1_tiny(num_classes=20).dense.head.layers
    Sequential(
      (0): Linear(in_features=12544, out_features=1470, bias=True)
    )
    """
    return _v1(num_classes, tiny_yolo_v1_backbone(), per_cell, None)


@recipe
def yolo_v2(num_classes: Count, *, size: tuple[Count, Count] = (416, 416), shapes: Shapes = _V2) -> Detector:
    """YOLO v2: Darknet-19 with a passthrough layer, one level at stride 32, five anchor shapes in each cell.

    Images are letterboxed to ``size`` (height, width), multiples of 32; any other may be set later. ``shapes`` are
    (width, height) in pixels, by default those of the authors' release for VOC;
    :func:`~detkit.anchors.cluster_anchors` finds them for a data set. Classes exclude each other, objectness learns the
    IoU of the predicted box, and the first 12,800 images also pull free boxes to their anchors. Source: Redmon and
    Farhadi 2017, and the authors' configuration.

    >>> yolo_v2(num_classes=20).dense.anchors.per_cell
    (5,)
    """
    backbone = darknet19_backbone()
    neck = PassthroughNeck(backbone.out_channels, backbone.strides)
    return _v2(num_classes, nn.Sequential(backbone, neck), neck, size, shapes)


@recipe
def yolo_v2_tiny(num_classes: Count, *, size: tuple[Count, Count] = (416, 416), shapes: Shapes = _V2_TINY) -> Detector:
    """YOLO v2 tiny: a chain of eight convolutions without passthrough; otherwise as :func:`yolo_v2`.

    Source: the authors' configuration (yolov2-tiny-voc).

    >>> yolo_v2_tiny(num_classes=20).dense.matcher
    ShapeMatcher(ignore_iou=0.6)
    """
    backbone = tiny_darknet_backbone()
    neck = PassthroughNeck(backbone.out_channels, backbone.strides, depth=1, passed=0)
    return _v2(num_classes, nn.Sequential(backbone, neck), neck, size, shapes)


@recipe
def yolo_v3(num_classes: Count, *, size: tuple[Count, Count] = (416, 416), shapes: Sequence[Shapes] = _V3) -> Detector:
    """YOLO v3: Darknet-53, three levels at strides 8, 16 and 32, three anchor shapes at each.

    Images are letterboxed to ``size`` (height, width), multiples of 32; any other may be set later. ``shapes`` are
    (width, height) in pixels of each level, finest first, by default those of the authors' release for COCO;
    :func:`~detkit.anchors.cluster_anchors` finds them for a data set. Source: Redmon and Farhadi 2018, and the authors'
    configuration.

    >>> sum(parameter.numel() for parameter in yolo_v3(num_classes=80).parameters())
    61949149
    """
    backbone = darknet53_backbone()
    neck = YOLONeck(backbone.out_channels, backbone.strides)
    return _v3(num_classes, nn.Sequential(backbone, neck), neck, size, shapes)


@recipe
def yolo_v3_tiny(
    num_classes: Count, *, size: tuple[Count, Count] = (416, 416), shapes: Sequence[Shapes] = _V3_TINY
) -> Detector:
    """YOLO v3 tiny: a chain of seven convolutions, two levels at strides 16 and 32; otherwise as :func:`yolo_v3`.

    Source: the authors' configuration (yolov3-tiny).

    >>> sum(parameter.numel() for parameter in yolo_v3_tiny(num_classes=80).parameters())
    8852366
    """
    backbone = tiny_darknet_backbone()
    neck = YOLONeck(backbone.out_channels, backbone.strides, out_channels=(256, 512), depths=(0, 1))
    return _v3(num_classes, nn.Sequential(backbone, neck), neck, size, shapes)


@recipe
def small_yolo_v3(
    num_classes: Count,
    *,
    size: tuple[Count, Count] = (320, 320),
    channels: Count = 64,
    blocks: Count = 1,
    norm: Norm = nn.BatchNorm2d,
    backbone: Backbone | None = None,
) -> Detector:
    """A small YOLO v3 to train from scratch, also on a CPU: a residual net, a pyramid at strides 8, 16 and 32.

    Images are letterboxed to ``size`` (height, width); anchors are squares 2, 3 and 4.5 strides wide. ``channels`` is
    the width of the pyramid, ``blocks`` the number of residual blocks per backbone stage, ``norm`` builds its
    normalization layers; ``backbone`` takes their place, as in :func:`~detkit.detectors.fpn_ssd`. Objectness starts at
    .01.

    >>> small_yolo_v3(num_classes=3, size=(224, 320)).preprocess.size
    (224, 320)
    """
    trunk, strides = small_pyramid(channels, blocks, norm, backbone)
    shapes = [[(factor * stride, factor * stride) for factor in (2.0, 3.0, 4.5)] for stride in strides]
    stage = yolo_stage(num_classes, [channels] * len(strides), GridAnchors(shapes=shapes, strides=strides), prior=0.01)
    return Detector(trunk, preprocess=fractions(size), dense=stage)


@door
def yolo_stage(
    num_classes: Count,
    in_channels: Sequence[Count],
    anchors: GridAnchors,
    *,
    matcher: ShapeMatcher | None = None,
    criterion: YOLOLoss | None = None,
    postprocess: nn.Module | None = None,
    prior: Probability | None = None,
) -> DenseStage:
    """The stage of YOLO v2 and v3 on levels of ``in_channels``; by default as in v3, suppressed at IoU .45.

    ``prior`` is the objectness to start at (None: one half).

    >>> yolo_stage(3, [16], GridAnchors(shapes=[[(16, 16)]], strides=(8,))).coder
    GridCoder(form='log', clamp=6.908)
    """
    return DenseStage(
        head=GridHead(in_channels, anchors.per_cell, num_classes=num_classes, prior=prior),
        anchors=anchors,
        matcher=ShapeMatcher() if matcher is None else matcher,
        coder=GridCoder(),
        criterion=YOLOLoss() if criterion is None else criterion,
        postprocess=Postprocess(score_threshold=0.005) if postprocess is None else postprocess,
    )


def fractions(size: tuple[int, int]) -> Preprocess:
    """Images letterboxed to ``size``, in [0, 1] as they are: what Darknet takes.

    >>> fractions((416, 416)).mean.flatten()
    tensor([0., 0., 0.])
    """
    return Preprocess(size, mean=_BLACK, std=_WHITE, letterbox=True)


def _v1(num_classes: int, backbone: Backbone, per_cell: int, hidden: int | None) -> Detector:
    side, stride = 448, backbone.strides[0]
    cells = side // stride
    channels = backbone.out_channels[0]
    stage = DenseStage(
        head=CellHead(channels, (cells, cells), per_cell=per_cell, num_classes=num_classes, hidden=hidden),
        anchors=GridAnchors(shapes=[[(side, side)] * per_cell], strides=(stride,)),
        matcher=ResponsibleMatcher(),
        coder=GridCoder(form="root"),
        criterion=YOLOv1Loss(),
        postprocess=Postprocess(score_threshold=0.005),
    )
    return Detector(backbone, preprocess=Preprocess((side, side), mean=_BLACK, std=_WHITE), dense=stage)


def _v2(num_classes: int, trunk: nn.Sequential, neck: Neck, size: tuple[int, int], shapes: Shapes) -> Detector:
    stage = yolo_stage(
        num_classes,
        neck.out_channels,
        GridAnchors(shapes=[shapes], strides=neck.strides),
        matcher=ShapeMatcher(ignore_iou=0.6),
        criterion=YOLOLoss(classes="softmax", rescore=True, object_weight=5.0, prior_images=12_800),
    )
    return Detector(trunk, preprocess=fractions(size), dense=stage)


def _v3(
    num_classes: int, trunk: nn.Sequential, neck: Neck, size: tuple[int, int], shapes: Sequence[Shapes]
) -> Detector:
    anchors = GridAnchors(shapes=shapes, strides=neck.strides)
    return Detector(trunk, preprocess=fractions(size), dense=yolo_stage(num_classes, neck.out_channels, anchors))
