"""What a picture shows, and where: a classifier, a joint localizer and two SSDs compared by ILSVRC's measures.

Run: python examples/train_localizers.py --picture localizers.png    (some minutes on one core)
Pictures are windows around one object: a digit, and a blood cell or a person where DETKIT_DATA names a folder of these.
"""

import csv
import os
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional as F

from detkit import data, detectors

SIDE, SCALES, CLASSES = (64, 64), (0.2, 0.4, 0.6, 0.8, 1.0), [*"0123456789", "Platelets", "WBC", "person"]
LOCALIZERS = {
    "classifier": lambda: detectors.residual_classifier(len(CLASSES), size=SIDE),
    "joint": lambda: detectors.joint_localizer(len(CLASSES), size=SIDE, cells=4),
    "SSD7": lambda: detectors.ssd7(len(CLASSES), size=SIDE, scales=SCALES),
    "modified SSD": lambda: detectors.modified_ssd(len(CLASSES), size=SIDE, scales=SCALES, stride=8),
}


def make_set(root: Path, split: str, count: int) -> data.CsvDataset:
    """Windows around ``count`` objects of each class, as far as there are, as pictures with Kaggle's table."""
    taken, rng, sources = (
        Counter(),
        np.random.default_rng(0),
        [data.DigitScenes(6 * count, split=split, size=(160, 160))],
    )
    if folder := os.environ.get("DETKIT_DATA"):
        for name, part in (("bccd", split), ("coco_open", split.replace("test", "val"))):
            annotations = f"{folder}/{name}/annotations/instances_{part}.json"
            sources.append(data.CocoDataset(f"{folder}/{name}/images", annotations))
    rows = [("ImageId", "PredictionString")]
    for image, target, names in ((*item, source.categories) for source in sources for item in source):
        rowwise = zip(target["boxes"].numpy(), target["labels"].tolist(), strict=True)
        objects = [(box, names[label]) for box, label in rowwise if names[label] in CLASSES]
        for t, (box, name) in enumerate(objects):
            side = int((box[2:] - box[:2]).max() / rng.uniform(0.4, 0.9))
            room = np.array(image.shape[:0:-1]) - side
            if taken[name] == count or side < 20 or room.min() < 0:
                continue
            corner = rng.uniform(np.maximum(0, box[2:] - side), np.minimum(box[:2], room) + 1e-3).astype(int)
            others = [(other[:2] + other[2:]) / 2 - corner for other, _ in objects[:t] + objects[t + 1 :]]
            if any(((center > 0) & (center < side)).all() for center in others):
                continue
            taken[name] += 1
            crop = F.resized_crop(image, int(corner[1]), int(corner[0]), side, side, list(SIDE))
            F.to_pil_image(crop).save(root / f"{split}_{name}_{taken[name]}.png")
            place = ((box - [*corner, *corner]) * SIDE[0] / side).clip(0, SIDE[0]).round(2)
            rows.append((f"{split}_{name}_{taken[name]}", " ".join(map(str, (name, *place)))))
    with open(root / f"{split}.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return data.CsvDataset(root, root / f"{split}.csv", classes=CLASSES)


def fit(detector: detectors.Detector, train: data.CsvDataset, epochs: int) -> None:
    """Train on batches in which all classes are equally frequent; boxes follow the augmentation."""
    augmented = data.Augmented(train, data.localization_augmentation(horizontal=False, vertical=False))
    sampler = data.BalancedBatchSampler([train.target(i)["labels"] for i in range(len(train))], 16)
    detector = detector.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(detector.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * len(sampler))
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        augmented.set_epoch(epoch)
        for images, targets in DataLoader(augmented, batch_sampler=sampler, collate_fn=data.collate):
            with torch.autocast("cpu", torch.bfloat16):
                loss = sum(detector(images, targets).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def main() -> None:
    """Make the set, train each localizer, print the table, draw."""
