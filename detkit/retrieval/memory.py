"""More to compare with than one batch holds: the embeddings of all processes, and those of past batches."""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from detkit._door import door
from detkit._inputs import as_tensor, promote
from detkit._ranges import Count, NotNegative
from detkit.dist import gather
from detkit.retrieval.labels import takes_part


class GatheredLoss(nn.Module):
    """The ``loss`` of the batches of all processes together, the same in each: more negatives, and exact gradients.

    Averaged over processes, as DDP does, the gradients equal those of one process with all rows. Processes may have
    different numbers of rows. References are not gathered. In a single process it is the loss itself.

    >>> from detkit.retrieval import TripletLoss
    >>> embeddings, labels = torch.rand(4, 8), torch.tensor([0, 0, 1, 1])
    >>> torch.equal(GatheredLoss(TripletLoss())(embeddings, labels), TripletLoss()(embeddings, labels))
    True
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss
        self.takes_padding = getattr(loss, "takes_padding", False)

    @door
    def forward(
        self,
        embeddings: Float[Tensor, "N D"],
        labels: Shaped[Tensor, "N *C"],
        reference_embeddings: Float[Tensor, "M D"] | None = None,
        reference_labels: Shaped[Tensor, "M *C"] | None = None,
    ) -> Float[Tensor, ""]:
        """The loss of all processes' rows."""
        alone = reference_embeddings is None and reference_labels is None
        references = () if alone else (reference_embeddings, reference_labels)
        embeddings = as_tensor(embeddings, function="GatheredLoss", name="embeddings")
        labels = as_tensor(labels, function="GatheredLoss", name="labels")
        return self.loss(gather(embeddings), gather(labels), *references)


class CrossBatchMemory(nn.Module):
    """A loss of the batch, plus ``weight`` times that of the batch against the last ``size`` embeddings of past ones.

    ``loss`` takes references and padding, as a :class:`MetricLoss` does; around other losses put one. Embeddings have
    ``channels`` numbers. The memory holds the rows of all processes, in the same order in each, and is part of the
    ``state_dict``; padding is not kept, nor what is not finite. It is filled by calls in training mode.
    Labels are whole numbers. Raises ValueError for label sets, and for more rows in a batch than the memory holds.
    Source: Wang et al. 2020, "Cross-Batch Memory for Embedding Learning", section 3.2.

    >>> from detkit.retrieval import ContrastiveLoss
    >>> memory = CrossBatchMemory(ContrastiveLoss(), 100, 8)
    >>> first = memory(torch.rand(4, 8), torch.tensor([0, 0, 1, -1]))
    >>> len(memory)
    3
    """

    embeddings: Float[Tensor, "S D"]
    labels: Int[Tensor, " S"]
    stored: Int[Tensor, ""]
    takes_padding = True

    @door
    def __init__(self, loss: nn.Module, size: Count, channels: Count, *, weight: NotNegative = 1.0) -> None:
        super().__init__()
        if not hasattr(loss, "takes_padding"):
            name = type(loss).__name__
            raise TypeError(
                f"CrossBatchMemory: loss is a {name}, which does not say whether it takes padding; give a MetricLoss, "
                "around it: MetricLoss(lambda rows, labels, others, their_labels: ..., takes_padding=False)"
            )
        self.loss, self.size, self.weight = loss, size, weight
        self.register_buffer("embeddings", torch.zeros(size, channels))
        self.register_buffer("labels", torch.full((size,), -1))
        self.register_buffer("stored", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        return min(int(self.stored), self.size)

    @door
    def forward(self, embeddings: Float[Tensor, "N D"], labels: Int[Tensor, " N"]) -> Float[Tensor, ""]:
        """The loss of a batch; afterwards, in training mode, the memory holds it too."""
        if labels.ndim != 1:
            raise ValueError(f"CrossBatchMemory: labels have shape {tuple(labels.shape)}; allowed are (N,)")
        past = self.loss(embeddings, labels, self.embeddings.clone(), self.labels.clone())
        total = self.loss(embeddings, labels) + self.weight * past
        if self.training:
            self._store(gather(promote(embeddings.detach())), gather(labels))
        return total

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"size={self.size}, weight={self.weight}"

    @torch.no_grad()
    def _store(self, embeddings: Tensor, labels: Tensor) -> None:
        """Write the rows over the oldest; where they are padding what is there is written again: shapes stay static."""
        if len(labels) > self.size:
            raise ValueError(
                f"CrossBatchMemory: a batch of {len(labels)} rows in all processes; allowed are size={self.size}"
            )
        own = takes_part(labels) & embeddings.isfinite().all(1)  # one bad batch must not spoil those after it
        order = own.to(torch.int8).argsort(descending=True, stable=True)
        places = (self.stored + torch.arange(len(labels), device=labels.device)) % self.size
        fresh = own[order]
        kept = torch.where(fresh[:, None], embeddings[order].to(self.embeddings), self.embeddings[places])
        self.embeddings.index_copy_(0, places, kept)
        self.labels.index_copy_(0, places, torch.where(fresh, labels[order].to(self.labels), self.labels[places]))
        self.stored += own.sum()
