"""Compose an SSD from parts and train it in a loop that you can see, on scenes of handwritten digits.

Run: python examples/compose_ssd.py --steps 40

Forty steps only show that the losses fall; `python -m detkit.demo` trains such a detector until it finds the digits.
"""

import argparse

import torch
from torch import nn
from torch.utils.data import DataLoader

from detkit.anchors import BipartiteMatcher, DefaultBoxes
from detkit.backbones import SmallBackbone
from detkit.boxes import DeltaCoder
from detkit.data import DigitScenes, collate
from detkit.detectors import DenseStage, Detector, Postprocess, Preprocess
from detkit.heads import DenseHead, MultiBoxHead
from detkit.losses import MultiBoxLoss
from detkit.necks import FPN
from detkit.tricks import warmup_cosine


def compose(num_classes: int) -> Detector:
    """An SSD with two levels, of 8 and 16 pixels a cell, for objects of about 12 to 60 pixels."""
    backbone = SmallBackbone((16, 32, 64), levels=(1, 2))
    neck = FPN(backbone.out_channels, backbone.strides, channels=64)
    anchors = DefaultBoxes([(16, 24), (32, 48)], aspect_ratios=[(2,), (2,)], strides=neck.strides)
    return Detector(
        nn.Sequential(backbone, neck),
        preprocess=Preprocess((96, 96)),
        dense=DenseStage(
            head=DenseHead(
                MultiBoxHead(neck.out_channels, anchors.per_cell, outputs=num_classes + 1),
                MultiBoxHead(neck.out_channels, anchors.per_cell, outputs=4),
            ),
            anchors=anchors,
            matcher=BipartiteMatcher(positive_iou=0.5),
            coder=DeltaCoder((10.0, 10.0, 5.0, 5.0)),
            criterion=MultiBoxLoss(negatives_per_positive=3.0),
            postprocess=Postprocess(score_threshold=0.1),
        ),
    )


def main() -> None:
    """Train for a few steps, then count what is found in one scene."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps (default: 40)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and order (default: 0)")
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    scenes = DigitScenes(64)
    loader = DataLoader(scenes, batch_size=16, shuffle=True, collate_fn=collate)
    detector = compose(num_classes=len(scenes.categories))
    optimizer = torch.optim.AdamW(detector.parameters(), lr=2e-3)
    schedule = warmup_cosine(optimizer, warmup_steps=1, total_steps=arguments.steps + 1, start_factor=0.5)

    step = 0
    while step < arguments.steps:
        for images, targets in loader:
            losses = detector(images, targets)
            optimizer.zero_grad()
            torch.stack([*losses.values()]).sum().backward()
            optimizer.step()
            schedule.step()
            step += 1
            print(f"step {step:3d}  " + "  ".join(f"{name} {loss.item():.3f}" for name, loss in losses.items()))
            if step == arguments.steps:
                break

    image, target = DigitScenes(1, split="test")[0]
    (found,) = detector.eval()([image])
    print(f"unseen scene: {len(target['labels'])} digits, {len(found['labels'])} detections scoring over 0.1")


if __name__ == "__main__":
    main()
