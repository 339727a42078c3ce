"""A data set of one object a picture from data sets of many: square windows, and a table in Kaggle's form.

Run: python examples/make_localization_set.py --output windows
It holds digits, and blood cells (BCCD) and persons (COCO) if DETKIT_DATA names a folder with bccd and coco_open.
"""

import argparse
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torchvision.transforms.v2 import functional as F

from detkit.data import CocoDataset, CsvDataset, DigitScenes

Split = Literal["train", "test"]
SHARES: dict[Split, int] = {"train": 1, "test": 3}
CLASSES = [*"0123456789", "Platelets", "WBC", "person"]


def sources(split: Split, count: int) -> list[Any]:
    """Data sets with many objects in a picture, at least ``count`` of each class where they can."""
    found: list[Any] = [DigitScenes(6 * count, split=split, size=(160, 160))]
    for name, part in (("bccd", split), ("coco_open", {"train": "train", "test": "val"}[split])):
        if (folder := Path(os.environ.get("DETKIT_DATA", "none"), name)).is_dir():
            found.append(CocoDataset(folder / "images", folder / f"annotations/instances_{part}.json"))
    return found


def window(box: np.ndarray, boxes: Sequence[np.ndarray], size: Sequence[int], rng: np.random.Generator) -> list[int]:
    """Left, top and side of a square around ``box`` and the center of no other of ``boxes``; [] if there is no room."""
    side = int((box[2:] - box[:2]).max() / rng.uniform(0.4, 0.9))
    room = np.array(size[::-1]) - side
    if side < 20 or (room < 0).any():
        return []
    corner = rng.uniform(np.maximum(0, box[2:] - side), np.minimum(box[:2], room) + 1e-3).astype(int)
    centers = np.array([(other[:2] + other[2:]) / 2 - corner for other in boxes])
    return [*corner.tolist(), side] if ((centers > 0) & (centers < side)).all(1).sum() == 1 else []


def make_set(root: Path, split: Split, *, count: int, side: int) -> CsvDataset:
    """Up to ``count`` pictures of each class, ``side`` pixels wide, below ``root``, and their table ``split``.csv."""
    root.mkdir(parents=True, exist_ok=True)
    taken, rng, rows = Counter(), np.random.default_rng(0), ["ImageId,PredictionString"]
    for dataset in sources(split, count):
        for index in range(len(dataset)):
            target, size = dataset.target(index), dataset.image_size(index)
            names = [dataset.categories[label] for label in target["labels"]]
            objects = [(box, name) for box, name in zip(target["boxes"].numpy(), names, strict=True) if name in CLASSES]
            for box, name in objects:
                place = window(box, [other for other, _ in objects], size, rng)
                if place and taken[name] < count:
                    left, top, width = place
                    crop = F.resized_crop(dataset[index][0], top, left, width, width, [side, side])
                    F.to_pil_image(crop).save(root / f"{split}_{name}_{taken[name]}.png")
                    edges = ((box - [left, top, left, top]) * side / width).clip(0, side)
                    rows.append(f"{split}_{name}_{taken[name]},{name} " + " ".join(f"{edge:.2f}" for edge in edges))
                    taken[name] += 1
    (root / f"{split}.csv").write_text("\n".join(rows), encoding="utf-8")
    return CsvDataset(root, root / f"{split}.csv", classes=CLASSES)


def main() -> None:
    """Write both splits, and say what they hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("windows"), help="folder to write to (default: windows)")
    parser.add_argument("--count", type=int, default=60, help="pictures of each class to train on; a third to test")
    parser.add_argument("--side", type=int, default=64, help="their height and width in pixels")
    args = parser.parse_args()
    for split, share in SHARES.items():
        made = make_set(args.output, split, count=max(1, args.count // share), side=args.side)
        counts = Counter(made.categories[label] for i in range(len(made)) for label in made.target(i)["labels"])
        print(f"{split}: {len(made)} pictures;", ", ".join(f"{name} {n}" for name, n in sorted(counts.items())))


if __name__ == "__main__":
    main()
