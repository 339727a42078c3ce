"""DETR: a trunk, a transformer and a fixed number of queries; no anchors and no NMS."""

from torch import nn
from torchvision.models.resnet import resnet50

from detkit._door import door
from detkit._ranges import Count, Fraction
from detkit.anchors import HungarianMatcher
from detkit.backbones import Backbone, ResNetBackbone, SmallBackbone
from detkit.detectors.box_queries import BoxQueryStage
from detkit.detectors.denoising import DenoisingQueries
from detkit.detectors.detector import Detector
from detkit.detectors.preprocess import Preprocess
from detkit.detectors.recipe import recipe
from detkit.detectors.set_prediction import SetPostprocess, SetPredictionStage
from detkit.heads.set_prediction import RefinementHead, SetPredictionHead
from detkit.layers import (
    BoxDecoder,
    BoxPositions,
    BoxQueries,
    DecoderLayer,
    DeformableAttention,
    DeformableDecoderLayer,
    EncoderLayer,
    MapEncoder,
    SinePositions,
    TransformerDecoder,
    TransformerEncoder,
)
from detkit.losses.set_prediction import SetPredictionLoss

HEAD = 32
"""Channels of one head of attention."""


@recipe
def detr(num_classes: Count, *, backbone: Backbone | None = None, preprocess: Preprocess | None = None) -> Detector:
    """DETR: 100 queries, 6 encoder and 6 decoder layers of 256 channels on the last map of ``backbone``, stride 32.

    The default is an untrained ResNet-50; the published one is pretrained, with frozen batch norm and stem. Images are
    resized to a short side of 800 pixels, the long side at most 1333, unless ``preprocess`` says otherwise. Trained by
    AdamW, 1e-4 and 1e-5 for the backbone, weight decay 1e-4, gradients clipped at 0.1. Source: Carion et al. 2020;
    COCO's published weights have 91 classes.

    >>> sum(parameter.numel() for parameter in detr(num_classes=91).parameters())
    41577888
    """
    backbone = ResNetBackbone(resnet50(weights=None), levels=("layer4",)) if backbone is None else backbone
    preprocess = Preprocess(800, max_size=1333) if preprocess is None else preprocess
    return Detector(backbone, preprocess=preprocess, objects=detr_stage(num_classes, backbone.out_channels[-1]))


@recipe
def detr_dc5(num_classes: Count, *, preprocess: Preprocess | None = None) -> Detector:
    """:func:`detr` on an untrained ResNet-50 whose last stage is dilated, not strided: maps of stride 16.

    >>> detr_dc5(num_classes=91).trunk.strides
    (16,)
    """
    model = resnet50(weights=None, replace_stride_with_dilation=[False, False, True])
    return detr(num_classes, backbone=ResNetBackbone(model, levels=("layer4",)), preprocess=preprocess)


@recipe
def small_detr(
    num_classes: Count,
    *,
    size: tuple[Count, Count] = (320, 320),
    channels: Count = 128,
    depth: Count = 3,
    queries: Count = 50,
    backbone: Backbone | None = None,
) -> Detector:
    """A small DETR that trains from scratch in minutes: queries are boxes that attend to a few points at stride 8.

    A residual net, one encoder layer, ``depth`` decoder layers that refine boxes, 5 groups of denoising queries. Images
    are resized to ``size`` (height, width). ``channels``, a multiple of 32, is the width of the transformer. Of another
    ``backbone``, as in :func:`~detkit.detectors.fpn_ssd`, the last feature map is read. Trained by
    AdamW, 1e-3, betas 0.9 and 0.98. Sources: those of :class:`~detkit.detectors.box_queries.BoxQueryStage`.

    >>> small_detr(num_classes=3, size=(240, 320)).preprocess.size
    (240, 320)
    """
    backbone = SmallBackbone((channels // 4, channels // 2), levels=(1,), blocks=2) if backbone is None else backbone
    stage = box_query_stage(
        num_classes, backbone.out_channels[-1], channels=channels, hidden=2 * channels, depth=depth, queries=queries
    )
    return Detector(backbone, preprocess=Preprocess(size), objects=stage)


@door
def box_query_stage(
    num_classes: Count,
    in_channels: Count,
    *,
    channels: Count = 256,
    hidden: Count = 1024,
    depth: Count = 6,
    encoder_depth: Count = 1,
    queries: Count = 300,
    groups: Count = 5,
) -> BoxQueryStage:
    """The stage of :func:`small_detr` on a feature map of ``in_channels``: 32 channels per head, pre-norm layers.

    ``groups`` is the number of groups of denoising queries.

    >>> box_query_stage(3, 64, channels=64, depth=1, queries=5).denoising
    DenoisingQueries(
      groups=5, label_noise=0.2, box_noise=0.4, max_queries=640, contrastive=False
      (labels): Embedding(3, 64)
    )
    """
    heads = heads_of("box_query_stage", channels)
    encoder = [EncoderLayer(channels, heads, hidden=hidden, norm_first=True) for _ in range(encoder_depth)]
    looks = [DeformableAttention(channels, heads, levels=1) for _ in range(depth)]
    decoder = [
        DeformableDecoderLayer(channels, heads, hidden=hidden, memory_attention=look, norm_first=True) for look in looks
    ]
    return BoxQueryStage(
        encoder=MapEncoder(
            nn.Conv2d(in_channels, channels, 1),
            positions=SinePositions(channels),
            encoder=TransformerEncoder(encoder, norm=nn.LayerNorm(channels)),
        ),
        queries=BoxQueries(queries, channels),
        decoder=BoxDecoder(
            decoder,
            [RefinementHead(channels, num_classes=num_classes) for _ in range(depth)],
            positions=BoxPositions(channels),
            norm=nn.LayerNorm(channels),
        ),
        denoising=DenoisingQueries(num_classes, channels, groups=groups),
        matcher=HungarianMatcher(),
        criterion=SetPredictionLoss(),
        postprocess=SetPostprocess(max_detections=queries),
    )


@door
def detr_stage(
    num_classes: Count,
    in_channels: Count,
    *,
    channels: Count = 256,
    hidden: Count = 2048,
    depth: Count = 6,
    queries: Count = 100,
    dropout: Fraction = 0.1,
    norm_first: bool = False,
) -> SetPredictionStage:
    """DETR's stage on a feature map of ``in_channels``: 32 channels per head, ``depth`` encoder and decoder layers
    each.

    >>> detr_stage(3, 64, channels=64, depth=1, queries=5).queries
    Embedding(5, 64)
    """
    heads, settings = heads_of("detr_stage", channels), {"dropout": dropout, "norm_first": norm_first}
    encoder = [EncoderLayer(channels, heads, hidden=hidden, **settings) for _ in range(depth)]
    decoder = [DecoderLayer(channels, heads, hidden=hidden, **settings) for _ in range(depth)]
    return SetPredictionStage(
        encoder=MapEncoder(
            nn.Conv2d(in_channels, channels, 1),
            positions=SinePositions(channels),
            encoder=TransformerEncoder(encoder, norm=nn.LayerNorm(channels) if norm_first else None),
        ),
        decoder=TransformerDecoder(decoder, norm=nn.LayerNorm(channels)),
        queries=nn.Embedding(queries, channels),
        head=SetPredictionHead(channels, num_classes=num_classes),
        matcher=HungarianMatcher(),
        criterion=SetPredictionLoss(),
        postprocess=SetPostprocess(max_detections=queries),
    )


def heads_of(function: str, channels: int) -> int:
    """The number of heads of 32 channels. Raises ValueError, naming the ``function``, where they do not fit.

    >>> heads_of("detr_stage", 256)
    8
    """
    if channels < HEAD or channels % HEAD:
        raise ValueError(f"{function}: channels={channels} must be a multiple of {HEAD}, the channels of a head")
    return channels // HEAD
