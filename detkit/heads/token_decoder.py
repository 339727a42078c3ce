"""A decoder that attends to encoded images and the tokens so far, and predicts logits for the next token."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from detkit._door import door
from detkit._ranges import Count
from detkit.layers import Memory, SinePositions, TransformerDecoder
from detkit.layers.transformer import LayerCache

STD = 0.02
"""Deviation of fresh embeddings."""


class TokenDecoder(nn.Module):
    """Predicts the next of ``vocabulary`` tokens from up to ``length`` tokens and a memory to attend to.

    The input is the token embedding plus a position embedding, both learned; logits are dot products with the same
    token embeddings plus a bias per token. ``decoder`` has ``channels``. Source: Chen et al. 2022, "Pix2seq", section
    2.2.

    >>> import torch
    >>> from detkit.layers import DecoderLayer
    >>> layers = TransformerDecoder([DecoderLayer(8, 2, hidden=16, norm_first=True)], norm=nn.LayerNorm(8))
    >>> decoder = TokenDecoder(layers, channels=8, vocabulary=20, length=5)
    >>> memory = Memory(torch.zeros(1, 6, 8), torch.ones(1, 1, 6, dtype=torch.bool))
    >>> decoder(torch.tensor([[3, 1, 4]]), memory).shape
    torch.Size([1, 3, 20])
    """

    @door
    def __init__(self, decoder: TransformerDecoder, *, channels: Count, vocabulary: Count, length: Count) -> None:
        super().__init__()
        self.decoder, self.length = decoder, length
        self.embedding, self.places = nn.Embedding(vocabulary, channels), nn.Embedding(length, channels)
        self.head = nn.Linear(channels, vocabulary)
        self.head.weight = self.embedding.weight
        for embedding in (self.embedding, self.places):
            nn.init.trunc_normal_(embedding.weight, std=STD, a=-2 * STD, b=2 * STD)
        nn.init.zeros_(self.head.bias)

    @door
    def forward(self, tokens: Int[Tensor, "B L"], memory: Memory) -> Float[Tensor, "B L V"]:
        """Logits for the token after each of ``tokens``; no token attends to a later one.

        Raises ValueError for more tokens than ``length``.
        """
        if tokens.shape[1] > self.length:
            raise ValueError(f"TokenDecoder: {tokens.shape[1]} tokens came; allowed are at most length={self.length}")
        read = self.embedding(tokens) + self.places.weight[: tokens.shape[1]]
        outputs = self.decoder(
            read, memory.cells, memory_positions=memory.positions, memory_mask=memory.mask, causal=True
        )
        return self.head(outputs[-1])

    @door
    def start(self, memory: Memory) -> list[LayerCache]:
        """The KV caches that :meth:`step` updates: the projected memory, and room for ``length`` tokens."""
        return self.decoder.start(memory.cells, length=self.length, memory_positions=memory.positions)

    @door
    def step(
        self, token: Int[Tensor, " B"], memory: Memory, caches: Sequence[LayerCache], *, at: int
    ) -> Float[Tensor, "B V"]:
        """Logits after token number ``at``; all earlier tokens must have used the same ``caches``. Inference only."""
        read = (self.embedding(token) + self.places.weight[at])[:, None]
        return self.head(self.decoder.step(read, caches, at=at, memory_mask=memory.mask))[:, 0]


@torch.no_grad()
def start_as_sines(embedding: nn.Embedding, tokens: slice) -> None:
    """Fill the rows ``tokens``, which count along an axis, with waves of 1/2 to 8 turns at the default init scale.

    Neighboring tokens then start with similar embeddings, and what the model learns about one token carries over to its
    neighbors. Raises ValueError unless 2 divides the embedding's width.

    >>> start_as_sines(embedding := nn.Embedding(104, 32), slice(4, 104))
    >>> near, far = (embedding.weight[4] * embedding.weight[[5, 54]]).sum(-1)
    >>> bool(near > far)
    True
    """
    rows = embedding.weight[tokens]
    positions = SinePositions(2 * rows.shape[1], temperature=16.0, turns=8.0)
    waves = positions(torch.ones(1, 1, len(rows), dtype=torch.bool, device=rows.device))
    rows.copy_(waves[0, rows.shape[1] :, 0].T * STD * 2**0.5)
