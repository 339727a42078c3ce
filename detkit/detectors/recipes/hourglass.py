"""The hourglass RPN: region proposals from many depths of a network that goes down and comes up again."""

from collections.abc import Sequence
from functools import partial

from torch import nn
from torchvision.models.resnet import resnet50

from detkit._door import door
from detkit._ranges import Count, Positive
from detkit.anchors import BalancedSampler, GrayMatcher, GridAnchors, ThresholdMatcher
from detkit.backbones import Backbone, ResNetBackbone, SmallBackbone
from detkit.boxes import DeltaCoder
from detkit.detectors.detector import Detector
from detkit.detectors.preprocess import Preprocess
from detkit.detectors.recipe import recipe
from detkit.detectors.recipes.trunks import Norm
from detkit.detectors.rpn import ProposalPostprocess, RPNStage
from detkit.heads import DenseHead, MultiBoxHead
from detkit.layers import init_convolutions
from detkit.losses import HourglassLoss
from detkit.necks import Hourglass

RATIOS = (0.15, 0.5, 1.0, 2.0, 6.7)


@recipe
def hourglass_rpn(*, backbone: Backbone | None = None, preprocess: Preprocess | None = None) -> Detector:
    """The hourglass RPN: class-agnostic proposals, ten anchors of a level's sizes in each cell of three levels.

    ``backbone`` has strides 8, 16 and 32 (default: an untrained ResNet-50; the source's is Inception-BN). Images are
    resized to a short side of 600 pixels, the long side at most 1000, and padded to multiples of 64, unless
    ``preprocess`` says otherwise. The source trains at changing scales and tests at seven:
    :class:`~detkit.tricks.RandomObjectScale` and :func:`at_scales`.
    Source: Li et al. 2016, "Do We Really Need More Training Data For Object Localization"; deviations in
    :func:`hourglass_stage` and :class:`~detkit.necks.Hourglass`.

    >>> import torch
    >>> with torch.device("meta"):
    ...     hourglass_rpn().rpn.anchors.per_cell
    (10, 10, 10)
    """
    backbone = ResNetBackbone(resnet50(weights=None)) if backbone is None else backbone
    neck = Hourglass(backbone.out_channels, backbone.strides)
    preprocess = Preprocess(600, max_size=1000, multiple_of=64) if preprocess is None else preprocess
    stage = hourglass_stage(neck.out_channels, hourglass_anchors(neck.strides))
    return Detector(nn.Sequential(backbone, neck), preprocess=preprocess, rpn=stage)


@recipe
def small_hourglass_rpn(
    *,
    size: tuple[Count, Count] = (320, 320),
    channels: Count = 64,
    blocks: Count = 1,
    norm: Norm = nn.BatchNorm2d,
) -> Detector:
    """A small :func:`hourglass_rpn` to train from scratch, also on a CPU: anchors of 8 to 256 pixels, 300 proposals.

    Images are resized to ``size`` (height, width). ``channels`` is the width of the merged levels, ``blocks`` the
    number of residual blocks per backbone stage, ``norm`` builds normalization layers.

    >>> small_hourglass_rpn(size=(240, 320)).preprocess.size
    (240, 320)
    """
    widths = (channels // 2, channels, channels * 2, channels * 4)
    backbone = SmallBackbone(widths, levels=(1, 2, 3), blocks=blocks, norm=norm)
    neck = Hourglass(backbone.out_channels, backbone.strides, channels=channels, norm=norm)
    postprocess = ProposalPostprocess(candidates_per_level=1000, max_proposals=300, score_threshold=0.01)
    anchors = hourglass_anchors(neck.strides, smallest=8.0)
    stage = hourglass_stage(neck.out_channels, anchors, postprocess=postprocess)
    return Detector(nn.Sequential(backbone, neck), preprocess=Preprocess(size), rpn=stage)


@door
def hourglass_anchors(strides: Sequence[Count], *, smallest: Positive = 16.0) -> GridAnchors:
    """Two sizes a level in five aspect ratios w/h; each size is double the one before, from ``smallest`` on.

    With three levels that is 16 and 32, 64 and 128, 256 and 512 pixels: 30 anchors in all.

    >>> hourglass_anchors((8, 16, 32)).per_cell
    (10, 10, 10)
    """
    sizes = [(smallest * 4**level, 2 * smallest * 4**level) for level in range(len(strides))]
    return GridAnchors(sizes, aspect_ratios=RATIOS, strides=strides)


@door
def hourglass_stage(
    channels: Sequence[Count],
    anchors: GridAnchors,
    *,
    gray: bool = True,
    sampler: BalancedSampler | None = None,
    postprocess: ProposalPostprocess | None = None,
) -> RPNStage:
    """Proposals from levels of ``channels`` each: object, gray or background, 300 sampled on each level, losses summed.

    Positive from IoU .6 on, gray from .25 to .49, background below .15; two negatives to a positive, and half as many
    gray ones as both. Without ``gray`` there is no such category. Proposals are those above .01 of the best 15,000 of a
    level, suppressed within it at .7; at most 3000 remain, unless ``postprocess`` says otherwise. The source gives the
    sizes, ratios, 300 and .7; all other numbers are those of the authors' code.
    Raises ValueError for anchors of another number of levels.

    >>> hourglass_stage((16, 16), hourglass_anchors((8, 16))).criterion
    HourglassLoss(smooth_l1_cost, gray=True, box_weight=1.0)
    """
    matcher: nn.Module = ThresholdMatcher(positive_iou=0.6, negative_iou=0.15, low_quality=False)
    predictor = partial(MultiBoxHead, channels, anchors.per_cell, convolution=partial(nn.Conv2d, kernel_size=1))
    head = DenseHead(predictor(outputs=2 + gray), predictor(outputs=4))
    init_convolutions(head, partial(nn.init.normal_, std=0.01))
    if sampler is None:
        sampler = BalancedSampler(300, negatives_per_positive=2.0, gray_per_other=0.5 * gray)
    if postprocess is None:
        postprocess = ProposalPostprocess(candidates_per_level=15_000, max_proposals=3000, score_threshold=0.01)
    return RPNStage(
        head=head,
        anchors=anchors,
        matcher=GrayMatcher(matcher) if gray else matcher,
        sampler=sampler,
        coder=DeltaCoder(),
        criterion=HourglassLoss(gray=gray),
        postprocess=postprocess,
    )


@door
def at_scales(
    detector: Detector,
    sizes: Sequence[Count] = (1400, 1200, 1000, 800, 600, 400, 200),
    *,
    max_size: Count = 1600,
    multiple_of: Count = 64,
) -> list[Detector]:
    """Detectors of one trunk and its stages, each of which resizes images to another short side: for multi-scale tests.

    The long side is at most ``max_size``. Fused by :class:`~detkit.tricks.TestTimeAugmentation` they make the source's
    test: suppression within a level of a scale is the stage's, that between scales ``NMSFusion(0.5)``. Mean and
    deviation are those of the given preprocess. Raises ValueError for a size above ``max_size``.

    >>> from detkit.tricks import NMSFusion, TestTimeAugmentation
    >>> scales = at_scales(small_hourglass_rpn().eval(), (256, 192))
    >>> proposer = TestTimeAugmentation(scales, flips=("none",), fusion=NMSFusion(0.5, max_detections=300))
    >>> [scale.preprocess.size for scale in proposer.detectors]
    [256, 192]
    """
    pixels = {name: getattr(detector.preprocess, name).flatten().tolist() for name in ("mean", "std")}
    settings = {"max_size": max_size, "multiple_of": multiple_of, **pixels}
    return [
        Detector(detector.trunk, preprocess=Preprocess(size, **settings), **detector.stages).train(detector.training)
        for size in sizes
    ]
