"""A small detector of every family and with every stage that learns, for properties that all of them must have."""

from collections.abc import Callable

import torch
from contracts import without_chance
from dense_parts import dense_stage
from image_stages import small_localizer
from several_tasks import small_tasks
from torch import Tensor, nn

from detkit.boxes import PyramidRoIAlign
from detkit.detectors import (
    Detector,
    EmbeddingStage,
    LabelSetStage,
    Postprocess,
    Preprocess,
    SetPostprocess,
    SideBySide,
    detr_stage,
    fpn_ssd,
    small_d_fine,
    small_deformable_detr,
    small_detr,
    small_faster_rcnn,
    small_fcos,
    small_hourglass_rpn,
    small_mask_rcnn,
    small_pix2seq,
    small_retinanet,
    small_rt_detr,
    small_tood,
    small_yolo_v3,
    small_yolox,
)
from detkit.detectors.keypoint import KeypointStage
from detkit.heads import EmbeddingHead
from detkit.heads.keypoint import KeypointHead
from detkit.structures import Target

CLASSES, SIDE, POINTS = 2, 64, 3
SMALL = {"size": (SIDE, SIDE), "channels": 8}


class Levels(nn.Module):
    """Two feature maps of 8 channels, at strides 8 and 16."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 8, stride=8), nn.Conv2d(8, 8, 2, stride=2)

    def forward(self, images: Tensor) -> list[Tensor]:
        first = self.first(images).relu()
        return [first, self.second(first).relu()]


class Pulls(nn.Module):
    """The mean squared distance of rows of one label; it knows padding."""

    takes_padding = True

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        same = (labels[:, None] == labels) & (labels >= 0)
        apart = (embeddings[:, None] - embeddings).square().sum(-1)
        return (apart * same).sum() / same.sum().clamp(min=1)


def on_levels(**stages) -> Detector:
    return Detector(Levels(), preprocess=Preprocess((SIDE, SIDE)), **stages)


def behind(detector: Detector, **stages) -> Detector:
    """The detector with more stages."""
    return Detector(detector.trunk, preprocess=detector.preprocess, **detector.stages, **stages)


def labeled_regions() -> Detector:
    """Proposals, and the classes of all objects that each of them overlaps a little."""
    pool, head = PyramidRoIAlign(3, strides=(8, 16, 32)), EmbeddingHead(8 * 9, 5, rectified=True)
    stage = LabelSetStage(pool, head, nn.Linear(5, CLASSES), postprocess=Postprocess(rows=True), iou_threshold=0.1)
    detector = small_faster_rcnn(CLASSES, **SMALL)
    return Detector(detector.trunk, preprocess=detector.preprocess, rpn=detector.rpn, regions=stage)


def drawn_regions() -> Detector:
    """Keypoint R-CNN with a head of one convolution."""
    keypoint = KeypointStage(PyramidRoIAlign(7, strides=(4, 8)), KeypointHead(8, POINTS, channels=(8,)))
    return behind(small_faster_rcnn(CLASSES, **SMALL), keypoint=keypoint)


def described_queries() -> Detector:
    """DETR, whose queries learn embeddings as well."""
    queries = detr_stage(CLASSES, 8, channels=32, hidden=32, depth=2, queries=9)
    queries.postprocess = SetPostprocess(rows=True)
    return on_levels(queries=queries, embedding=EmbeddingStage(EmbeddingHead(32, 4), criterion=Pulls()))


def described_regions() -> Detector:
    head, pool = EmbeddingHead(8 * 9, 5), PyramidRoIAlign(3, strides=(8, 16, 32))
    return behind(small_faster_rcnn(CLASSES, **SMALL), embedding=EmbeddingStage(head, pool=pool, criterion=Pulls()))


def uneven(detector: Detector) -> Detector:
    """With boxes that differ from the anchors, and layers from each other, as after a few steps.

    At first samples lie on borders of cells, where a gradient has two sides, and all distributions are even.
    """
    ends = ("boxes.4.weight", "edges.4.weight", "initial.4.weight")
    for name, parameter in detector.objects.named_parameters():
        if name.endswith(ends):
            nn.init.normal_(parameter, std=0.2)
    return detector


FAMILIES: dict[str, Callable[[], Detector]] = {
    "ssd": lambda: fpn_ssd(CLASSES, **SMALL),
    "retinanet": lambda: small_retinanet(CLASSES, **SMALL),
    "fcos": lambda: small_fcos(CLASSES, **SMALL),
    "tood": lambda: small_tood(CLASSES, **SMALL),
    "yolox": lambda: small_yolox(CLASSES, **SMALL),
    "yolo v3": lambda: small_yolo_v3(CLASSES, **SMALL),
    "yolo v1": lambda: on_levels(dense=dense_stage("responsible", "grid", "yolo v1")),
    "atss + quality": lambda: on_levels(dense=dense_stage("atss", "distance", "quality + distribution focal")),
    "faster rcnn": lambda: small_faster_rcnn(CLASSES, **SMALL),
    "hourglass rpn": lambda: small_hourglass_rpn(**SMALL),
    "mask rcnn": lambda: small_mask_rcnn(CLASSES, **SMALL),
    "keypoint rcnn": drawn_regions,
    "detr + embedding": described_queries,
    "denoising detr": lambda: small_detr(CLASSES, size=(SIDE, SIDE), channels=32, depth=2, queries=9),
    "deformable detr": lambda: small_deformable_detr(CLASSES, size=(SIDE, SIDE), channels=32, depth=2, queries=9),
    "rt detr": lambda: uneven(small_rt_detr(CLASSES, size=(SIDE, SIDE), channels=32, depth=2, queries=9)),
    "d fine": lambda: uneven(small_d_fine(CLASSES, size=(SIDE, SIDE), channels=32, depth=2, queries=9)),
    "pix2seq": lambda: small_pix2seq(CLASSES, size=(SIDE, SIDE), channels=32, layers=1),
    "label sets": labeled_regions,
    "embedding": described_regions,
    "localizer": small_localizer,
    "several tasks": lambda: small_tasks(CLASSES, size=(SIDE, SIDE)),
    "side by side": lambda: on_levels(
        tasks=SideBySide(
            one=dense_stage("threshold", "delta", "multibox"), other=dense_stage("center", "distance", "fcos")
        )
    ),
}
"""What is left to chance is drawn alike from one seed: see :func:`small_family`."""


def small_family(name: str, *, seed: int = 0) -> Detector:
    """The detector in eval mode, with the weights of this seed; samplers take all there is."""
    torch.manual_seed(seed)
    return without_chance(FAMILIES[name]()).eval()


def scene(count: int, *, seed: int = 0) -> tuple[Tensor, Target]:
    """An image of noise, and ``count`` objects of 12 to 40 pixels with masks and keypoints."""
    generator = torch.Generator().manual_seed(seed)
    sides = torch.rand(count, 2, generator=generator) * 28 + 12
    low = torch.rand(count, 2, generator=generator) * (SIDE - sides)
    boxes = torch.cat((low, low + sides), 1)
    points = low[:, None] + torch.rand(count, POINTS, 2, generator=generator) * sides[:, None]
    masks = torch.rand(count, SIDE, SIDE, generator=generator) < 0.5
    target = Target(
        boxes=boxes,
        labels=torch.randint(0, CLASSES, (count,), generator=generator),
        masks=masks.to(torch.uint8),
        keypoints=torch.cat((points, torch.ones(count, POINTS, 1)), 2),
    )
    return torch.rand(3, SIDE, SIDE, generator=generator), target


def losses_and_gradients(detector: Detector, images: list[Tensor], targets: list[Target]) -> dict[str, Tensor]:
    """All losses, and the gradients of all parameters, by name; what is drawn is drawn alike every time."""
    torch.manual_seed(7)
    detector.zero_grad(set_to_none=True)
    losses = detector(images, targets)
    sum(losses.values()).backward()
    gradients = {name: part.grad.clone() for name, part in detector.named_parameters() if part.grad is not None}
    return {name: loss.detach() for name, loss in losses.items()} | gradients
