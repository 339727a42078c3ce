"""How well clusters of embeddings agree with labels, by scikit-learn."""

from typing import Any, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from detkit._door import door
from detkit._inputs import check_finite
from detkit._ranges import Count, Whole
from detkit.retrieval.labels import takes_part


class ClusterAgreement(NamedTuple):
    """Mutual information of clusters and labels: normalized, in [0, 1], and adjusted for chance, 0 for no relation."""

    normalized: float
    adjusted: float


@door
def cluster_agreement(
    embeddings: Float[Tensor, "N D"], labels: Int[Tensor, "N"], *, clusters: Count | None = None, seed: Whole = 0
) -> ClusterAgreement:
    """NMI and AMI of the labels with ``clusters`` k-means clusters, by default as many as there are labels.

    embeddings (N, D); labels (N,), negative ones take no part. k-means is scikit-learn's, the best of 10 starts from
    ``seed``. Raises ValueError for values that are not finite, for label sets, and for more clusters than embeddings.

    >>> import torch
    >>> cluster_agreement(torch.tensor([[0.0], [0.1], [5.0], [5.1]]), torch.tensor([0, 0, 1, 1]))
    ClusterAgreement(normalized=1.0, adjusted=1.0)
    """
    if labels.ndim != 1 or len(labels) != len(embeddings):
        raise ValueError(
            f"cluster_agreement: embeddings have shape {tuple(embeddings.shape)} and labels {tuple(labels.shape)}; "
            "allowed are (N, D) and (N,)"
        )
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

    own = takes_part(labels)
    rows, truth = embeddings.detach()[own].double().cpu(), labels[own].cpu().numpy()
    check_finite(rows, function="cluster_agreement", name="embeddings")
    clusters = len(set(truth.tolist())) if clusters is None else clusters
    if not 1 <= clusters <= len(rows):
        raise ValueError(f"cluster_agreement: {clusters=} of {len(rows)} embeddings; allowed is 1..{len(rows)}")
    settings: Any = {"n_init": 10, "random_state": seed}  # scikit-learn's annotation takes "auto" only
    found = KMeans(clusters, **settings).fit_predict(rows.numpy())
    return ClusterAgreement(
        float(normalized_mutual_info_score(truth, found)), float(adjusted_mutual_info_score(truth, found))
    )
