"""The picture of train_omniglot.py: queries with their nearest neighbors, and a map of the embeddings."""

import torch
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from torch import Tensor

from detkit.retrieval import BruteForceIndex, CosineDistance


def picture(images: Tensor, labels: Tensor, embeddings: Tensor, *, rows: int = 8, k: int = 8) -> Figure:
    """Each row a query and its ``k`` nearest, framed green where they are the same character; right the map."""
    index = BruteForceIndex(embeddings.shape[1], distance=CosineDistance())
    index.add(embeddings)
    queries = torch.linspace(0, len(images) - 1, rows).long()
    near = index.search(embeddings[queries], k + 1).ids
    figure = Figure(figsize=(13, 6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1))
    for axes, place in zip(left.subplots(rows, k + 1).flat, near.flatten().tolist(), strict=True):
        axes.imshow(images[place, 0], cmap="gray_r")
        axes.set(xticks=[], yticks=[])
    for row, axes in enumerate(left.axes):
        query, place = near[row // (k + 1), 0], near.flatten()[row]
        color = "black" if row % (k + 1) == 0 else "green" if labels[place] == labels[query] else "red"
        axes.spines[:].set(color=color, linewidth=2)
    left.suptitle("query, and its nearest")
    points = TSNE(random_state=0, init="pca").fit_transform(embeddings[::3].numpy())
    axes = right.subplots()
    axes.scatter(*points.T, c=labels[::3].numpy() * 37 % 101, cmap="nipy_spectral", s=6)
    axes.set(xticks=[], yticks=[])
    right.suptitle("embeddings of unseen characters, by t-SNE")
    return figure
