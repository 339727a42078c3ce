"""A small network of three tasks in stitched branches, for tests of contracts, compilers and export."""

from functools import partial

from torch import nn

from detkit.backbones import SmallBackbone
from detkit.detectors import Detector, three_tasks
from detkit.multitask import StitchedTrunk, cross_stitches

CHANNELS = (4, 8)


def small_tasks(num_classes: int = 3, *, size: tuple[int, int] = (96, 128)) -> Detector:
    """Class and box of the image, and the class of each pixel, background included; nothing left to chance."""
    backbones = {
        name: SmallBackbone(CHANNELS, norm=partial(nn.GroupNorm, 2))
        for name in ("classification", "boxes", "segmentation")
    }
    trunk = StitchedTrunk(backbones, cross_stitches(3, CHANNELS))
    detector = three_tasks(num_classes, trunk, segmentation_classes=num_classes + 1, size=size)
    for part in detector.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return detector
