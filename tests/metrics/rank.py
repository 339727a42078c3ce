"""One process of a distributed evaluation: ``python rank.py RANK WORLD FOLDER``; also the data, for one process."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as torch_dist

from detkit.metrics import CocoMetrics, ProposalRecall, VocMetrics

SHARES = {1: [range(7)], 2: [range(7), []], 3: [[5, 0, 1], [], [6, 2, 3, 4, 0]]}
"""Images of each process: uneven, one without any, in three processes image 0 twice."""


def images(indices):
    detections, targets = [], []
    for i in indices:
        random = np.random.default_rng(i)
        count = int(random.integers(0, 6))
        corner = random.integers(0, 40, (count, 2))
        true = torch.from_numpy(np.c_[corner, corner + random.integers(4, 50, (count, 2))]).double()
        found = true + torch.from_numpy(random.integers(0, 4, (count, 1)))
        labels = torch.from_numpy(random.integers(0, 2, count))
        scores = torch.from_numpy(random.choice([0.3, 0.6, 0.9], count))  # ties between images
        detections.append({"boxes": found, "scores": scores, "labels": labels, "masks": paint(found)})
        targets.append({"boxes": true, "labels": labels, "masks": paint(true), "image_id": int(i)})
    return detections, targets


def paint(boxes):
    y, x = torch.arange(96)[:, None], torch.arange(96)
    x1, y1, x2, y2 = boxes.T[:, :, None, None]
    return (x >= x1) & (x < x2) & (y >= y1) & (y < y2)


def evaluate(indices):
    """Numbers of every metric, twice with more images in between, and per class."""
    metrics = [CocoMetrics(2, iou_types=("bbox", "segm")), VocMetrics(2), ProposalRecall((1, 3))]
    metrics.append(ProposalRecall((1, 3), match="any"))
    numbers = [metric.compute() for metric in metrics]
    for i in indices:
        for metric in metrics:
            metric.update(*images([i]))
    numbers += [metric.compute() for metric in metrics]
    return [*numbers, metrics[0].per_class("segm"), metrics[0].compute()]


def main(rank, world, folder):
    store = f"file://{folder}/store"
    torch_dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    numbers = evaluate(SHARES[world][rank])
    (Path(folder) / f"{rank}.json").write_text(json.dumps(numbers))
    torch_dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
