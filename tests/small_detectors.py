"""Every recipe in a small form, and every family: what the table of host syncs counts."""

from collections.abc import Callable
from typing import Any

import torch
from contracts import without_chance
from families import CLASSES, FAMILIES, SIDE, SMALL, on_levels, scene
from torch import Tensor

from detkit import detectors
from detkit.backbones import SmallBackbone
from detkit.detectors import Detector
from detkit.structures import Target

SIZE = (SIDE, SIDE)


def behind_proposals() -> Detector:
    """Fast R-CNN: the second stage of a small Faster R-CNN."""
    detector = detectors.small_faster_rcnn(CLASSES, **SMALL)
    return Detector(detector.trunk, preprocess=detector.preprocess, box=detector.box)


MORE: dict[str, Callable[[], Detector]] = {
    "tiny ssd": lambda: detectors.tiny_ssd(CLASSES),
    "ssd7": lambda: detectors.ssd7(CLASSES, size=SIZE),
    "ssdlite": lambda: detectors.ssdlite320_mobilenet_v3_large(CLASSES),
    "yolo v2": lambda: detectors.yolo_v2_tiny(CLASSES, size=SIZE),
    "detr": lambda: on_levels(queries=detectors.detr_stage(CLASSES, 8, channels=32, hidden=32, depth=2, queries=9)),
    "fast rcnn": behind_proposals,
    "rcnn": lambda: detectors.rcnn(CLASSES, SmallBackbone((8, 16)), feature_size=16, size=32, context=2),
    "residual classifier": lambda: detectors.residual_classifier(CLASSES, size=SIZE),
    "joint localizer": lambda: detectors.joint_localizer(CLASSES, size=SIZE),
}
DETECTORS = FAMILIES | MORE
FROM_OUTSIDE = ("fast rcnn", "rcnn")
"""Those whose proposals come from outside."""


def small_detector(name: str) -> Detector:
    """In eval mode, with the weights of one seed; samplers take all there is."""
    torch.manual_seed(0)
    return without_chance(DETECTORS[name]()).eval()


def two_scenes() -> tuple[list[Tensor], list[Target]]:
    images, targets = zip(scene(3, seed=1), scene(2, seed=2), strict=True)
    return list(images), list(targets)


def proposals_of(name: str, targets: list[Target]) -> dict[str, Any]:
    """What the detector takes beside images and targets: boxes near the objects."""
    if name not in FROM_OUTSIDE:
        return {}
    near = [torch.cat((target["boxes"], target["boxes"] + 3, target["boxes"] * 0.5)) for target in targets]
    return {"proposals": [{"boxes": boxes, "scores": torch.linspace(1, 0.1, len(boxes))} for boxes in near]}
