"""What tests of the stages behind boxes share: two images, their features, boxes handed over, and one training step."""

import torch
from torch import Tensor

from detkit.detectors import Stage
from detkit.structures import Detections, Images, Targets

SIZES = torch.tensor([[64, 96], [50, 70]])
IMAGES = Images(torch.zeros(2, 3, 64, 96), SIZES)


def features(images: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(images, 6, 64 // stride, 96 // stride, generator=generator) for stride in (4, 8)]


def positives(*, valid: tuple[int, int] = (3, 2), rows: int = 4) -> Detections:
    """What a box stage hands over: the first rows are positives."""
    first = torch.tensor([[3.0, 5, 41, 58], [28, 9, 96, 52], [6, 0, 38, 64], [50, 50, 60, 60]])
    second = torch.tensor([[5.0, 5, 70, 50], [8, 2, 66, 47], [1, 1, 2, 2], [0, 0, 70, 50]])
    boxes = torch.stack((first, second))[:, :rows]
    marked = torch.arange(rows) < torch.tensor(valid)[:, None]
    matched = torch.tensor([[0, 1, 0, 1], [0, 0, -1, -2]])[:, :rows]
    labels = torch.tensor([[2, 0, 2, 1], [1, 1, -1, 0]])[:, :rows]
    return Detections(boxes, marked.float(), labels, marked, matched=matched)


def learned(stage: Stage, found: Detections, targets: Targets) -> tuple[Tensor, list[Tensor | None]]:
    """The loss, and the gradients of all parameters and of the features."""
    maps = [level.requires_grad_() for level in features()]
    stage.zero_grad(set_to_none=True)
    (loss,) = stage.loss(stage(maps, IMAGES, found, targets), targets).values()
    loss.backward()
    return loss, [parameter.grad for parameter in stage.parameters()] + [level.grad for level in maps]
