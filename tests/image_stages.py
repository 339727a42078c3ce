"""A small classifier and localizer of whole images, for tests of contracts, compilers and export."""

from detkit.backbones import SmallBackbone
from detkit.detectors import ClassificationStage, Detector, LocalizationStage, Preprocess
from detkit.heads import ImageHead


def small_localizer(num_classes: int = 3) -> Detector:
    """Two stages on a tiny trunk, images resized to 96 x 128."""
    trunk = SmallBackbone((8, 16))
    classify = ClassificationStage(ImageHead(16, num_classes, hidden=(8,), dropout=0.0))
    localize = LocalizationStage(ImageHead(16, 4, cells=3))
    return Detector(trunk, preprocess=Preprocess((96, 128)), classify=classify, localize=localize)
