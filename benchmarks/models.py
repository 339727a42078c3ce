"""torchvision's detectors as they come with published weights, here with random ones, and what they are given."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.ops import FrozenBatchNorm2d

from detkit.layers import freeze_batch_norm
from detkit.structures import Target

BUILDERS = {
    "RetinaNet": detection.retinanet_resnet50_fpn,
    "FCOS": detection.fcos_resnet50_fpn,
    "Faster R-CNN": detection.fasterrcnn_resnet50_fpn,
    "Faster R-CNN MobileNet": detection.fasterrcnn_mobilenet_v3_large_320_fpn,
    "Mask R-CNN": detection.maskrcnn_resnet50_fpn,
    "SSD300": detection.ssd300_vgg16,
}
_LEARNED = ("layer2", "layer3", "layer4")
_CLASSES = 80


def peer(name: str, *, norms: str = "frozen", sides: tuple[int, int] | None = None) -> nn.Module:
    """torchvision's model: with frozen norms, layer1 and the stem frozen too, as those with published weights are; or
    with ``norms="learned"``, where all learns. ``sides`` are those that images are resized to, shorter and longer."""
    torch.manual_seed(0)
    sizes = {} if sides is None else {"min_size": sides[0], "max_size": sides[1]}
    model = BUILDERS[name](weights=None, weights_backbone=None, **sizes)
    if norms == "frozen":
        for part in freeze_batch_norm(model).modules():
            if isinstance(part, FrozenBatchNorm2d):
                part.__class__ = FrozenBatchNorm2d  # torchvision's own, not our faster one
        body: Any = getattr(model.backbone, "body", None)
        if hasattr(body, "layer1"):
            for key, value in body.named_parameters():
                value.requires_grad_(key.startswith(_LEARNED))
    return model


def pictures(count: int, height: int, width: int) -> list[Tensor]:
    """Noise, in [0, 1]."""
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, height, width, generator=generator) for _ in range(count)]


def objects_in(images: Sequence[Tensor], count: int, *, masks: bool = False) -> list[Target]:
    """``count`` boxes of 10 to 100 pixels in each image, as torchvision's models take them: label 0 is background."""
    generator = torch.Generator().manual_seed(2)
    targets = []
    for image in images:
        height, width = image.shape[-2:]
        corner = torch.rand(count, 2, generator=generator) * (torch.tensor([width, height]) - 101)
        boxes = torch.cat((corner, corner + 10 + torch.rand(count, 2, generator=generator) * 90), dim=1)
        target = Target(boxes=boxes, labels=torch.randint(1, _CLASSES, (count,), generator=generator))
        if masks:
            target["masks"] = _filled(boxes, height, width)
        targets.append(target)
    return targets


def labels_from_zero(targets: Sequence[Target]) -> list[Target]:
    """The targets for a converted R-CNN or SSD, where background is no label."""
    return [Target({**target, "labels": target["labels"] - 1}) for target in targets]


def _filled(boxes: Tensor, height: int, width: int) -> Tensor:
    masks = torch.zeros(len(boxes), height, width, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    return masks
