"""Deformable DETR: the cells of several maps, and queries, each attend to a few points on all of the maps; no NMS."""

from collections.abc import Sequence

from torch import nn
from torchvision.models.resnet import resnet50

from detkit._door import door
from detkit._ranges import Count, Fraction
from detkit.backbones import Backbone, ResNetBackbone, SmallBackbone
from detkit.detectors.detector import Detector
from detkit.detectors.preprocess import Preprocess
from detkit.detectors.recipe import recipe
from detkit.detectors.recipes.detr import heads_of
from detkit.detectors.recipes.rt_detr import EDGE, focal_matcher
from detkit.detectors.selected_queries import QueryLosses, SelectedQueryStage
from detkit.detectors.set_prediction import SetPostprocess
from detkit.heads import RefinementHead
from detkit.layers import (
    BoxDecoder,
    BoxPositions,
    DeformableAttention,
    DeformableDecoderLayer,
    DeformableEncoderLayer,
    LevelEncoder,
    LevelProjection,
    PointQueries,
    QuerySelection,
    SinePositions,
)
from detkit.losses import FocalSetLoss

_SMALL_SIDE = -2.0
"""The logit of the width and height that boxes around points start with: 0.12 of the image."""


@recipe
def deformable_detr(
    num_classes: Count,
    *,
    refine: bool = False,
    two_stage: bool = False,
    backbone: Backbone | None = None,
    preprocess: Preprocess | None = None,
) -> Detector:
    """Deformable DETR: 300 queries, 6 encoder and 6 decoder layers of 256 channels on four levels, strides 8 to 64.

    ``refine`` is iterative box refinement; with ``two_stage`` queries are chosen from cells as well. The default
    backbone is an untrained ResNet-50; the published one is pretrained, with frozen batch norm and stem. Images are
    resized to a short side of 800 pixels, the long side at most 1333, unless ``preprocess`` says otherwise. Trained by
    AdamW, 2e-4, 2e-5 for backbone, ``offsets`` and ``points``, weight decay 1e-4, gradients clipped at 0.1. Source: Zhu
    et al. 2021; other than there, cells are chosen by their best class, which only the chosen ones learn, as in
    RT-DETR.

    >>> sum(parameter.numel() for parameter in deformable_detr(num_classes=91).parameters())
    40122785
    """
    backbone = ResNetBackbone(resnet50(weights=None)) if backbone is None else backbone
    preprocess = Preprocess(800, max_size=1333) if preprocess is None else preprocess
    stage = deformable_detr_stage(num_classes, backbone.out_channels, refine=refine, two_stage=two_stage)
    return Detector(backbone, preprocess=preprocess, objects=stage)


@recipe
def small_deformable_detr(
    num_classes: Count,
    *,
    size: tuple[Count, Count] = (320, 320),
    channels: Count = 64,
    depth: Count = 3,
    queries: Count = 60,
) -> Detector:
    """A small two-stage Deformable DETR that trains from scratch: three levels of a residual net, from stride 8 on.

    Images are resized to ``size`` (height, width). ``channels``, a multiple of 32, is the width of the transformer,
    which has one encoder layer and ``depth`` decoder layers. Trained by AdamW, 1e-3, betas 0.9 and 0.98. Sources: those
    of :func:`deformable_detr`.

    >>> small_deformable_detr(num_classes=3, size=(240, 320)).preprocess.size
    (240, 320)
    """
    backbone = SmallBackbone((channels // 4, channels // 2, channels, channels), levels=(1, 2, 3), blocks=2)
    stage = deformable_detr_stage(
        num_classes,
        backbone.out_channels,
        channels=channels,
        hidden=2 * channels,
        depth=(1, depth),
        levels=3,
        queries=queries,
        dropout=0.0,
        two_stage=True,
    )
    return Detector(backbone, preprocess=Preprocess(size), objects=stage)


@door
def deformable_detr_stage(
    num_classes: Count,
    in_channels: Sequence[Count],
    *,
    channels: Count = 256,
    hidden: Count = 1024,
    depth: tuple[Count, Count] = (6, 6),
    levels: Count = 4,
    queries: Count = 300,
    dropout: Fraction = 0.1,
    refine: bool = False,
    two_stage: bool = False,
) -> SelectedQueryStage:
    """Deformable DETR's stage on feature maps of ``in_channels``: 32 channels per head, 4 points on each level.

    ``depth`` are the layers of encoder and decoder; further ``levels`` are convolved with stride 2. ``two_stage`` needs
    refinement and has it.

    >>> deformable_detr_stage(3, [64], channels=64, depth=(1, 1), queries=5).selection
    PointQueries(
      (queries): Embedding(5, 128)
      (points): Linear(in_features=64, out_features=2, bias=True)
    )
    """
    heads, widths = heads_of("deformable_detr_stage", channels), {"hidden": hidden, "dropout": dropout}
    looks = [DeformableAttention(channels, heads, levels=levels) for _ in range(sum(depth))]
    return SelectedQueryStage(
        encoder=LevelEncoder(
            LevelProjection(level_projections(in_channels, channels, levels=levels), chained=True),
            positions=SinePositions(channels, centered=True),
            layers=[DeformableEncoderLayer(channels, attention=look, **widths) for look in looks[: depth[0]]],
            channels=channels,
        ),
        selection=box_selection(channels, num_classes, queries) if two_stage else PointQueries(queries, channels),
        decoder=BoxDecoder(
            [DeformableDecoderLayer(channels, heads, memory_attention=look, **widths) for look in looks[depth[0] :]],
            _box_heads(channels, num_classes, depth[1], refine=refine or two_stage, points=not two_stage),
            positions=None,
            refine=refine or two_stage,
        ),
        denoising=None,
        losses=QueryLosses(focal_matcher(), FocalSetLoss()),
        postprocess=SetPostprocess(max_detections=min(queries, 100), every_class=True),
    )


def level_projections(in_channels: Sequence[int], channels: int, *, levels: int) -> list[nn.Sequential]:
    """A 1 x 1 convolution for each of ``in_channels``, and 3 x 3 ones with stride 2 for further levels; group norms.

    Raises ValueError if there are fewer ``levels``.

    >>> [tuple(part[0].weight.shape) for part in level_projections([8, 16], 32, levels=4)]
    [(32, 8, 1, 1), (32, 16, 1, 1), (32, 16, 3, 3), (32, 32, 3, 3)]
    """
    if levels < len(in_channels):
        raise ValueError(f"deformable_detr_stage: levels={levels} must be at least the {len(in_channels)} feature maps")
    further = [in_channels[-1], *[channels] * levels][: levels - len(in_channels)]
    layers = [nn.Conv2d(width, channels, 1) for width in in_channels]
    layers += [nn.Conv2d(width, channels, 3, stride=2, padding=1) for width in further]
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
    return [nn.Sequential(layer, nn.GroupNorm(32, channels)) for layer in layers]


def box_selection(channels: int, num_classes: int, queries: int) -> QuerySelection:
    """Queries chosen from cells, with positions and embeddings from waves of their boxes.

    >>> box_selection(32, 3, 5).count
    5
    """
    both = 2 * channels
    net = nn.Sequential(nn.Linear(both, both), nn.LayerNorm(both))
    return QuerySelection(
        nn.Sequential(nn.Linear(channels, channels), nn.LayerNorm(channels)),
        RefinementHead(channels, num_classes=num_classes, background=False, edge=EDGE),
        count=queries,
        boxes=BoxPositions(both, temperature=10000.0, net=net),
    )


def _box_heads(channels: int, num_classes: int, depth: int, *, refine: bool, points: bool) -> list[RefinementHead]:
    """One head for each layer, or the same for all where they do not refine each other's boxes."""
    count = depth if refine else 1
    heads = [RefinementHead(channels, num_classes=num_classes, background=False, edge=EDGE) for _ in range(count)]
    if points:
        nn.init.constant_(heads[0].boxes[-1].bias[2:].data, _SMALL_SIDE)  # pyright: ignore[reportIndexIssue]
    return heads if refine else heads * depth
