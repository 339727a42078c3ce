"""Classify region proposals into any number of classes, and find regions by the codes of the last hidden layer.

Run: python examples/train_region_classifier.py DATA runs/regions.png (DATA holds coco_open, bccd and checkpoints)

Proposals of selective search with IoU above 0.5 with objects get all their classes. Features are a spatial pyramid of
the last map of a CIFAR-10 ResNet-20. Three classifiers learn from them; printed are the tables of the neural codes'
source, drawn its curves. Needs scikit-image and matplotlib.
"""

import argparse
from pathlib import Path

import torch
from regions.classifier import classifier
from regions.features import datasets, regions
from regions.resnet20 import ResNet20
from torch.nn import functional as F
from tqdm import tqdm

from detkit.metrics import MultiLabelMetrics
from detkit.retrieval import Gallery, neighbor_average_precision
from detkit.viz import plot_curves, save_picture

NEIGHBORS = 1, 3, 5, 10, 15


def main() -> None:
    """Make the regions, train the three classifiers, print the tables and draw the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("path", type=Path, help="PNG to write")
    parser.add_argument("--images", type=int, default=1000, help="at most so many of each set")
    parser.add_argument("--epochs", type=int, default=40)
    options = parser.parse_args()
    torch.manual_seed(0)
    trunk = ResNet20(options.data / "checkpoints" / "resnet20-12fca82f.th").eval()
    sets = [datasets(options.data, split) for split in ("train", "val")]
    names = [name for data in sets[0] for name in data.categories]
    (x, y), (seen, truth) = (regions(own, options.images, trunk) for own in sets)
    x, seen = (x - x.mean(0)) / (x.std(0) + 1e-3), (seen - x.mean(0)) / (x.std(0) + 1e-3)
    records, table, score, loss, metrics = [], [], 0.0, 0.0, MultiLabelMetrics(names)
    for name, hidden, dropout in (("linear", (), 0.0), ("MLP", (1024, 256), 0.0), ("MLP + dropout", (1024, 256), 0.5)):
        model = classifier(hidden, dropout, x.shape[1], y.mean(0))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, weight_decay=1e-4)
        for epoch in tqdm(range(1, options.epochs + 1), desc=name):
            for rows in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                F.binary_cross_entropy_with_logits(model.train()(x[rows]), y[rows]).backward()
                optimizer.step()
            with torch.no_grad():
                logits, metrics = model.eval()(seen), MultiLabelMetrics(names)
            metrics.update(logits, truth)
            loss, score = F.binary_cross_entropy_with_logits(logits, truth).item(), metrics.compute()["mAP"]
            records.append({"epoch": epoch, f"loss of {name}": loss, f"AP of {name}": score})
        table.append(f"| {name} | {score:.4f} | {loss:.4f} |")
    empty = [row.name for row in metrics.per_class() if not row.positives]
    print(f"{len(x)} regions to learn, {len(seen)} to judge; none of {len(empty)} classes: {', '.join(empty)}")
    print("\n".join(["| model | macro AP | loss |", "|---|---:|---:|", *table]))
    near = neighbor_average_precision(model[0](seen), truth, NEIGHBORS, gallery=Gallery(model[0](x), y))
    print("\n| class | learned | judged | AP |", *(f"K = {k} |" for k in NEIGHBORS), "\n|---" + "|---:" * 8 + "|")
    for c, row in enumerate(metrics.per_class()):
        if row.positives:
            found = " | ".join(f"{near.per_class[k][c]:.3f}" for k in NEIGHBORS)
            print(f"| {row.name} | {int(y[:, c].sum())} | {row.positives} | {row.AP:.3f} | {found} |")
    print("| mean | | | | " + " | ".join(f"{near.values[k]:.3f}" for k in NEIGHBORS) + " |")
    save_picture(options.path, plot_curves(records, title="Label sets of regions, on unseen images"))


if __name__ == "__main__":
    main()
