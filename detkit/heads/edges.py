"""D-FINE's head: a class, distributions of where the edges of a box are, and how much to trust them."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detkit._door import door
from detkit._inputs import promote
from detkit._ranges import Count
from detkit.heads.set_prediction import prior_bias, small_net


class QualityEstimator(nn.Module):
    """A logit that says how sharp four distributions are: from the ``top`` probabilities of each, and their mean.

    At the start it is 0. Source: Li et al. 2021, "Generalized Focal Loss V2", section 3.2, as Peng et al. 2024,
    "D-FINE", has it.

    >>> QualityEstimator(bins=4)(torch.zeros(2, 5, 20)).shape
    torch.Size([2, 5, 1])
    """

    @door
    def __init__(self, *, bins: Count = 32, top: Count = 4, hidden: Count = 64, depth: Count = 2) -> None:
        super().__init__()
        self.bins, self.top = bins, top
        self.net = small_net(4 * (top + 1), hidden, 1, depth)
        for parameter in self.net[-1].parameters():
            nn.init.zeros_(parameter)

    @door
    def forward(self, distributions: Float[Tensor, "*B D"]) -> Float[Tensor, "*B 1"]:
        """A logit (..., 1) of ``distributions`` (..., 4 * (bins + 1))."""
        shares = promote(distributions).unflatten(-1, (4, self.bins + 1)).softmax(-1)
        top = shares.topk(self.top, dim=-1).values
        shape = torch.cat((top, top.mean(-1, keepdim=True)), -1).flatten(-2)
        return self.net(shape.to(next(self.net.parameters()).dtype))

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"bins={self.bins}, top={self.top}"


class EdgeHead(nn.Module):
    """A linear layer predicts the class, an MLP of ``depth`` layers the distributions, which ``quality`` judges.

    Logits are for a sigmoid; there is no column for no object. At the start distributions are even. Source: Peng et
    al. 2024, "D-FINE", section 4.1.

    >>> plain, logits, distributions = EdgeHead(8, num_classes=3, bins=4)(torch.zeros(2, 5, 8), torch.zeros(2, 5, 8))
    >>> logits.shape, distributions.shape
    (torch.Size([2, 5, 3]), torch.Size([2, 5, 20]))
    """

    @door
    def __init__(
        self,
        channels: Count,
        *,
        num_classes: Count,
        bins: Count = 32,
        depth: Count = 3,
        quality: QualityEstimator | None = None,
    ) -> None:
        super().__init__()
        self.logits = prior_bias(nn.Linear(channels, num_classes))
        self.edges = small_net(channels, channels, 4 * (bins + 1), depth)
        self.quality = QualityEstimator(bins=bins) if quality is None else quality
        for parameter in self.edges[-1].parameters():
            nn.init.zeros_(parameter)

    @door
    def forward(
        self,
        embeddings: Float[Tensor, "*B D"],
        before: Float[Tensor, "*B D"],
        distributions: Float[Tensor, "*B _"] | None = None,
    ) -> tuple[Float[Tensor, "*B C"], Float[Tensor, "*B C"], Float[Tensor, "*B _"]]:
        """Logits of the classes, the same plus that of the quality, and distributions.

        ``before`` are the embeddings of the layer before, which the MLP reads added to ``embeddings``, and
        ``distributions`` its distributions, which the result is added to.
        """
        plain, own = self.logits(embeddings), self.edges(embeddings + before)
        total = own if distributions is None else own + distributions
        return plain, plain + self.quality(total), total
