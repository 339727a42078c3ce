"""RT-DETR v2: convolutions, attention on the coarsest map alone, and queries chosen from the cells; no NMS."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

from torch import nn
from torchvision.models import resnet18, resnet34, resnet50, resnet101

from detkit._door import door
from detkit._ranges import Count, Positive
from detkit.anchors import HungarianMatcher
from detkit.backbones import ResNetBackbone, SmallBackbone, resnet_d
from detkit.detectors.denoising import DenoisingQueries
from detkit.detectors.detector import Detector
from detkit.detectors.preprocess import Preprocess
from detkit.detectors.recipe import recipe
from detkit.detectors.selected_queries import QueryLosses, SelectedQueryStage
from detkit.detectors.set_prediction import SetPostprocess
from detkit.heads import RefinementHead
from detkit.heads.set_prediction import small_net
from detkit.layers import (
    BoxDecoder,
    ConvNormActivation,
    CSPRepBlock,
    DeformableAttention,
    DeformableDecoderLayer,
    EncoderLayer,
    GridPositions,
    LevelProjection,
    MapAttention,
    QuerySelection,
    TransformerEncoder,
)
from detkit.layers.box_decoder import BoxNet
from detkit.losses import VarifocalSetLoss
from detkit.necks import HybridNeck

EDGE = 1e-5
"""How near to 0 and 1 the logits of RT-DETR's boxes go."""


@recipe
def rt_detr_v2(
    num_classes: Count, *, depth: Literal[18, 34, 50, 101] = 50, preprocess: Preprocess | None = None
) -> Detector:
    """RT-DETR v2 on an untrained ResNet-D of ``depth`` layers: 300 queries, three levels, 4 points on each.

    The published sizes: 3 decoder layers on 18 layers, 4 on 34, else 6; blocks of the neck half as wide on 18 and 34;
    384 channels in the neck on 101. Images are resized to 640 x 640, not normalized, unless ``preprocess`` says
    otherwise. Published ones are pretrained, those of 50 and 101 layers with frozen batch norm. Trained by AdamW, 1e-4
    and 1e-5 for the backbone, weight decay 1e-4, gradients clipped at 0.1, an average of the weights. Sources: Zhao et
    al. 2024, "DETRs Beat YOLOs on Real-time Object Detection"; Lv et al. 2024, "RT-DETRv2". Raises
    ValueError for another depth.

    >>> sum(parameter.numel() for parameter in rt_detr_v2(num_classes=80, depth=18).parameters())
    20184208
    """
    builders = {18: resnet18, 34: resnet34, 50: resnet50, 101: resnet101}
    if depth not in builders:
        raise ValueError(f"rt_detr_v2: depth={depth!r}; allowed are 18, 34, 50 and 101")
    backbone = ResNetBackbone(resnet_d(builders[depth](weights=None)))
    channels, hidden = (384, 2048) if depth == 101 else (256, 1024)
    neck = hybrid_neck(
        *(backbone.out_channels, backbone.strides),
        channels=channels,
        hidden=hidden,
        expansion=0.5 if depth < 50 else 1.0,
    )
    stage = rt_detr_stage(num_classes, neck.out_channels, depth={18: 3, 34: 4}.get(depth, 6))
    preprocess = Preprocess((640, 640), mean=(0, 0, 0), std=(1, 1, 1)) if preprocess is None else preprocess
    return Detector(nn.Sequential(backbone, neck), preprocess=preprocess, objects=stage)


@recipe
def small_rt_detr(
    num_classes: Count,
    *,
    size: tuple[Count, Count] = (320, 320),
    channels: Count = 64,
    depth: Count = 3,
    queries: Count = 60,
) -> Detector:
    """A small RT-DETR that trains from scratch in minutes: three levels of a residual net, from stride 8 on.

    Images are resized to ``size`` (height, width). ``channels``, a multiple of 32, is the width of neck and decoder.
    Trained by AdamW, 1e-3, betas 0.9 and 0.98. Sources: those of :func:`rt_detr_v2`.

    >>> small_rt_detr(num_classes=3, size=(240, 320)).trunk[1].strides
    (8, 16, 32)
    """
    backbone = small_levels(channels)
    neck = hybrid_neck(
        backbone.out_channels, backbone.strides, channels=channels, hidden=2 * channels, depth=1, expansion=0.5
    )
    stage = rt_detr_stage(
        *(num_classes, neck.out_channels),
        channels=channels,
        depth=depth,
        queries=queries,
        denoising=100,
    )
    return Detector(nn.Sequential(backbone, neck), preprocess=Preprocess(size), objects=stage)


def small_levels(channels: int) -> SmallBackbone:
    """Three levels from stride 8 on, as wide as ``channels`` and twice that.

    >>> small_levels(64).out_channels
    (64, 128, 128)
    """
    return SmallBackbone((channels // 2, channels, 2 * channels, 2 * channels), levels=(1, 2, 3), blocks=2)


@door
def hybrid_neck(
    in_channels: Sequence[Count],
    in_strides: Sequence[Count],
    *,
    channels: Count = 256,
    hidden: Count = 1024,
    depth: Count = 3,
    expansion: Positive = 1.0,
) -> HybridNeck:
    """RT-DETR's neck: attention of 8 heads, or fewer below 128 channels, and blocks of ``depth`` RepVGG blocks.

    ``hidden`` is the width of the feed-forward net behind the attention; ``expansion`` as in
    :class:`~detkit.layers.CSPRepBlock`.

    >>> hybrid_neck([8, 16], [8, 16], channels=32, hidden=64).out_channels
    (32, 32)
    """
    convolution = partial(ConvNormActivation, activation=nn.SiLU)
    return HybridNeck(
        *(in_channels, in_strides),
        channels=channels,
        attention=map_attention("hybrid_neck", channels, hidden),
        fuse=partial(CSPRepBlock, depth=depth, expansion=expansion),
        lateral=lambda width: convolution(width, width, kernel_size=1),
        downsample=lambda width: convolution(width, width, stride=2),
    )


@door
def rt_detr_stage(
    num_classes: Count,
    in_channels: Sequence[Count],
    *,
    channels: Count = 256,
    depth: Count = 6,
    queries: Count = 300,
    points: Count = 4,
    denoising: Count = 200,
) -> SelectedQueryStage:
    """RT-DETR's stage on feature maps of ``in_channels``: 8 heads, or fewer below 128 channels, of 32 each.

    Every head looks at ``points`` on each level; ``denoising`` is the largest number of denoising queries.

    >>> rt_detr_stage(3, [64, 64], channels=64, depth=1, queries=5).selection.count
    5
    """
    heads = query_heads("rt_detr_stage", channels)
    looks = [DeformableAttention(channels, heads, levels=len(in_channels), points=points) for _ in range(depth)]
    head = partial(RefinementHead, channels, num_classes=num_classes, background=False, edge=EDGE)
    return SelectedQueryStage(
        encoder=LevelProjection([level_projection(width, channels) for width in in_channels]),
        selection=QuerySelection(
            nn.Sequential(nn.Linear(channels, channels), nn.LayerNorm(channels)), head(), count=queries
        ),
        decoder=BoxDecoder(
            [DeformableDecoderLayer(channels, heads, hidden=4 * channels, memory_attention=look) for look in looks],
            [head() for _ in range(depth)],
            positions=box_embedding(channels),
        ),
        denoising=contrastive_queries(num_classes, channels, denoising),
        losses=QueryLosses(focal_matcher(), VarifocalSetLoss()),
        postprocess=SetPostprocess(max_detections=queries, every_class=True),
    )


def query_heads(function: str, channels: int) -> int:
    """8 heads, as all published sizes have; below 128 channels heads of 32.

    Raises ValueError, naming the ``function``, where they do not fit.

    >>> query_heads("rt_detr_stage", 384), query_heads("rt_detr_stage", 64)
    (8, 2)
    """
    unit = 8 if channels >= 128 else 32
    if channels < 32 or channels % unit:
        raise ValueError(f"{function}: channels={channels} must be a multiple of 8, or of 32 below 128")
    return channels // 32 if channels < 128 else 8


def map_attention(function: str, channels: int, hidden: int) -> MapAttention:
    """One layer of attention among the cells of a map, with grid positions.

    >>> map_attention("hybrid_neck", 32, 64).positions
    GridPositions(channels=32, temperature=10000.0)
    """
    layer = EncoderLayer(channels, query_heads(function, channels), hidden=hidden, activation=nn.GELU)
    return MapAttention(GridPositions(channels), TransformerEncoder([layer]))


def level_projection(in_channels: int, channels: int) -> nn.Module:
    """What a level goes through on its way to the decoder: a 1 x 1 convolution and a norm.

    >>> len(level_projection(8, 16))
    2
    """
    return ConvNormActivation(in_channels, channels, kernel_size=1, activation=None)


def box_embedding(channels: int) -> BoxNet:
    """The positions of queries: an MLP of the four numbers of their boxes.

    >>> len(box_embedding(8))
    3
    """
    return BoxNet(*small_net(4, 2 * channels, channels, 2))


def contrastive_queries(num_classes: int, channels: int, count: int) -> DenoisingQueries:
    """As many groups of contrastive denoising queries as fit in ``count``.

    >>> contrastive_queries(3, 8, 200).max_queries
    200
    """
    noise = {"label_noise": 0.25, "box_noise": 1.0}
    return DenoisingQueries(
        num_classes, channels, groups=max(1, count // 2), max_queries=count, contrastive=True, **noise
    )


def focal_matcher() -> HungarianMatcher:
    """The matcher of RT-DETR, whose class cost is twice that of DETR's.

    >>> focal_matcher()
    HungarianMatcher(class_cost='focal', class_weight=2.0, l1_weight=5.0, giou_weight=2.0, alpha=0.25, gamma=2.0)
    """
    return HungarianMatcher(class_cost="focal", class_weight=2.0)
