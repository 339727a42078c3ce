"""The picture of train_omniglot.py: queries with their nearest neighbors, and a map of the embeddings."""

import torch
from matplotlib.figure import Figure, FigureBase
from sklearn.manifold import TSNE
from torch import Tensor

from detkit.retrieval import BruteForceIndex, CosineDistance


def draw_neighbors(figure: FigureBase, images: Tensor, labels: Tensor, near: Tensor) -> None:
    """Each row of ``near`` a query and its nearest: framed green where their labels are the query's, else red."""
    axes = figure.subplots(*near.shape, squeeze=False)
    for panels, places in zip(axes, near.tolist(), strict=True):
        for panel, place in zip(panels, places, strict=True):
            panel.imshow(images[place].permute(1, 2, 0), cmap="gray_r")
            color = "green" if labels[place] == labels[places[0]] else "red"
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set(color=color, linewidth=2)
        panels[0].spines[:].set(color="black")
    figure.suptitle("query, and its nearest")


def picture(images: Tensor, labels: Tensor, embeddings: Tensor, *, rows: int = 8, k: int = 8) -> Figure:
    """Left ``rows`` queries with their ``k`` nearest, right a map of the embeddings."""
    index = BruteForceIndex(embeddings.shape[1], distance=CosineDistance())
    index.add(embeddings)
    queries = torch.linspace(0, len(images) - 1, rows).long()
    figure = Figure(figsize=(13, 6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1))  # pyright: ignore[reportGeneralTypeIssues]
    draw_neighbors(left, images, labels, index.search(embeddings[queries], k + 1).ids)
    points = TSNE(random_state=0, init="pca").fit_transform(embeddings[::3].numpy())
    axes = right.subplots()
    axes.scatter(*points.T, c=labels[::3].numpy() * 37 % 101, cmap="nipy_spectral", s=6)
    axes.set(xticks=[], yticks=[])
    right.suptitle("embeddings of unseen characters, by t-SNE")
    return figure
