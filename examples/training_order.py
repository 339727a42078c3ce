"""Does the order of training data matter? Proposals after training by class, at random and balanced; selective search.

Run: python examples/training_order.py DATA runs/order (DATA holds coco_open and bccd)

The class of an image is that of most of its objects: here most images show blood cells. Printed are the statistics of
the data sets, and the recalls of the three orders beside those of selective search on the same pixels.
"""

import argparse
from collections import Counter
from pathlib import Path
from typing import Any, cast

import torch
from hourglass.training import Scene, datasets, proposed, recalls, scenes, train
from torch import nn
from tqdm import tqdm

from detkit.boxes import roi_align
from detkit.data import BalancedBatchSampler, ResumableSampler, object_statistics
from detkit.detectors import Detector, small_hourglass_rpn
from detkit.proposals import selective_search
from detkit.retrieval import ClassDistances, class_distances
from detkit.viz import plot_bars, save_picture


def class_of(scene: Scene) -> int:
    """The class of most objects; -1, none, without objects."""
    return max(Counter(scene[1]["labels"].tolist()).items(), key=lambda pair: pair[1], default=(-1, 0))[0]


def batches_of(order: str, classes: list[int], size: int, steps: int) -> list[list[int]]:
    """So many batches of images with a class; samplers share them among processes where there are several."""
    if order == "balanced":
        return [*BalancedBatchSampler(classes, size, batches=steps)]
    by_class = sorted((i for i, one in enumerate(classes) if one >= 0), key=classes.__getitem__)
    sampler, found = ResumableSampler(len(by_class), shuffle=order == "random", drop_last=True), []
    while len(found) < size * steps:
        found += [by_class[i] for i in sampler]
        sampler.set_epoch(sampler.epoch + 1)
    return [found[i : i + size] for i in range(0, size * steps, size)]


@torch.no_grad()
def distances(detector: Detector, own: list[Scene]) -> ClassDistances:
    """Of objects, embedded by the finest level before its ReLU: behind it no cosine is negative."""
    layers: Any = detector.get_submodule("trunk.1.merge.0")
    layers[-1] = nn.Identity()
    rows, labels = [], []
    for image, target in own:
        batch, targets = detector.preprocess([image], [target])
        finest, boxes = detector.trunk(batch.tensors)[0], targets.boxes[:, : len(target["labels"])]
        rows.append(roi_align(finest, boxes, 1, 1 / 8).flatten(1))
        labels.append(torch.where(rows[-1].any(1), target["labels"], -1))  # some lie beyond the last cell's center
    return class_distances(torch.cat(rows), torch.cat(labels))


def main() -> None:
    """Train in each order, search, print the tables and draw AR at 100."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path, help="folder for the picture")
    parser.add_argument("--size", type=int, nargs=2, default=(160, 224))
    parser.add_argument("--mode", choices=("single", "fast", "quality"), default="fast", help="of selective search")
    for name, default in {"steps": 200, "batch-size": 4, "images": 1000}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    sets, unseen = (scenes(args.data, split, args.size, args.images) for split in ("train", "val"))
    seen, table = [scene for own in sets for scene in own], {}
    classes = [class_of(scene) for scene in seen]
    detector = small_hourglass_rpn()
    for order in tqdm(("base", "random", "balanced")):
        torch.manual_seed(0)
        detector = small_hourglass_rpn(size=tuple(args.size), channels=48)
        cast(Any, detector.rpn).postprocess.max_proposals = 500
        train(detector, seen, batches_of(order, classes, args.batch_size, args.steps), args.steps, None)
        table[order] = [proposed(detector, own) for own in unseen]
    table["selective search"] = [[], []]
    for found, own in zip(table["selective search"], unseen, strict=True):
        for image, _ in tqdm(own):
            boxes, scores = selective_search(image, mode=args.mode, generator=torch.Generator().manual_seed(0))
            found.append({"boxes": boxes, "scores": scores, "labels": torch.zeros(len(boxes), dtype=torch.int64)})
    bars = {}
    for order, found in table.items():
        for name, boxes, own in zip(("COCO", "cells"), found, unseen, strict=True):
            values = recalls(boxes, own)
            bars[f"{order}, {name}"] = [100 * values["AR@100"]]
            print(f"{order:17} {name:6}" + "  ".join(f"{key} {100 * value:5.2f}" for key, value in values.items()))
    for split, read in (("train", sets), ("val", unseen)):
        for data, own in zip(datasets(args.data, split), read, strict=True):
            indices = range(min(len(data), args.images))
            found = object_statistics([data.target(i) for i in indices], [data.image_size(i) for i in indices])
            apart = distances(detector, own)
            print(f"{split}: {found}, inner {apart.inner:.3f}, inter {apart.inter:.3f}")
    args.output.mkdir(parents=True, exist_ok=True)
    save_picture(args.output / "order.png", plot_bars(bars, label="AR at 100 proposals, %"))


if __name__ == "__main__":
    main()
