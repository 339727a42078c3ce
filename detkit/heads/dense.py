"""A dense head, composed of a class head and a box head."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from detkit._door import door
from detkit.structures import DensePredictions


class DenseHead(nn.Module):
    """Classes, boxes and optionally a quality and an embedding for every anchor, each from a head of its own.

    ``class_head`` maps the list of feature maps to logits (B, N, Q), ``box_head`` to numbers (B, N, D) that a coder
    decodes, or to a pair of these and quality logits (B, N), as :class:`~detkit.heads.FCOSHead` does. A separate
    ``quality_head`` returns (B, N, 1), as ``RegressionHead(channels, per_cell, outputs=1)`` does, and an
    ``embedding_head`` (B, N, E), for an :class:`~detkit.detectors.EmbeddingStage` behind (Wang et al. 2020, "Towards
    Real-Time Multi-Object Tracking": embeddings of the shared features). All follow the order
    of the anchors: level, row, column, anchor. A head that predicts everything at once needs no :class:`DenseHead`: it
    returns :class:`~detkit.structures.DensePredictions` itself. Raises ValueError if ``box_head`` and ``quality_head``
    both predict a quality.

    >>> import torch
    >>> from detkit.heads import MultiBoxHead
    >>> head = DenseHead(MultiBoxHead([8], [3], outputs=5), MultiBoxHead([8], [3], outputs=4))
    >>> predictions = head([torch.zeros(2, 8, 4, 4)])
    >>> predictions.logits.shape, predictions.deltas.shape, predictions.quality
    (torch.Size([2, 48, 5]), torch.Size([2, 48, 4]), None)
    """

    def __init__(
        self,
        class_head: nn.Module,
        box_head: nn.Module,
        *,
        quality_head: nn.Module | None = None,
        embedding_head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.class_head, self.box_head, self.quality_head = class_head, box_head, quality_head
        self.embedding_head = embedding_head
        paired = getattr(box_head, "gives_quality", False)
        if paired and quality_head is not None:
            raise ValueError(
                f"DenseHead: box_head={type(box_head).__name__} predicts a quality already; leave quality_head out"
            )
        self.gives_quality: bool = paired or quality_head is not None
        self.numbers: int | None = getattr(box_head, "outputs", None)

    @door
    def forward(self, features: Sequence[Float[Tensor, "B _ _ _"]]) -> DensePredictions:
        """Predictions for the anchors of all levels."""
        logits, deltas, quality = self.class_head(features), self.box_head(features), None
        if isinstance(deltas, tuple):
            deltas, quality = deltas
        if self.quality_head is not None:
            quality = self.quality_head(features).squeeze(-1)
        embeddings = None if self.embedding_head is None else self.embedding_head(features)
        return DensePredictions(logits, deltas, quality, embeddings)
