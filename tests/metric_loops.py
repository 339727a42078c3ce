"""Metric losses by loops over pairs and triplets, in float64: slow, and as the papers write them."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Rows = list[tuple[np.ndarray, frozenset[int]]]


def rows_of(embeddings: Tensor, labels: Tensor) -> Rows:
    """Embedding and label set of each row that takes part."""
    sets = [{int(label)} if labels.ndim == 1 else set(label.nonzero().flatten().tolist()) for label in labels]
    known = (labels if labels.ndim == 1 else labels.amin(1)) >= 0
    numbers = embeddings.detach().double().numpy()
    return [(numbers[i], frozenset(sets[i])) for i in range(len(labels)) if known[i]]


def partners(anchors: Rows, references: Rows | None) -> list[tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]]:
    """Of each anchor its equal and its different partners."""
    found = []
    for i, (own, label) in enumerate(anchors):
        others = references if references is not None else [row for j, row in enumerate(anchors) if j != i]
        positives = [row for row, other in others if label & other]
        found.append((own, positives, [row for row, other in others if not label & other]))
    return found


def euclidean(a: np.ndarray, b: np.ndarray) -> float:
    return math.sqrt(float(((a - b) ** 2).sum()))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    lengths = max(float(np.linalg.norm(a)), 1e-12) * max(float(np.linalg.norm(b)), 1e-12)
    return float(a @ b) / lengths


def mean(costs: list[float]) -> float:
    return sum(costs) / max(len(costs), 1)


def contrastive(anchors: Rows, references: Rows | None, *, margin: float = 1.0, active: bool = False) -> float:
    near, far = [], []
    for own, positives, negatives in partners(anchors, references):
        near += [euclidean(own, other) ** 2 / 2 for other in positives]
        far += [max(0.0, margin - euclidean(own, other)) ** 2 / 2 for other in negatives]
    if active:
        return mean([cost for cost in near if cost > 0]) + mean([cost for cost in far if cost > 0])
    return mean(near + far)


def triplet(anchors: Rows, references: Rows | None, *, margin: float = 1.0, active: bool = True) -> float:
    costs = [
        max(0.0, euclidean(own, positive) - euclidean(own, negative) + margin)
        for own, positives, negatives in partners(anchors, references)
        for positive in positives
        for negative in negatives
    ]
    return mean([cost for cost in costs if cost > 0] if active else costs)


def supervised_contrastive(anchors: Rows, references: Rows | None, *, temperature: float = 0.1) -> float:
    costs = []
    for own, positives, negatives in partners(anchors, references):
        if positives:
            shares = [math.exp(cosine(own, other) / temperature) for other in positives + negatives]
            costs.append(mean([math.log(sum(shares)) - cosine(own, other) / temperature for other in positives]))
    return mean(costs)


def multi_similarity(anchors: Rows, references: Rows | None) -> float:
    costs = []
    for own, positives, negatives in partners(anchors, references):
        near = sum(math.exp(-2 * (cosine(own, other) - 0.5)) for other in positives)
        far = sum(math.exp(50 * (cosine(own, other) - 0.5)) for other in negatives)
        if positives or negatives:
            costs.append(math.log(1 + near) / 2 + math.log(1 + far) / 50)
    return mean(costs)


def arcface(rows: Rows, proxies: np.ndarray, *, margin: float, scale: float) -> float:
    costs = []
    for own, label in rows:
        cosines = [cosine(own, proxy) for proxy in proxies]
        (c,) = label
        angle = math.acos(min(max(cosines[c], -1.0), 1.0))
        cosines[c] = math.cos(angle + margin) if angle + margin < math.pi else cosines[c] - margin * math.sin(margin)
        costs.append(math.log(sum(math.exp(scale * (value - cosines[c])) for value in cosines)))
    return mean(costs)


def proxy_anchor(rows: Rows, proxies: np.ndarray, *, margin: float = 0.1, alpha: float = 32.0) -> float:
    near, far = [], []
    for c, proxy in enumerate(proxies):
        inside = [math.exp(-alpha * (cosine(own, proxy) - margin)) for own, label in rows if c in label]
        outside = [math.exp(alpha * (cosine(own, proxy) + margin)) for own, label in rows if c not in label]
        near += [math.log(1 + sum(inside))] if inside else []
        far.append(math.log(1 + sum(outside)))
    return mean(near) + mean(far)


LOOPS: dict[str, Callable[[Rows, Rows | None], float]] = {
    "ContrastiveLoss": contrastive,
    "TripletLoss": triplet,
    "SupervisedContrastiveLoss": supervised_contrastive,
    "MultiSimilarityLoss": multi_similarity,
}


def batch(rows: int, classes: int, *, width: int = 5, seed: int = 0, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(rows, width)) * spread), torch.from_numpy(rng.integers(0, classes, rows))


def hostile() -> dict[str, tuple[Tensor, Tensor]]:
    """Batches on which losses fail elsewhere: all float64."""
    drawn, labels = batch(9, 3)
    sets = torch.from_numpy(np.random.default_rng(1).integers(0, 2, (9, 4)))
    twice = torch.cat((drawn[:4], drawn[:4]))
    padded = labels.clone()
    padded[[0, 4, 5]] = torch.tensor([-1, -2, -1])
    return {
        "random": (drawn, labels),
        "label sets": (drawn, sets),
        "padded label sets": (drawn, torch.where(padded[:, None] < 0, -1, sets)),
        "padding": (drawn, padded),
        "only padding": (drawn, torch.full((9,), -1)),
        "duplicates": (twice, torch.tensor([0, 0, 1, 1, 0, 1, 1, 2])),
        "all the same point": (torch.ones(4, 5).double(), torch.tensor([0, 0, 1, 1])),
        "one class": (drawn, torch.zeros(9, dtype=torch.int64)),
        "every label alone": (drawn, torch.arange(9)),
        "one row": (drawn[:1], labels[:1]),
        "no rows": (drawn[:0], labels[:0]),
        "zeros": (torch.cat((torch.zeros(2, 5).double(), drawn[:4])), torch.tensor([0, 1, 0, 0, 1, 1])),
        "far apart": (drawn * 1e4, labels),
        "near": (drawn * 1e-3, labels),
    }
