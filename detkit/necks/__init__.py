"""Necks turn a backbone's feature maps into those that heads read: a pyramid of one width, or extra coarser levels.

A neck is built from the backbone's ``out_channels`` and ``strides`` and declares its own, so that
``nn.Sequential(backbone, neck)`` is a trunk and ``neck.strides`` are its strides.
"""

from detkit.necks.base import Neck
from detkit.necks.branches import BranchNecks
from detkit.necks.fpn import FPN
from detkit.necks.hourglass import Hourglass
from detkit.necks.hybrid import HybridNeck
from detkit.necks.passthrough import PassthroughNeck
from detkit.necks.ssd_extra import SSD300_LEVELS, SSD512_LEVELS, ExtraLevel, SSDExtra
from detkit.necks.yolo import YOLONeck

__all__ = [
    "FPN",
    "SSD300_LEVELS",
    "SSD512_LEVELS",
    "BranchNecks",
    "ExtraLevel",
    "Hourglass",
    "HybridNeck",
    "Neck",
    "PassthroughNeck",
    "SSDExtra",
    "YOLONeck",
]
