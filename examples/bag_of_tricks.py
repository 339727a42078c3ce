"""What each trick is worth: the table of the "bag of freebies", tricks added one after another, on a small detector.

Run: torchrun --nproc-per-node 2 examples/bag_of_tricks.py runs/tricks --steps 400   (20 minutes of two busy cores)

Every cell is trained for the same number of steps, on scenes of handwritten digits or on a data set in COCO's format
(--images, --train-json, --val-json), and judged on images that it has not seen. Two processes share each batch, so that
batch norms have something to synchronize; one process alone does the same with nothing to see in that row.
"""

import argparse
import os
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.transforms import v2
from tqdm import tqdm

from detkit import anchors, data, detectors, dist, metrics, tricks, viz

ROWS = "no augmentation", "augmentation", "+ sync BN", "+ random shapes", "+ cosine", "+ label smoothing", "+ mixup"
SHIFT = v2.Compose(  # digits that are flipped are none
    [v2.RandomInvert(), v2.RandomAffine((0, 0), translate=(0.1, 0.1), fill=128), data.sanitize(min_size=6)]
)
FLIPS = v2.Compose([v2.RandomPhotometricDistort(p=0.5), data.flip_augmentation(vertical=True)])


def compose(args: argparse.Namespace, row: int, train: list[Any], classes: int) -> Any:
    """The detector of a row."""
    size = tuple(args.size)
    if args.model == "small_faster_rcnn":
        detector: Any = detectors.small_faster_rcnn(classes, size=size)
        detector.box.criterion.label_smoothing = 0.1 * (row >= 5)
    elif args.model == "small_yolo_v3":
        detector = detectors.small_yolo_v3(classes, size=size)
    else:
        sides = torch.cat([target["boxes"][:, 2:] - target["boxes"][:, :2] for _, target in train])
        small = anchors.cluster_anchors(sides, 6, generator=torch.Generator().manual_seed(0)).tolist()
        detector = detectors.yolo_v3_tiny(classes, size=size, shapes=(small[:3], small[3:]))
    if "yolo" in args.model:
        detector.dense.criterion.smooth_labels(tricks.detection_smoothing(classes) * (row >= 5))
    detector = detector.to(memory_format=torch.channels_last)
    return tricks.SyncBatchNorm.convert(detector) if row >= 2 else detector


def train(args: argparse.Namespace, row: int, scenes: list[Any], detector: Any) -> None:
    """Some steps, with the tricks of the row and of those above it; mixup ends with nine tenths of them."""
    model = DistributedDataParallel(detector) if dist.world_size() > 1 else detector
    optimizer = torch.optim.AdamW(tricks.parameter_groups(detector, 2e-3, weight_decay=0.05), fused=True)
    steps, warmup = args.steps, args.steps // 20
    milestones = [steps * 6 // 10, steps * 9 // 10]
    schedule = tricks.warmup_steps_down(optimizer, milestones=milestones, warmup_steps=warmup, start_factor=0.05)
    if row >= 4:
        schedule = tricks.warmup_cosine(optimizer, total_steps=steps, warmup_steps=warmup, start_factor=0.05)
    shapes = tricks.RandomBatchShapes([tuple(side * n // 3 for side in args.size) for n in (2, 3, 4)])
    mixup, augmentation = tricks.DetectionMixup(probability=0.5), FLIPS if args.train_json else SHIFT
    orders = torch.Generator().manual_seed(0)  # the same in all processes
    for step in range(steps):
        own = torch.randint(len(scenes), (args.batch_size,), generator=orders).tolist()[
            dist.rank() :: dist.world_size()
        ]
        batch = data.collate([augmentation(*scenes[i]) if row >= 1 else scenes[i] for i in own])
        batch = mixup(*batch) if row >= 6 and step < steps * 9 // 10 else batch
        detector.preprocess.size = shapes(step) if row >= 3 else tuple(args.size)
        optimizer.zero_grad()
        torch.stack([*model(*batch).values()]).sum().backward()
        nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
        optimizer.step()
        schedule.step()
    detector.preprocess.size = tuple(args.size)


@torch.no_grad()
def judge(detector: nn.Module, scenes: Any, categories: list[str]) -> float:
    """AP, each process judging its share."""
    judged = metrics.CocoMetrics(categories)
    own = scenes[dist.rank() :: dist.world_size()]
    for images, targets in torch.utils.data.DataLoader(own, 16, collate_fn=data.collate):
        judged.update(detector.eval()(images), targets)
    return judged.compute()["bbox/AP"]


def main() -> None:
    """Train and judge all cells, print the table with each row's gain, draw the bars."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("output", type=Path, help="folder for the picture")
    add("--model", choices=("small_yolo_v3", "yolo_v3_tiny", "small_faster_rcnn"), default="small_yolo_v3")
    add("--size", type=int, nargs=2, default=(96, 96), help="two thirds and four thirds of it: multiples of 32")
    for name, default in {"steps": 800, "batch-size": 8, "seeds": 3, "scenes": 2000}.items():
        add(f"--{name}", type=int, default=default)
    for name in ("images", "train-json", "val-json"):
        add(f"--{name}", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if "WORLD_SIZE" in os.environ:
        torch.distributed.init_process_group("gloo")
    if args.train_json:
        small = v2.Resize(args.size)
        sets = [data.CocoDataset(args.images, file, transforms=small) for file in (args.train_json, args.val_json)]
    else:
        sets = [data.DigitScenes(args.scenes), data.DigitScenes(args.scenes * 3 // 20, split="test")]
    seen, unseen = ([*map(own.__getitem__, range(len(own)))] for own in sets)  # read once
    found: dict[str, list[float]] = {row: [] for row in ROWS}
    for seed, row in tqdm([(s, r) for s in range(args.seeds) for r in range(len(ROWS))], disable=dist.rank() > 0):
        torch.manual_seed(seed)
        detector = compose(args, row, seen, len(sets[0].categories))
        torch.manual_seed(1000 * seed + dist.rank())
        train(args, row, seen, detector)
        found[ROWS[row]].append(judge(detector, unseen, sets[0].categories))
        if dist.rank() == 0:
            tqdm.write(f"{ROWS[row]:18} seed {seed}: AP {found[ROWS[row]][-1]:.3f}")
    if dist.rank() == 0:
        before = mean(found[ROWS[0]])
        for name, values in found.items():
            gain, before = mean(values) - before, mean(values)
            print(f"{name:18} AP {before:.3f}  ({min(values):.3f} to {max(values):.3f})  {gain:+.3f}")
        args.output.mkdir(parents=True, exist_ok=True)
        title = f"{args.model}, {args.steps} steps of {args.batch_size}, {args.seeds} seeds"
        viz.save_picture(
            args.output / f"{args.model}.png", viz.plot_bars(found, label="AP, unseen images", title=title)
        )


if __name__ == "__main__":
    main()
