"""One network detects, embeds and finds: each digit of a scene, and the digits most like it in other scenes.

Run: python examples/find_similar.py runs/similar.png    (a few minutes on one core)

A small Faster R-CNN and an embedding stage behind it learn together. What is detected in test scenes goes into an index
with its embeddings. Printed are the detector's AP, and recall@1 of the index against the true digits.
"""

import argparse

import torch
from matplotlib.figure import Figure
from omniglot.picture import draw_neighbors
from similar.detections import detected
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from detkit.boxes import PyramidRoIAlign
from detkit.data import DigitScenes, collate
from detkit.detectors import Detector, EmbeddingStage, small_faster_rcnn
from detkit.heads import EmbeddingHead
from detkit.retrieval import BruteForceIndex, CosineDistance, SupervisedContrastiveLoss
from detkit.viz import save_picture

CHANNELS, NEIGHBORS, MOST = 32, 7, 100  # at most so many detections in a scene


def network() -> Detector:
    """Three stages on one trunk: proposals, boxes, embeddings of the boxes."""
    base = small_faster_rcnn(10, size=(96, 96), channels=CHANNELS)
    pool = PyramidRoIAlign(7, strides=(8, 16, 32), canonical_size=96)
    head = EmbeddingHead(CHANNELS * 7 * 7, 32, hidden=(128,), normalized=True)
    embedding = EmbeddingStage(head, pool=pool, criterion=SupervisedContrastiveLoss())
    return Detector(base.trunk, preprocess=base.preprocess, **base.stages, embedding=embedding)


def from_other_scenes(embeddings: Tensor, scenes: Tensor) -> Tensor:
    """The nearest of each detection among those of other scenes (N, NEIGHBORS)."""
    index = BruteForceIndex(embeddings.shape[1], distance=CosineDistance())
    index.add(embeddings)
    near = index.search(embeddings, k=min(MOST + NEIGHBORS, len(index))).ids
    own = scenes[near] == scenes[:, None]
    return near.gather(1, own.sort(stable=True).indices)[:, :NEIGHBORS]


def main() -> None:
    """Train, detect, search, and draw queries beside their neighbors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="PNG to write")
    for name, default in (("steps", 600), ("scenes", 200), ("score", 0.5)):
        parser.add_argument(f"--{name}", type=type(default), default=default)
    options, _ = parser.parse_args(), torch.manual_seed(0)
    detector, train = network(), DigitScenes(8 * options.steps)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=options.steps)
    for images, targets in tqdm(DataLoader(train, 8, collate_fn=collate)):
        optimizer.zero_grad()
        torch.stack([*detector(images, targets).values()]).sum().backward()
        optimizer.step()
        schedule.step()
    test = DigitScenes(options.scenes, split="test")
    crops, embeddings, labels, digits, scenes = detected(detector.eval(), test, options.score)
    true = digits >= 0
    print(f"{len(true)} detections, {true.sum()} of digits; classified: {(labels == digits)[true].double().mean():.3f}")
    for name, vectors in (("raw pixels", crops.flatten(1)), ("embeddings", embeddings)):
        near = from_other_scenes(vectors, scenes)
        print(f"recall@1 of {name}: {(digits[near[:, 0]] == digits)[true].double().mean():.3f}")
    chosen = torch.stack([(digits == digit).nonzero()[0, 0] for digit in digits[true].unique()])
    draw_neighbors(
        figure := Figure((6, 8), layout="constrained"), crops, digits, torch.cat((chosen[:, None], near[chosen]), 1)
    )
    save_picture(options.path, figure)


if __name__ == "__main__":
    main()
