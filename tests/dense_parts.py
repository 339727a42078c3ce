"""Parts of one dense stage, by name: every matcher, coder and criterion that is tested with every other."""

from itertools import product

import torch
from torch import Tensor, nn

from detkit.anchors import (
    ATSSMatcher,
    BipartiteMatcher,
    CenterMatcher,
    GridAnchors,
    ResponsibleMatcher,
    ShapeMatcher,
    SimOTAMatcher,
    TaskAlignedMatcher,
    ThresholdMatcher,
)
from detkit.boxes import DeltaCoder, DistanceCoder, DistributionCoder, GridCoder
from detkit.detectors import DenseStage, LevelwisePostprocess
from detkit.heads import ClassificationHead, DenseHead, RegressionHead
from detkit.losses import (
    FCOSLoss,
    MultiBoxLoss,
    ObjectnessLoss,
    QualityLoss,
    RetinaNetLoss,
    YOLOLoss,
    YOLOv1Loss,
    giou_cost,
)
from detkit.structures import Images, Target, Targets, pad_targets

CLASSES, CHANNELS, STRIDES, BINS = 2, 8, (8, 16), 8
MATCHERS = {
    "threshold": ThresholdMatcher,
    "bipartite": BipartiteMatcher,
    "atss": ATSSMatcher,
    "task aligned": TaskAlignedMatcher,
    "simota": SimOTAMatcher,
    "center": CenterMatcher,
    "shape": ShapeMatcher,
    "responsible": ResponsibleMatcher,
}
CODERS = {"delta": DeltaCoder, "distance": lambda: DistanceCoder(unit=0.5), "grid": GridCoder}
CRITERIA = {
    "multibox": MultiBoxLoss,
    "focal + giou": lambda: RetinaNetLoss(giou_cost),
    "quality + distribution focal": lambda: QualityLoss(distribution_weight=0.25),
    "fcos": FCOSLoss,
    "objectness": ObjectnessLoss,
    "yolo + giou": lambda: YOLOLoss(giou_cost, prior_images=100),
    "yolo v1": YOLOv1Loss,
}
# Distributions stand for numbers from 0 to a few: distances are, deltas and places in a cell are not.
COMBINATIONS = [
    names
    for names in product(MATCHERS, CODERS, CRITERIA)
    if names[1] == "distance" or names[2] != "quality + distribution focal"
]


def dense_stage(matcher: str, coder: str, criterion: str, *, seed: int = 0) -> DenseStage:
    """A stage on two levels of 8 channels, one square anchor of two strides in each cell."""
    torch.manual_seed(seed)
    loss, boxes = CRITERIA[criterion](), CODERS[coder]()
    if loss.reads_distributions:
        boxes = DistributionCoder(boxes, bins=BINS)
    outputs = CLASSES + isinstance(loss, MultiBoxLoss)
    quality = RegressionHead(CHANNELS, 1, outputs=1) if loss.reads_quality else None
    return DenseStage(
        head=DenseHead(
            ClassificationHead(CHANNELS, 1, num_classes=outputs),
            RegressionHead(CHANNELS, 1, outputs=boxes.numbers),
            quality_head=quality,
        ),
        anchors=GridAnchors([(2 * stride,) for stride in STRIDES], aspect_ratios=(1.0,), strides=STRIDES),
        matcher=MATCHERS[matcher](),
        coder=boxes,
        criterion=loss,
        postprocess=LevelwisePostprocess(score_threshold=0.0, max_detections=20),
    )


def seen(images: int = 2, side: int = 64) -> tuple[list[Tensor], Images]:
    """Features of two levels, and the images that they would come from."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(images, CHANNELS, side // stride, side // stride) for stride in STRIDES]
    features = [torch.randn(*shape, generator=generator) for shape in shapes]
    return features, Images(torch.zeros(images, 3, side, side), torch.full((images, 2), side))


def truth(*, objects: bool = True) -> Targets:
    """Three objects in the first of two images, none in the second; or none at all."""
    boxes = torch.tensor([[4.0, 4, 22, 20], [30, 8, 60, 40], [8, 36, 28, 60]])[: 3 * objects]
    some = Target(boxes=boxes, labels=torch.tensor([0, 1, 1])[: 3 * objects])
    none = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    return pad_targets([some, none])


class Step(nn.Module):
    """The losses of a stage, as one module to compile."""

    def __init__(self, stage: DenseStage) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, features: list[Tensor], images: Images, targets: Targets) -> dict[str, Tensor]:
        return self.stage.loss(self.stage(features, images, None, targets), targets)


class Find(nn.Module):
    """The boxes, scores, labels and validity of what a stage finds, as one module to compile and export."""

    def __init__(self, stage: DenseStage) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, features: list[Tensor], tensors: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        images = Images(tensors, sizes)
        return tuple(self.stage.detections(self.stage(features, images, None), images)[:4])
