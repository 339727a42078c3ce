"""Anchor matching of whole batches against torchvision's loop over images, equal in every anchor."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher, SSDMatcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import _default_anchorgen
from torchvision.ops import box_iou

from benchmarks.harness import Case
from detkit.anchors import BipartiteMatcher
from detkit.anchors.threshold import ThresholdMatcher
from detkit.structures import Assignment, Target, pad_targets

FRAME = 800
PEER = "torchvision box_iou + Matcher, each image"


def cases() -> Iterator[Case]:
    """RetinaNet's 120,087 anchors of an 800 x 800 image; at batch 2 sorting the anchors is most of the time."""
    anchors = retinanet_anchors(_default_anchorgen())
    for images, objects, target in ((16, 100, 50.0), (16, 10, 8.0), (2, 100, 40.0), (2, 10, 2.0)):
        yield _case("RetinaNet matching", anchors, images, objects, target)
    yield _case("SSD matching, torchvision's rule", anchors, 16, 10, 8.0, bipartite=True)


def device_cases(device: str) -> Iterator[Case]:
    """The same on a GPU, where the matrix of a batch would be 770 MB."""
    anchors = retinanet_anchors(_default_anchorgen()).to(device)
    yield _case("RetinaNet matching", anchors, 16, 100, 20.0)


def retinanet_anchors(generator: AnchorGenerator) -> Tensor:
    """(120087, 4) anchors of the levels with strides 8 to 128."""
    sides = [FRAME // 8]
    while len(sides) < 5:
        sides.append((sides[-1] + 1) // 2)
    images = ImageList(torch.zeros(1, 3, FRAME, FRAME), [(FRAME, FRAME)])
    return generator(images, [torch.zeros(1, 1, side, side) for side in sides])[0]


def objects_of(count: int, *, seed: int) -> Tensor:
    """(count, 4) boxes of 16 to 400 pixels, as many of each octave, inside the frame."""
    generator = torch.Generator().manual_seed(seed)
    side = torch.exp(torch.rand(count, 1, generator=generator) * 3.2 + 2.8)
    stretch = torch.exp(torch.randn(count, 1, generator=generator) * 0.4)
    sides = torch.cat((side * stretch, side / stretch), dim=1).clamp(max=FRAME - 20)
    corner = torch.rand(count, 2, generator=generator) * (FRAME - sides)
    return torch.cat((corner, corner + sides), dim=1)


def _case(name: str, anchors: Tensor, images: int, objects: int, target: float, *, bipartite: bool = False) -> Case:
    truth = [objects_of(objects, seed=seed).to(anchors.device) for seed in range(images)]
    labels = torch.zeros(objects, dtype=torch.int64, device=anchors.device)
    targets = pad_targets([Target(boxes=rows, labels=labels) for rows in truth])
    ours = BipartiteMatcher(greedy=False) if bipartite else ThresholdMatcher()
    theirs = SSDMatcher(0.5) if bipartite else Matcher(0.5, 0.4, allow_low_quality_matches=True)
    return Case(
        name,
        f"{images} images x {objects} objects x {len(anchors):,} anchors",
        PEER,
        lambda: ours(anchors, targets),
        lambda: torch.stack([theirs(box_iou(rows, anchors)) for rows in truth]),
        _equal,
        target,
        f"{images * len(anchors) * 12 / 1e6:.0f} MB written",
    )


def _equal(ours: Assignment, theirs: Tensor) -> None:
    assert torch.equal(ours.matched, theirs)
