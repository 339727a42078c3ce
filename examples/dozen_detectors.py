"""Train sixteen one-shot detectors that differ in a part or two, half of them never published, and compare them.

Run: python examples/dozen_detectors.py runs/dozen --seconds 60 --seeds 3   (50 minutes of one CPU core)

Trunk, towers, data and time are the same for all; a line of DETECTORS is all that differs. Each is trained for
--seconds of CPU time on scenes of handwritten digits, and judged on scenes of digits that it has not seen.
"""

import argparse
import math
import time
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler
from tqdm import tqdm

from detkit import anchors, backbones, boxes, data, detectors, losses, metrics, necks, viz

STRIDES, BATCH, RATE = (8, 16, 32), 8, 3e-3
one, two, three, cell = (3.0,), (2.0, 3.0), (2.0, 3.0, 4.5), (1.0,)  # the squares in each place, in strides
scaled, distance = partial(boxes.DeltaCoder, (10.0, 10.0, 5.0, 5.0)), partial(boxes.DistanceCoder, unit=1.0)
integral = lambda: boxes.DistributionCoder(boxes.DistanceCoder(unit=1 / 8))  # noqa: E731
aligned = partial(losses.QualityLoss, quality="assigned")
focal = losses.RetinaNetLoss
DETECTORS = {
    "SSD": (two, anchors.BipartiteMatcher, scaled, losses.MultiBoxLoss),
    "SSD + quality focal": (two, anchors.BipartiteMatcher, scaled, losses.QualityLoss),
    "SSD + ATSS + GIoU": (one, anchors.ATSSMatcher, scaled, partial(losses.MultiBoxLoss, losses.giou_cost)),
    "RetinaNet": (two, anchors.ThresholdMatcher, boxes.DeltaCoder, losses.RetinaNetLoss),
    "RetinaNet + SimOTA + CIoU": (two, anchors.SimOTAMatcher, scaled, partial(focal, losses.ciou_cost)),
    "FCOS": (cell, anchors.CenterMatcher, distance, losses.FCOSLoss),
    "FCOS + DIoU": (cell, anchors.CenterMatcher, distance, partial(losses.FCOSLoss, losses.diou_cost)),
    "ATSS": (one, anchors.ATSSMatcher, scaled, losses.FCOSLoss),
    "ATSS + varifocal": (one, anchors.ATSSMatcher, scaled, partial(losses.QualityLoss, losses.varifocal_loss)),
    "GFL": (one, anchors.ATSSMatcher, integral, partial(losses.QualityLoss, distribution_weight=0.25)),
    "TOOD": (one, anchors.TaskAlignedMatcher, scaled, aligned),
    "TOOD + dfl": (one, anchors.TaskAlignedMatcher, integral, partial(aligned, distribution_weight=0.25)),
    "YOLOX": (cell, anchors.SimOTAMatcher, boxes.DeltaCoder, losses.ObjectnessLoss),
    "YOLO v3": (three, anchors.ShapeMatcher, boxes.GridCoder, losses.YOLOLoss),
    "YOLO v3 + TaskAligned": (three, anchors.TaskAlignedMatcher, boxes.GridCoder, losses.YOLOLoss),
    "YOLO grid + focal": (three, anchors.ShapeMatcher, boxes.GridCoder, partial(focal, losses.giou_cost)),
}


def compose(name: str) -> detectors.Detector:
    """The detector of a line, on three levels of 48 channels."""
    squares, matcher, coder, criterion = DETECTORS[name]
    backbone = backbones.SmallBackbone((32, 64, 128), levels=(1, 2))
    neck = necks.FPN(backbone.out_channels, backbone.strides, channels=48, extra=1)
    places = anchors.GridAnchors([[n * s for n in squares] for s in STRIDES], aspect_ratios=(1.0,), strides=STRIDES)
    stage = detectors.one_shot_stage(10, 48, places, matcher=matcher(), coder=coder(), criterion=criterion())
    return detectors.Detector(nn.Sequential(backbone, neck), preprocess=detectors.Preprocess(None), dense=stage)


def train(detector: detectors.Detector, scenes: Any, seconds: float) -> int:
    """Train for so many seconds of CPU time; warm-up and cosine follow the time. Returns the number of steps."""
    optimizer = torch.optim.AdamW(detector.parameters(), weight_decay=0.05)
    sampler = RandomSampler(scenes, replacement=True, num_samples=10**9)
    began = time.process_time()
    for step, (images, targets) in enumerate(DataLoader(scenes, BATCH, sampler=sampler, collate_fn=data.collate)):
        if (spent := (time.process_time() - began) / seconds) >= 1:
            return step
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, 20 * spent) * (1 + math.cos(math.pi * spent)) / 2
        optimizer.zero_grad()
        torch.stack([*detector(images, targets).values()]).sum().backward()
        nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
        optimizer.step()
    raise AssertionError("the sampler ended")


@torch.no_grad()
def judge(detector: detectors.Detector, scenes: data.DigitScenes) -> float:
    """AP on the scenes."""
    judged = metrics.CocoMetrics(scenes.categories)
    for images, targets in DataLoader(scenes, 50, collate_fn=data.collate):
        judged.update(detector.eval()(images), targets)
    return judged.compute()["bbox/AP"]


def main() -> None:
    """Train and judge all, print the table, draw the bars."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, nargs="?", default=Path("runs/dozen"), help="folder for dozen.png")
    parser.add_argument("--seconds", type=float, default=60.0, help="CPU time that each is trained for")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scenes", type=int, default=2000, help="to train on; .15 of it to judge on")
    args = parser.parse_args()
    torch.set_num_threads(1)
    scenes = [*map(data.DigitScenes(args.scenes).__getitem__, range(args.scenes))]  # drawn once
    unseen, found = data.DigitScenes(args.scenes * 3 // 20, split="test"), {name: [] for name in DETECTORS}
    for seed, name in tqdm([(seed, name) for seed in range(args.seeds) for name in DETECTORS]):
        torch.manual_seed(seed)
        detector = compose(name).to(memory_format=torch.channels_last)
        steps = train(detector, scenes, args.seconds)
        found[name].append(judge(detector, unseen))
        tqdm.write(f"{name:26} seed {seed}: {steps:5d} steps, AP {found[name][-1]:.3f}")
    for name, values in (found := dict(sorted(found.items(), key=lambda row: -mean(row[1])))).items():
        print(f"{name:26} AP {mean(values):.3f}  ({min(values):.3f} to {max(values):.3f})")
    args.output.mkdir(parents=True, exist_ok=True)
    title = f"{args.seconds:g} s of one CPU core each, {args.seeds} seeds"
    viz.save_picture(args.output / "dozen.png", viz.plot_bars(found, label="AP, unseen scenes", title=title))


if __name__ == "__main__":
    main()
