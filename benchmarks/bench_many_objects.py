"""Work per object: matching from 1 to 4,000 objects, and drawing them, against torchvision.

``python -m benchmarks many_objects``. CPU time of one thread: a ratio below 0.5 would be more than twice torchvision's.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.models.detection._utils import Matcher, SSDMatcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import _default_anchorgen
from torchvision.ops import box_iou
from torchvision.utils import draw_bounding_boxes

from benchmarks.harness import Case
from detkit.anchors import BipartiteMatcher, ThresholdMatcher
from detkit.structures import Assignment, Target, pad_targets
from detkit.viz import draw_boxes

FRAMES = (72, 232, 800)  # sides of images with 1,080, 10,350 and 120,087 anchors
OBJECTS = (1, 10, 100, 1000, 4000)
SIZES = {"tiny": (1.0, 4.0), "small": (8.0, 24.0), "medium": (24.0, 70.0), "mixed": (2.0, 70.0)}  # sides in pixels
MOST_PAIRS = 120_000_000  # torchvision holds several matrices of them


def cases() -> Iterator[Case]:
    """RetinaNet's anchors with low-quality matches and SSD's claims over the grid; then pictures."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with more, torchvision gives a box that many objects claim to any of them
    for frame in FRAMES:
        anchors = anchors_of(_default_anchorgen(), frame)
        for objects in (count for count in OBJECTS if count * len(anchors) <= MOST_PAIRS):
            for name in SIZES:
                yield _matching("threshold matching", anchors, objects, name, frame)
            yield _matching("SSD matching, torchvision's rule", anchors, objects, "mixed", frame)
    for objects in OBJECTS:
        yield _drawing(objects)
    torch.set_num_threads(threads)


def anchors_of(generator: AnchorGenerator, frame: int) -> Tensor:
    """The anchors of a square image on five levels, the finest of stride 8."""
    sides = [frame // 8]
    while len(sides) < 5:
        sides.append((sides[-1] + 1) // 2)
    images = ImageList(torch.zeros(1, 3, frame, frame), [(frame, frame)])
    return generator(images, [torch.zeros(1, 1, side, side) for side in sides])[0]


def objects_of(count: int, size: str, frame: float) -> Tensor:
    """(count, 4) boxes inside the frame, as many of each octave."""
    generator, (low, high) = torch.Generator().manual_seed(0), torch.tensor(SIZES[size]).log()
    sides = torch.exp(low + torch.rand(count, 2, generator=generator) * (high - low)).clamp(max=frame - 1)
    corner = torch.rand(count, 2, generator=generator) * (frame - sides)
    return torch.cat((corner, corner + sides), dim=1)


def _matching(name: str, anchors: Tensor, objects: int, size: str, frame: int) -> Case:
    rows = objects_of(objects, size, frame)
    targets = pad_targets([Target(boxes=rows, labels=torch.zeros(objects).long())])
    ssd = name.startswith("SSD")
    ours = BipartiteMatcher(greedy=False) if ssd else ThresholdMatcher()
    theirs = SSDMatcher(0.5) if ssd else Matcher(0.5, 0.4, allow_low_quality_matches=True)
    return _case(
        name,
        f"{objects:,} {size} objects x {len(anchors):,} anchors",
        "torchvision box_iou + Matcher",
        lambda: ours(anchors, targets),
        lambda: theirs(box_iou(rows, anchors)),
        _equal,
    )


def _drawing(objects: int) -> Case:
    image, boxes = torch.zeros(3, 800, 800, dtype=torch.uint8), objects_of(objects, "mixed", 800)
    texts = [f"object {i}" for i in range(objects)]
    return _case(
        "boxes with texts",
        f"{objects:,} on 800 x 800",
        "torchvision draw_bounding_boxes, texts cover each other",
        lambda: draw_boxes(image, boxes, texts=texts),
        lambda: draw_bounding_boxes(image, boxes, texts, width=3),
        _drawn,
    )


def _case(name: str, size: str, peer: str, ours: Callable[[], Any], theirs: Callable[[], Any], agree: Any) -> Case:
    return Case(name, size, peer, ours, theirs, agree, 0.5, "CPU time", time.process_time)


def _equal(ours: Assignment, theirs: Tensor) -> None:
    assert torch.equal(ours.matched[0], theirs)


def _drawn(ours: Image.Image, theirs: Tensor) -> None:
    assert np.asarray(ours).shape == (*theirs.shape[1:], 3)
