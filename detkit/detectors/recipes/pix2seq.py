"""Pix2Seq: an image encoder, and a decoder that generates boxes and classes as tokens."""

from torch import nn
from torchvision.models.resnet import resnet50

from detkit._door import door
from detkit._ranges import Count, Fraction
from detkit.backbones import Backbone, ResNetBackbone, SmallBackbone
from detkit.boxes.tokens import TOKENS_PER_BOX, TokenCoder
from detkit.detectors.detector import Detector
from detkit.detectors.preprocess import Preprocess
from detkit.detectors.recipe import recipe
from detkit.detectors.recipes.trunks import Norm
from detkit.detectors.sequence import SequenceStage
from detkit.detectors.sequence_targets import Order, SequenceTargetBuilder
from detkit.heads.sequence import TokenSampler
from detkit.heads.token_decoder import TokenDecoder, start_as_sines
from detkit.layers import (
    DecoderLayer,
    EncoderLayer,
    MapEncoder,
    SinePositions,
    TransformerDecoder,
    TransformerEncoder,
    init_convolutions,
)
from detkit.losses.sequence import SequenceLoss


@recipe
def pix2seq(
    num_classes: Count,
    *,
    backbone: Backbone | None = None,
    preprocess: Preprocess | None = None,
    max_objects: Count = 100,
) -> Detector:
    """Pix2Seq: six encoder and six decoder layers of 256 channels on ``backbone``, 1000 bins, 100 objects an image.

    The last feature map of ``backbone`` is read (default: an untrained ResNet-50, stride 32); images are resized to a
    longer side of 640 pixels unless ``preprocess`` says otherwise. Training sequences list the objects in random order,
    then noise objects; inference samples tokens with the release's top-p of .4, well-formed boxes only. Sequences
    always have 5 * ``max_objects`` tokens. Source: Chen et al. 2022, "Pix2seq"; vocabulary and weights of the release.

    >>> sum(parameter.numel() for parameter in pix2seq(num_classes=80).parameters()) // 1_000_000
    35
    """
    backbone = ResNetBackbone(resnet50(weights=None)) if backbone is None else backbone
    builder = SequenceTargetBuilder(TokenCoder(num_classes), max_objects=max_objects)
    stage = sequence_stage(backbone.out_channels[-1], builder, channels=256, heads=8, layers=6, dropout=0.1)
    return Detector(
        backbone, preprocess=Preprocess(640, max_size=640) if preprocess is None else preprocess, sequence=stage
    )


@recipe
def small_pix2seq(
    num_classes: Count,
    *,
    size: tuple[Count, Count] = (96, 96),
    channels: Count = 64,
    layers: Count = 2,
    max_objects: Count = 10,
    bins: Count = 48,
    order: Order = "random",
    norm: Norm = nn.BatchNorm2d,
) -> Detector:
    """A small Pix2Seq to train on a CPU: a residual net of stride 16, few ``layers``, greedy decoding.

    Images are resized to ``size`` (height, width); tokens are the paper's, with ``bins`` per side. The backbone is that
    of :func:`~detkit.detectors.fpn_ssd` with the same ``channels``: start from the weights of such a detector, as the
    paper starts from a pretrained backbone, because classes take very long from scratch. For the same reason class
    tokens weigh 3 times as much, and the embeddings of coordinates, of cells and of tokens, start as sines.

    >>> small_pix2seq(num_classes=3).sequence.coder
    TokenCoder(3, bins=48, vocabulary='paper')
    """
    backbone = SmallBackbone((channels // 2, channels, channels * 2), levels=(2,), norm=norm)
    coder = TokenCoder(num_classes, bins=bins, vocabulary="paper")
    cells = max(size) / backbone.strides[-1]
    stage = sequence_stage(
        backbone.out_channels[-1],
        SequenceTargetBuilder(coder, max_objects=max_objects, order=order, class_weight=3.0),
        channels=channels,
        heads=4,
        layers=layers,
        positions=SinePositions(channels, temperature=cells, turns=cells / 2),
        sampler=TokenSampler("argmax"),
    )
    start_as_sines(stage.decoder.embedding, slice(coder.first_coordinate, coder.first_coordinate + bins))
    return Detector(backbone, preprocess=Preprocess(size), sequence=stage)


@door
def sequence_stage(
    in_channels: Count,
    targets: SequenceTargetBuilder,
    *,
    channels: Count,
    heads: Count,
    layers: Count,
    dropout: Fraction = 0.0,
    positions: SinePositions | None = None,
    sampler: TokenSampler | None = None,
) -> SequenceStage:
    """Pix2Seq's stage on a feature map of ``in_channels``: ``layers`` pre-norm encoder and decoder layers.

    >>> targets = SequenceTargetBuilder(TokenCoder(2, bins=9, vocabulary="paper"), max_objects=3)
    >>> sequence_stage(8, targets, channels=8, heads=2, layers=1).decoder.length
    15
    """
    settings = {"hidden": 4 * channels, "dropout": dropout, "activation": nn.GELU, "norm_first": True}
    encoder = TransformerEncoder(
        [EncoderLayer(channels, heads, **settings) for _ in range(layers)], norm=nn.LayerNorm(channels)
    )
    decoder = TransformerDecoder(
        [DecoderLayer(channels, heads, **settings) for _ in range(layers)], norm=nn.LayerNorm(channels)
    )
    projection = nn.Conv2d(in_channels, channels, 1)
    init_convolutions(projection, nn.init.xavier_uniform_)
    return SequenceStage(
        encoder=MapEncoder(
            projection,
            positions=SinePositions(channels) if positions is None else positions,
            encoder=encoder,
            positions_in_cells=True,
        ),
        decoder=TokenDecoder(
            decoder, channels=channels, vocabulary=targets.coder.size, length=TOKENS_PER_BOX * targets.max_objects
        ),
        targets=targets,
        criterion=SequenceLoss(),
        sampler=TokenSampler() if sampler is None else sampler,
    )
