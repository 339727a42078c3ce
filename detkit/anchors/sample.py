"""Which anchors take part in the loss, when there are far more negatives than positives."""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from detkit.structures import NEGATIVE

Scope = Literal["image", "batch"]


class HardNegativeSampler(nn.Module):
    """Chooses the negatives that the network gets most wrong, a few for every positive.

    ``negatives_per_positive`` times the number of positives are taken, at least ``minimum``, and never one whose loss
    is 0. ``scope="image"`` counts and ranks within each image (Caffe, torchvision), ``"batch"`` over the whole batch
    (Keras ports). Ties go to the lower index. Source: Liu et al. 2016, section 2.2 ("Hard negative mining").

    Raises ValueError for a negative or infinite ratio, a negative minimum, or another scope.

    >>> losses, labels = torch.tensor([[9.0, 0.1, 0.3, 0.2]]), torch.tensor([[4, -1, -1, -1]])
    >>> HardNegativeSampler(2.0)(losses, labels)
    tensor([[False, False,  True,  True]])
    """

    def __init__(self, negatives_per_positive: float = 3.0, *, scope: Scope = "image", minimum: int = 0) -> None:
        super().__init__()
        if not 0 <= negatives_per_positive < math.inf or minimum < 0:
            raise ValueError(
                f"HardNegativeSampler: negatives_per_positive={negatives_per_positive} and minimum={minimum} "
                "must be at least 0 and finite"
            )
        if scope not in ("image", "batch"):
            raise ValueError(f"HardNegativeSampler: scope={scope!r}; allowed is 'image' or 'batch'")
        self.negatives_per_positive, self.scope, self.minimum = negatives_per_positive, scope, minimum

    @torch.no_grad()
    def forward(self, losses: Float[Tensor, "B N"], labels: Int[Tensor, "B N"]) -> Bool[Tensor, "B N"]:
        """True for each chosen negative.

        losses (B, N) is what each anchor costs as background; labels (B, N) its class, NEGATIVE or IGNORED.
        """
        shape = losses.shape
        if self.scope == "batch":
            losses, labels = losses.reshape(1, -1), labels.reshape(1, -1)
        eligible = (labels == NEGATIVE) & (losses > 0)
        wanted = ((labels >= 0).sum(1) * self.negatives_per_positive).long().clamp(min=self.minimum)
        order = torch.where(eligible, losses, -torch.inf).sort(dim=1, descending=True, stable=True).indices
        places = torch.arange(order.shape[1], device=order.device).expand_as(order)
        rank = torch.empty_like(order).scatter_(1, order, places)
        return (eligible & (rank < wanted[:, None])).reshape(shape)

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"{self.negatives_per_positive}, scope={self.scope!r}, minimum={self.minimum}"
