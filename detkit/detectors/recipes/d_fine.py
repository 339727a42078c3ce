"""D-FINE: RT-DETR whose boxes are distributions of where their edges are, refined from layer to layer."""

from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

from torch import nn

from detkit._door import door
from detkit._ranges import Count, Positive
from detkit.backbones import hgnet_b0, hgnet_b2, hgnet_b4, hgnet_b5
from detkit.boxes import EdgeCoder
from detkit.detectors.detector import Detector
from detkit.detectors.preprocess import Preprocess
from detkit.detectors.recipe import recipe
from detkit.detectors.recipes.rt_detr import (
    EDGE,
    box_embedding,
    contrastive_queries,
    focal_matcher,
    level_projection,
    map_attention,
    query_heads,
    small_levels,
)
from detkit.detectors.selected_queries import EdgeQueryLosses, SelectedQueryStage
from detkit.detectors.set_prediction import SetPostprocess
from detkit.heads import EdgeHead, RefinementHead
from detkit.heads.set_prediction import small_net
from detkit.layers import (
    ConvNormActivation,
    DeformableAttention,
    DeformableDecoderLayer,
    EdgeDecoder,
    ELANBlock,
    GatedResidual,
    LevelProjection,
    QuerySelection,
    separable_downsampling,
)
from detkit.losses import EdgeLoss, VarifocalSetLoss
from detkit.necks import HybridNeck


class _Scale(NamedTuple):
    """What the published sizes differ in: blocks of the neck, channels, decoder, steps of the edges."""

    depth: int = 3
    expansion: float = 1.0
    channels: int = 256
    hidden: int = 1024
    layers: int = 6
    coder_scale: float = 4.0
    width: int = 256


_SCALES = {
    "n": _Scale(2, 0.34, 128, 512, 3, width=128),
    "s": _Scale(1, 0.5, layers=3),
    "m": _Scale(2, layers=4),
    "l": _Scale(),
    "x": _Scale(channels=384, hidden=2048, coder_scale=8.0),
}
_BACKBONES = {"n": partial(hgnet_b0, levels=(2, 3)), "s": hgnet_b0, "m": hgnet_b2, "l": hgnet_b4, "x": hgnet_b5}


@recipe
def d_fine(
    num_classes: Count, *, scale: Literal["n", "s", "m", "l", "x"] = "l", preprocess: Preprocess | None = None
) -> Detector:
    """D-FINE of one of the published sizes, on an untrained HGNetV2: 300 queries, distributions of 33 steps per edge.

    N and S are on B0, M on B2, L on B4 and X on B5; N reads two levels, of stride 16 and 32, with 6 points on each, the
    others three from stride 8, with 3, 6 and 3 points. Images are resized to 640 x 640, not normalized, unless
    ``preprocess`` says otherwise. Published ones are pretrained, those of L and X with frozen batch norm. Trained as
    :func:`rt_detr_v2`, 2.5e-4 and a tenth of that for the backbone. Source: Peng et al. 2024, "D-FINE: Redefine
    Regression Task in DETRs as Fine-grained Distribution Refinement".

    >>> sum(parameter.numel() for parameter in d_fine(num_classes=80, scale="n").parameters())
    3782563
    """
    if scale not in _SCALES:
        raise ValueError(f"d_fine: scale={scale!r}; allowed are 'n', 's', 'm', 'l' and 'x'")
    given = _SCALES[scale]
    backbone = _BACKBONES[scale]()
    neck = elan_neck(
        *(backbone.out_channels, backbone.strides),
        channels=given.channels,
        hidden=given.hidden,
        depth=given.depth,
        expansion=given.expansion,
    )
    stage = d_fine_stage(
        *(num_classes, neck.out_channels),
        channels=given.width,
        depth=given.layers,
        points=(6, 6) if scale == "n" else (3, 6, 3),
        scale=given.coder_scale,
    )
    preprocess = Preprocess((640, 640), mean=(0, 0, 0), std=(1, 1, 1)) if preprocess is None else preprocess
    return Detector(nn.Sequential(backbone, neck), preprocess=preprocess, objects=stage)


@recipe
def small_d_fine(
    num_classes: Count,
    *,
    size: tuple[Count, Count] = (320, 320),
    channels: Count = 64,
    depth: Count = 3,
    queries: Count = 60,
) -> Detector:
    """A small D-FINE that trains from scratch in minutes: :func:`small_rt_detr` with D-FINE's neck, decoder and losses.

    >>> small_d_fine(num_classes=3, size=(240, 320)).trunk[1].strides
    (8, 16, 32)
    """
    backbone = small_levels(channels)
    neck = elan_neck(
        *(backbone.out_channels, backbone.strides), channels=channels, hidden=2 * channels, depth=1, expansion=0.5
    )
    stage = d_fine_stage(
        *(num_classes, neck.out_channels),
        channels=channels,
        depth=depth,
        queries=queries,
        denoising=100,
    )
    return Detector(nn.Sequential(backbone, neck), preprocess=Preprocess(size), objects=stage)


@door
def elan_neck(
    in_channels: Sequence[Count],
    in_strides: Sequence[Count],
    *,
    channels: Count = 256,
    hidden: Count = 1024,
    depth: Count = 3,
    expansion: Positive = 1.0,
) -> HybridNeck:
    """D-FINE's neck: as :func:`hybrid_neck`, with :class:`~detkit.layers.ELANBlock` and separable downsampling.

    ``expansion`` times half of ``channels`` is the width inside the blocks.

    >>> elan_neck([8, 16], [8, 16], channels=32, hidden=64).out_channels
    (32, 32)
    """
    return HybridNeck(
        *(in_channels, in_strides),
        channels=channels,
        attention=map_attention("elan_neck", channels, hidden),
        fuse=partial(ELANBlock, width=max(1, round(expansion * channels // 2)), depth=depth),
        lateral=lambda width: ConvNormActivation(width, width, kernel_size=1, activation=None),
        downsample=separable_downsampling,
    )


@door
def d_fine_stage(
    num_classes: Count,
    in_channels: Sequence[Count],
    *,
    channels: Count = 256,
    depth: Count = 6,
    queries: Count = 300,
    points: Count | Sequence[Count] = 4,
    scale: Positive = 4.0,
    denoising: Count = 200,
) -> SelectedQueryStage:
    """D-FINE's stage on feature maps of ``in_channels``; levels of ``channels`` are not projected.

    ``scale`` is that of the :class:`~detkit.boxes.EdgeCoder`; the rest is as in :func:`rt_detr_stage`.

    >>> d_fine_stage(3, [64, 64], channels=64, depth=1, queries=5).decoder.coder
    EdgeCoder(bins=32, reach=0.5, scale=4.0)
    """
    coder = EdgeCoder(scale=scale)
    first = RefinementHead(channels, num_classes=num_classes, background=False, edge=EDGE)
    initial = small_net(channels, channels, 4, 3)
    for parameter in initial[-1].parameters():
        nn.init.zeros_(parameter)
    return SelectedQueryStage(
        encoder=LevelProjection(
            [nn.Identity() if width == channels else level_projection(width, channels) for width in in_channels]
        ),
        selection=QuerySelection(
            nn.Sequential(nn.Linear(channels, channels), nn.LayerNorm(channels)), first, count=queries
        ),
        decoder=EdgeDecoder(
            [gated_layer(channels, levels=len(in_channels), points=points) for _ in range(depth)],
            [EdgeHead(channels, num_classes=num_classes) for _ in range(depth)],
            positions=box_embedding(channels).append(nn.Hardtanh(-10, 10)),
            initial=initial,
            coder=coder,
            edge=EDGE,
        ),
        denoising=contrastive_queries(num_classes, channels, denoising),
        losses=EdgeQueryLosses(focal_matcher(), VarifocalSetLoss(), EdgeLoss(coder)),
        postprocess=SetPostprocess(max_detections=queries, every_class=True),
    )


def gated_layer(channels: int, *, levels: int, points: int | Sequence[int] = 4) -> DeformableDecoderLayer:
    """D-FINE's decoder layer: what is found in the memory is not projected, and joined by gates.

    >>> type(gated_layer(32, levels=1).memory_residual).__name__
    'GatedResidual'
    """
    heads = query_heads("d_fine_stage", channels)
    look = DeformableAttention(channels, heads, levels=levels, points=points, projected=False)
    return DeformableDecoderLayer(
        channels, heads, hidden=4 * channels, memory_attention=look, memory_residual=GatedResidual(channels)
    )
