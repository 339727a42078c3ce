"""One network detects, embeds and finds: each digit of a scene, and the digits most like it in other scenes.

Run: python examples/find_similar.py runs/similar.png    (about two minutes on one core)

A small SSD and an embedding stage behind it learn together. What it detects in the validation scenes goes into an index
with its embeddings; what it detects in the test scenes is searched there. The two splits share no drawing. Printed are
the detector's AP and, against the true digits, recall@1 of the index, beside that of the crops' pixels.
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
from detkit.detectors import Detector, EmbeddingStage, fpn_ssd
from detkit.heads import EmbeddingHead
from detkit.retrieval import BruteForceIndex, CosineDistance, SupervisedContrastiveLoss
from detkit.viz import save_picture

CHANNELS, NEIGHBORS = 48, 7


def network() -> Detector:
    """Two stages on one trunk: boxes, and embeddings of the boxes."""
    base = fpn_ssd(10, size=(96, 96), channels=CHANNELS)
    pool = PyramidRoIAlign(7, strides=(8, 16, 32), canonical_size=96)
    head = EmbeddingHead(CHANNELS * 7 * 7, 32, hidden=(128,), normalized=True)
    embedding = EmbeddingStage(head, pool=pool, criterion=SupervisedContrastiveLoss())
    return Detector(base.trunk, preprocess=base.preprocess, **base.stages, embedding=embedding)


def nearest(queries: Tensor, gallery: Tensor) -> Tensor:
    """Which of the gallery are nearest to each query, by the cosine (N, NEIGHBORS)."""
    index = BruteForceIndex(gallery.shape[1], distance=CosineDistance())
    index.add(gallery)
    return index.search(queries, k=min(NEIGHBORS, len(index))).ids


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
    detector.eval()
    (crops, embeddings, labels, digits), (other_crops, other_embeddings, _, other_digits) = (
        detected(detector, DigitScenes(options.scenes, split=split), options.score) for split in ("test", "val")
    )
    true = digits >= 0
    print(f"{len(true)} detections, {true.sum()} of digits; classified: {(labels == digits)[true].double().mean():.3f}")
    for name, queries, gallery in (("raw pixels", crops, other_crops), ("embeddings", embeddings, other_embeddings)):
        near = nearest(queries.flatten(1), gallery.flatten(1))
        print(f"recall@1 of {name}: {(other_digits[near[:, 0]] == digits)[true].double().mean():.3f}")
    chosen = torch.stack([(digits == digit).nonzero()[0, 0] for digit in digits[true].unique()])
    rows = torch.cat((chosen[:, None], near[chosen] + len(crops)), 1)  # the gallery follows the queries
    figure = Figure((6, 8), layout="constrained")
    draw_neighbors(figure, torch.cat((crops, other_crops)), torch.cat((digits, other_digits)), rows)
    save_picture(options.path, figure)


if __name__ == "__main__":
    main()
