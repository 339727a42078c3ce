"""A head that describes each region, or each vector, by an embedding: a point among others of its kind."""

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from detkit._door import door
from detkit._inputs import promote
from detkit._ranges import Count, Fraction


class EmbeddingHead(nn.Module):
    """Fully connected layers on flattened regions (M, D, S, S) or vectors (M, D): embeddings (M, ``channels``).

    ``in_features`` is D * S * S. ``hidden`` are the widths of the layers before the last, each followed by ReLU and
    ``dropout``. ``rectified`` ends with a ReLU, as the last hidden layer of a classifier does, whose outputs are neural
    codes (Babenko et al. 2014, section 3); ``normalized`` scales every embedding to length 1, as cosine losses want it.
    Convolutions come before it: ``nn.Sequential(conv_body(8, 7, width=64), EmbeddingHead(64, 128))``.
    Raises ValueError for widths below 1 and a dropout outside [0, 1].

    >>> import torch
    >>> embeddings = EmbeddingHead(8 * 3 * 3, 16, hidden=(32,), normalized=True)(torch.rand(5, 8, 3, 3))
    >>> embeddings.shape, torch.allclose(embeddings.norm(dim=1), torch.ones(5))
    (torch.Size([5, 16]), True)
    """

    @door
    def __init__(
        self,
        in_features: Count,
        channels: Count = 256,
        *,
        hidden: Sequence[Count] = (),
        dropout: Fraction = 0.0,
        rectified: bool = False,
        normalized: bool = False,
    ) -> None:
        super().__init__()
        widths = (in_features, *hidden)
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
        layers += [nn.Linear(widths[-1], channels), *([nn.ReLU()] if rectified else [])]
        self.layers, self.in_features, self.normalized = nn.Sequential(*layers), in_features, normalized

    @door
    def forward(self, regions: Float[Tensor, "M *D"]) -> Float[Tensor, "M channels"]:
        """The embeddings. Raises ValueError unless each region has ``in_features`` numbers."""
        if regions[:1].numel() not in (self.in_features, 0):
            raise ValueError(
                f"EmbeddingHead: regions have shape {tuple(regions.shape)}; allowed are in_features={self.in_features} "
                "numbers each"
            )
        embeddings = self.layers(regions)
        if not self.normalized:
            return embeddings
        return F.normalize(promote(embeddings), dim=1).to(embeddings.dtype)  # float16 has no 1e-12, and divides by 0

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"normalized={self.normalized}"
