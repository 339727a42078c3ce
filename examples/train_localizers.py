"""What a picture shows, and where: a classifier, a joint localizer and two SSDs compared by ILSVRC's measures.

Run: python examples/train_localizers.py --picture localizers.png    (some ten minutes on one core)
The pictures are those of make_localization_set.py.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import torch
from make_localization_set import make_set
from torch.utils.data import DataLoader
from torchvision.transforms.functional import to_tensor
from torchvision.utils import save_image

from detkit.data import Augmented, BalancedBatchSampler, CsvDataset, collate, localization_augmentation
from detkit.detectors import Detector, joint_localizer, modified_ssd, residual_classifier, ssd7
from detkit.metrics import LocalizationMetrics
from detkit.viz import draw_detections

SIDE = 64
SIZE, SCALES = (SIDE, SIDE), (0.2, 0.4, 0.6, 0.8, 1.0)  # objects take 0.4 to 0.9 of a picture
LOCALIZERS = {
    "classifier": partial(residual_classifier, size=SIZE),
    "joint": partial(joint_localizer, size=SIZE, cells=4),
    "SSD7": partial(ssd7, size=SIZE, scales=SCALES),
    "modified SSD": partial(modified_ssd, size=SIZE, scales=SCALES, stride=8),
}


def fit(detector: Detector, train: CsvDataset, epochs: int) -> None:
    """Train on batches in which all classes are equally frequent; boxes follow the augmentation."""
    augmented = Augmented(train, localization_augmentation(horizontal=False, vertical=False))  # digits have a way up
    sampler = BalancedBatchSampler([train.target(i)["labels"] for i in range(len(train))], 16)
    optimizer = torch.optim.AdamW(detector.train().to(memory_format=torch.channels_last).parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * len(sampler))
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        augmented.set_epoch(epoch)
        for images, targets in DataLoader(augmented, batch_sampler=sampler, collate_fn=collate):
            with torch.autocast("cpu", torch.bfloat16):
                loss = torch.stack([*detector(images, targets).values()]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def main() -> None:
    """Make the set, train and judge each localizer, draw the truth and every first guess."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60, help="pictures of each class to train on; a third to test")
    parser.add_argument("--epochs", type=int, default=10, help="passes over them")
    parser.add_argument("--picture", help="PNG file to write truth and guesses to, a row for each localizer")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        train = make_set(Path(folder), "train", count=args.count, side=SIDE)
        test = make_set(Path(folder), "test", count=max(1, args.count // 3), side=SIDE)
        images, targets = collate([*test])
        shown = torch.linspace(0, len(test) - 1, 13).long().tolist()
        draw = partial(draw_detections, categories=test.categories, enlarge=2)
        tiles = [draw(images[i], targets[i]) for i in shown]
        for name, build in LOCALIZERS.items():
            torch.manual_seed(0)
            detector = build(len(train.categories))
            fit(detector, train, args.epochs)
            with torch.no_grad():
                found = detector.eval()(images)
            metrics = LocalizationMetrics(test.categories)
            metrics.update(found, targets)
            print(f"{name:13}", "  ".join(f"{key} {value:.3f}" for key, value in metrics.compute().items()), flush=True)
            tiles += [draw(images[i], found[i], score_threshold=found[i]["scores"][:1].sum().item()) for i in shown]
    if args.picture:
        save_image([*map(to_tensor, tiles)], args.picture, nrow=len(shown))


if __name__ == "__main__":
    main()
