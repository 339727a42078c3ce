"""How near embeddings of one class are to each other, and how far classes are apart."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from detkit._door import door
from detkit._inputs import check_finite
from detkit.retrieval.distances import CosineDistance, directions
from detkit.retrieval.labels import takes_part


class ClassDistances(NamedTuple):
    """Cosine distances, in [0, 2], of the C classes that occur, in ascending order of their labels.

    ``within`` (C,): the mean over all pairs of a class, NaN of a class of one; ``between`` (C, C): those of the class
    means; ``inner`` and ``inter``: the means of the first, and of the second off its diagonal; NaN where there is none.
    """

    classes: Int[Tensor, "C"]
    within: Float[Tensor, "C"]
    between: Float[Tensor, "C C"]
    inner: float
    inter: float


@door
def class_distances(embeddings: Float[Tensor, "N D"], labels: Int[Tensor, "N"]) -> ClassDistances:
    """Inner-class and inter-class cosine distance of ``embeddings`` (N, D); work grows with N, not with its square.

    labels (N,); negative ones take no part. The source embeds images by VGG-16's fc6 and reports distances up to 1.55,
    which rectified embeddings cannot have: take them before the ReLU. Raises ValueError for other shapes, values that
    are not finite, and embeddings or class means of zeros, which have no direction.
    Source: Li et al. 2016, "Do We Really Need More Training Data For Object Localization", table of the data sets.

    >>> found = class_distances(torch.tensor([[1.0, 0], [1, 1], [0, 1]]), torch.tensor([0, 1, 2]))
    >>> found.between
    tensor([[0.0000, 0.2929, 1.0000],
            [0.2929, 0.0000, 0.2929],
            [1.0000, 0.2929, 0.0000]], dtype=torch.float64)
    """
    if embeddings.ndim != 2 or labels.ndim != 1 or len(labels) != len(embeddings):
        raise ValueError(
            f"class_distances: embeddings have shape {tuple(embeddings.shape)} and labels {tuple(labels.shape)}; "
            "allowed are (N, D) and (N,)"
        )
    own = takes_part(labels)
    rows = embeddings.detach()[own].double().cpu()
    check_finite(rows, function="class_distances", name="embeddings")
    classes, members, counts = labels[own].cpu().unique(return_inverse=True, return_counts=True)
    units = _directed(rows, "embeddings")
    sums, means = (units.new_zeros(len(classes), rows.shape[1]).index_add_(0, members, part) for part in (units, rows))
    pairs = counts * (counts - 1)
    cosines = (sums.square().sum(1) - counts) / pairs  # of all pairs of different members
    within = torch.where(pairs > 0, (1 - cosines).clamp(0, 2), torch.nan)
    means = _directed(means, "class means")
    between = CosineDistance()(means, means).fill_diagonal_(0)
    apart = between[~torch.eye(len(classes), dtype=torch.bool)]
    return ClassDistances(classes, within, between, within[pairs > 0].mean().item(), apart.mean().item())


def _directed(vectors: Float[Tensor, "N D"], name: str) -> Float[Tensor, "N D"]:
    units = directions(vectors)
    bad = units.square().sum(1) < 0.5
    if bad.any():
        raise ValueError(
            f"class_distances: {name}[{int(bad.nonzero()[0])}] is zeros, which have no direction; {int(bad.sum())} of "
            f"{len(vectors)} are"
        )
    return units
