"""Regions of two data sets with their features and label sets."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import resize
from tqdm import tqdm

from detkit.boxes import SpatialPyramidPool
from detkit.data import CocoDataset
from detkit.detectors import label_sets_of, overlaps_of
from detkit.proposals import selective_search
from detkit.structures import Target, pad_targets


def datasets(folder: Path, split: str) -> list[CocoDataset]:
    """COCO's images and blood cells."""
    folders = folder / "coco_open", folder / "bccd"
    return [CocoDataset(own / "images", own / "annotations" / f"instances_{split}.json") for own in folders]


@torch.no_grad()
def regions(sets: list[CocoDataset], images: int, trunk: nn.Module) -> tuple[Tensor, Tensor]:
    """Features (M, 2944) and label sets (M, C) of all proposals on objects; classes of one set follow the other's."""
    found, first, pool = [], 0, SpatialPyramidPool(stride=4)
    classes = sum(len(data.categories) for data in sets)
    for data in sets:
        for image, target in tqdm([data[i] for i in range(min(images, len(data)))], unit="image"):
            scale = 160 / min(image.shape[1:])
            small = resize(image.as_subclass(Tensor), [round(side * scale) for side in image.shape[1:]])
            boxes, _ = selective_search(small, mode="fast", width=None, max_proposals=500)
            labels = target["labels"] + first
            crowd = target.get("iscrowd", torch.zeros_like(labels))
            objects = pad_targets([Target(boxes=target["boxes"] * scale, labels=labels, iscrowd=crowd)])
            covered = overlaps_of(boxes[None], objects) > 0
            own = covered[0].any(1)
            features = pool([trunk((small[None] / 255 - 0.45) / 0.225)], boxes[own][None])
            found.append((features, label_sets_of(covered, objects, classes)[0, own].float()))
        first += len(data.categories)
    features, label_sets = (torch.cat(column) for column in zip(*found, strict=True))
    return features, label_sets
