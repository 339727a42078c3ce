"""Search, retrieval metrics and metric losses against faiss, scikit-learn and pytorch-metric-learning."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Case
from detkit import retrieval

_WIDTH, _QUERIES, _K = 256, 1024, 15


def cases() -> Iterator[Case]:
    """15 neighbors among 100,000 vectors of length 1; MAP@R of 20,000; losses of 1,024 embeddings of 256 classes."""
    yield from _searches()
    yield _precision()
    yield from _losses()


def drawn(rows: int, *, seed: int = 0) -> Tensor:
    """Embeddings of length 1."""
    return F.normalize(torch.randn(rows, _WIDTH, generator=torch.Generator().manual_seed(seed)), dim=1)


def _searches() -> Iterator[Case]:
    import faiss
    from sklearn.neighbors import BallTree

    vectors, queries = drawn(100_000), drawn(_QUERIES, seed=1)
    index = retrieval.BruteForceIndex(_WIDTH, distance=retrieval.CosineDistance())
    index.add(vectors)
    flat = faiss.IndexFlatIP(_WIDTH)
    flat.add(vectors.numpy())
    size = f"{_K} of 100,000 x {_WIDTH}"

    def same(ours: retrieval.Neighbors, theirs: tuple[np.ndarray, np.ndarray]) -> None:
        assert (ours.ids.numpy() == theirs[1]).all()

    def theirs() -> tuple[np.ndarray, np.ndarray]:
        return flat.search(queries.numpy(), _K)

    ours: Callable[[], Any] = lambda: index.search(queries, _K)  # noqa: E731
    yield Case("search", f"{size}, {_QUERIES} queries", "faiss IndexFlatIP", ours, theirs, same, 1.0, "a product")
    tree, few = BallTree(vectors.numpy()), queries[:16]
    ours, theirs = lambda: index.search(few, _K), lambda: tree.query(few.numpy(), k=_K)
    yield Case("search", f"{size}, 16 queries", "scikit-learn BallTree", ours, theirs, same, 30.0)


def _precision() -> Case:
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    labels = torch.arange(20_000) // 20
    embeddings = F.normalize(drawn(20_000) + 0.7 * drawn(1_000, seed=1)[labels], dim=1)
    calculator = AccuracyCalculator(include=("mean_average_precision_at_r",), k="max_bin_count")

    def same(ours: float, theirs: dict[str, float]) -> None:
        assert abs(ours - theirs["mean_average_precision_at_r"]) < 1e-6

    return Case(
        "MAP@R",
        "20,000 x 256, classes of 20",
        "pytorch-metric-learning",
        lambda: retrieval.map_at_r(embeddings, labels),
        lambda: calculator.get_accuracy(embeddings, labels),
        same,
        3.0,
    )


def _losses() -> Iterator[Case]:
    from pytorch_metric_learning import distances, losses

    plain = distances.LpDistance(normalize_embeddings=False)
    unsquared = functools.partial(retrieval.contrastive_cost, squared=False)
    arcface, anchors = losses.ArcFaceLoss(256, _WIDTH), losses.ProxyAnchorLoss(256, _WIDTH)
    ours_arcface, ours_anchors = retrieval.ArcFaceLoss(256, _WIDTH), retrieval.ProxyAnchorLoss(256, _WIDTH)
    ours_arcface.proxies.data.copy_(arcface.W.detach().T)
    ours_anchors.proxies.data.copy_(anchors.proxies.detach())
    contrastive = losses.ContrastiveLoss(distance=plain)
    both = {
        "contrastive": (retrieval.ContrastiveLoss(cost=unsquared, reduction="active"), contrastive),
        "triplet": (retrieval.TripletLoss(margin=0.05), losses.TripletMarginLoss(distance=plain)),
        "supervised contrastive": (retrieval.SupervisedContrastiveLoss(), losses.SupConLoss()),
        "multi-similarity": (retrieval.MultiSimilarityLoss(), losses.MultiSimilarityLoss()),
        "ArcFace": (ours_arcface, arcface),
        "proxy anchor": (ours_anchors, anchors),
    }
    embeddings, labels = drawn(1024), torch.arange(1024) // 4
    for name, pair in both.items():
        ours, theirs = (functools.partial(_learn, loss, embeddings, labels) for loss in pair)
        size = f"1,024 x {_WIDTH}, classes of 4, forward and backward"
        yield Case(f"{name} loss", size, "pytorch-metric-learning", ours, theirs, _agree, 2.0, "two products")


def _learn(loss: torch.nn.Module, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    rows = embeddings.clone().requires_grad_()
    cost = loss(rows, labels)
    cost.backward()
    assert rows.grad is not None
    return cost.detach(), rows.grad


def _agree(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
