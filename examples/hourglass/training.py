"""What the examples of the hourglass RPN share: two small data sets, one loop, and the recalls of proposals."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from detkit.data import CocoDataset
from detkit.detectors import Detector
from detkit.metrics import ProposalRecall
from detkit.structures import Detection, Target
from detkit.tricks import RandomObjectScale, parameter_groups, warmup_cosine

Scene = tuple[Tensor, Target]


def datasets(folder: Path, split: str, transforms: nn.Module | None = None) -> list[CocoDataset]:
    """COCO's images and blood cells."""
    files = f"annotations/instances_{split}.json"
    folders = folder / "coco_open", folder / "bccd"
    return [CocoDataset(own / "images", own / files, transforms=transforms) for own in folders]


def scenes(folder: Path, split: str, size: Sequence[int], count: int) -> list[list[Scene]]:
    """At most ``count`` images of each set, resized; the classes of blood cells follow COCO's."""
    found, first = [], 0
    for data in datasets(folder, split, v2.Resize(size)):
        read = [data[i] for i in range(min(len(data), count))]
        found.append([(image, cast(Target, {**target, "labels": target["labels"] + first})) for image, target in read])
        first += len(data.categories)
    return found


def train(
    detector: Detector, own: list[Scene], batches: Iterable[list[int]], steps: int, scale: RandomObjectScale | None
) -> None:
    """One step a batch; with ``scale`` each image at its own size, chance decides."""
    optimizer = torch.optim.AdamW(parameter_groups(detector, 2e-3, weight_decay=0.05), fused=True)
    schedule = warmup_cosine(optimizer, total_steps=steps, warmup_steps=steps // 20, start_factor=0.05)
    size = detector.preprocess.size
    detector.train().preprocess.size = None if scale else size
    for batch in batches:
        images, targets = zip(*(own[i] for i in batch), strict=True)
        given = scale(images, targets) if scale else (list(images), list(targets))
        optimizer.zero_grad()
        torch.stack([*detector(*given).values()]).sum().backward()
        nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
        optimizer.step()
        schedule.step()
    detector.eval().preprocess.size = size


@torch.no_grad()
def proposed(proposer: nn.Module, own: list[Scene]) -> list[Detection]:
    """Proposals of every image, 8 images at a time."""
    return [one for i in range(0, len(own), 8) for one in proposer([image for image, _ in own[i : i + 8]])]


def recalls(found: list[Detection], own: list[Scene]) -> dict[str, float]:
    """Recall at IoU .5 of the best 300 proposals of an image, and AR of the best 10, 100, 300 and 500."""
    truths, most, few = [target for _, target in own], ProposalRecall((10, 100, 300, 500)), ProposalRecall((300,))
    for metrics in (most, few):
        metrics.update(found, truths)
    averaged = {name: value for name, value in most.compute().items() if "@" in name}
    return {"Rec@.5": few.compute()["AR50"], **averaged}
