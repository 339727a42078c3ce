"""A small classifier and localizer of whole images, for tests of contracts, compilers and export."""

from detkit.backbones import SequentialBackbone
from detkit.detectors import ClassificationStage, Detector, LocalizationStage, Preprocess
from detkit.heads import ImageHead
from detkit.layers import ConvNormActivation


def small_localizer(num_classes: int = 3) -> Detector:
    """Two stages on one convolution, images resized to 96 x 128."""
    trunk = SequentialBackbone([ConvNormActivation(3, 16, stride=8)], out_channels=[16], strides=[8])
    classify = ClassificationStage(ImageHead(16, num_classes, hidden=(8,), dropout=0.0))
    localize = LocalizationStage(ImageHead(16, 4, cells=3))
    return Detector(trunk, preprocess=Preprocess((96, 128)), classify=classify, localize=localize)
