"""Learn a metric on some alphabets and find characters of others: raw pixels, neural codes and metric losses.

Run: python examples/train_omniglot.py FOLDER runs/omniglot.png (FOLDER holds images_background_small1.zip and 2)

The same small network learns to classify the characters of some alphabets, or one of the losses of detkit.retrieval.
Printed is recall@1 on unseen alphabets, over several seeds; drawn are queries with their neighbors, and a map.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from omniglot.characters import characters
from omniglot.picture import picture
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from detkit import retrieval
from detkit.data import BalancedBatchSampler
from detkit.layers import ConvNormActivation
from detkit.viz import save_picture

LOSSES = ("Contrastive", "Triplet", "SupervisedContrastive", "MultiSimilarity", "ArcFace", "ProxyAnchor")


def network() -> nn.Sequential:
    """64 numbers for each image."""
    convolutions = [nn.Sequential(ConvNormActivation(c, 32), nn.MaxPool2d(2)) for c in (1, 32, 32)]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(32 * 9, 64))


def learned(name: str, images: Tensor, labels: Tensor, *, steps: int, seed: int) -> nn.Module:
    """The network after ``steps`` batches of 16 characters x 4 drawings; a classifier's codes without such a loss."""
    torch.manual_seed(seed)
    labels = torch.unique(labels, return_inverse=True)[1]
    classes, body = int(labels.max()) + 1, network()
    kind = getattr(retrieval, f"{name}Loss", None)
    if kind is None:
        last = nn.Linear(64, classes)
        loss = lambda codes, own: F.cross_entropy(last(F.relu(codes)), own)  # noqa: E731
    else:
        last = loss = kind(classes, 64) if name in ("ArcFace", "ProxyAnchor") else kind()
    optimizer = torch.optim.Adam([*body.parameters(), *last.parameters()], lr=2e-3)
    batches = BalancedBatchSampler(labels.tolist(), 64, samples_per_class=4, batches=steps, seed=seed)
    for rows in tqdm(batches, desc=f"{name} {seed}", leave=False):
        optimizer.zero_grad()
        loss(body(images[rows]), labels[rows]).backward()
        optimizer.step()
    return nn.Sequential(body, nn.ReLU()).eval() if kind is None else body.eval()


def main() -> None:
    """Train everything, print the table, draw neighbors and map."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("path", type=Path, help="PNG to write")
    for name, default in (("--steps", 400), ("--seeds", 3)):
        parser.add_argument(name, type=int, default=default)
    options = parser.parse_args()
    images, labels, unseen = characters(options.folder)
    queries, truth, cosine = images[unseen], labels[unseen], retrieval.CosineDistance()
    pixels = retrieval.recall_at_k(queries.flatten(1), truth, distance=cosine).values[1]
    print(f"| embedding | recall@1 of {len(queries)} unseen drawings |\n|---|---:|\n| raw pixels | {pixels:.3f} |")
    best, shown = 0.0, queries
    for name in ("codes of a classifier", *LOSSES):
        found = []
        for seed in range(options.seeds):
            model = learned(name, images[~unseen], labels[~unseen], steps=options.steps, seed=seed)
            embeddings = model(queries).detach()
            found.append(retrieval.recall_at_k(embeddings, truth, distance=cosine).values[1])
            if found[-1] > best:
                best, shown = found[-1], embeddings
        print(f"| {name} | {np.mean(found):.3f} ± {np.std(found):.3f} |", flush=True)
    save_picture(options.path, picture(queries, truth, shown))


if __name__ == "__main__":
    main()
