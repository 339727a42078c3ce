"""An encoder of feature maps, and a decoder that reads them and the tokens so far, and scores what comes next."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from detkit.layers import init_convolutions
from detkit.layers.position import SinePositions, cells_inside
from detkit.layers.transformer import LayerCache, TransformerDecoder, TransformerEncoder
from detkit.structures import Images

STD = 0.02
"""Deviation of fresh embeddings."""


class Memory(NamedTuple):
    """Encoded images: their S cells, which know where they lie, and which of them hold image."""

    cells: Float[Tensor, "B S D"]
    mask: Bool[Tensor, "B 1 S"]


class MapEncoder(nn.Module):
    """Reads the last feature map, cell by cell, with attention among the cells that hold image.

    ``in_channels`` of the map are projected to ``channels``; ``positions`` embeds a mask of cells (B, H, W) as
    (B, channels, H, W), as :class:`~detkit.layers.position.SinePositions` does. They are added to the cells before the
    ``encoder`` and again behind it, so that what a decoder fetches says where it lies: its words are places.
    Source: Chen et al. 2022, "Pix2seq", section 2.2, with the positions of the release.

    >>> import torch
    >>> from detkit.layers.position import SinePositions
    >>> encoder = MapEncoder(16, 8, positions=SinePositions(8), encoder=TransformerEncoder([]))
    >>> images = Images(torch.zeros(1, 3, 64, 96), torch.tensor([[64, 90]]))
    >>> encoder([torch.zeros(1, 16, 2, 3)], images).cells.shape
    torch.Size([1, 6, 8])
    """

    def __init__(self, in_channels: int, channels: int, *, positions: nn.Module, encoder: TransformerEncoder) -> None:
        super().__init__()
        self.projection, self.positions, self.encoder = nn.Conv2d(in_channels, channels, 1), positions, encoder
        init_convolutions(self.projection, nn.init.xavier_uniform_)

    def forward(self, features: list[Tensor], images: Images) -> Memory:
        """The memory of ``images`` from the last of ``features`` (B, in_channels, H, W)."""
        last = self.projection(features[-1])
        height, width = images.tensors.shape[-2:]
        inside = cells_inside(images.sizes, (height, width), (last.shape[-2], last.shape[-1]))
        positions = self.positions(inside, dtype=last.dtype).flatten(2).transpose(1, 2)
        mask = inside.flatten(1)[:, None]
        cells = self.encoder(last.flatten(2).transpose(1, 2) + positions, mask=mask)
        return Memory(cells + positions, mask)


class TokenDecoder(nn.Module):
    """Says which of ``vocabulary`` tokens comes next, after up to ``length`` tokens and with a memory to look at.

    A token is read as its embedding plus that of its place, both learned; logits are products with the same embeddings
    plus a bias for each token. ``decoder`` has ``channels``. Source: Chen et al. 2022, "Pix2seq", section 2.2.

    >>> import torch
    >>> from detkit.layers.transformer import DecoderLayer
    >>> layers = TransformerDecoder([DecoderLayer(8, 2, hidden=16, norm_first=True)], norm=nn.LayerNorm(8))
    >>> decoder = TokenDecoder(layers, channels=8, vocabulary=20, length=5)
    >>> memory = Memory(torch.zeros(1, 6, 8), torch.ones(1, 1, 6, dtype=torch.bool))
    >>> decoder(torch.tensor([[3, 1, 4]]), memory).shape
    torch.Size([1, 3, 20])
    """

    def __init__(self, decoder: TransformerDecoder, *, channels: int, vocabulary: int, length: int) -> None:
        super().__init__()
        if vocabulary < 1 or length < 1:
            raise ValueError(f"TokenDecoder: vocabulary={vocabulary} and length={length} must be at least 1")
        self.decoder, self.length = decoder, length
        self.embedding, self.places = nn.Embedding(vocabulary, channels), nn.Embedding(length, channels)
        self.head = nn.Linear(channels, vocabulary)
        self.head.weight = self.embedding.weight
        for embedding in (self.embedding, self.places):
            nn.init.trunc_normal_(embedding.weight, std=STD, a=-2 * STD, b=2 * STD)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Int[Tensor, "B L"], memory: Memory) -> Float[Tensor, "B L V"]:
        """Logits for the token after each of ``tokens``, none of which looks at a later one.

        Raises ValueError for more tokens than ``length``.
        """
        if tokens.shape[1] > self.length:
            raise ValueError(f"TokenDecoder: {tokens.shape[1]} tokens came; allowed are at most length={self.length}")
        read = self.embedding(tokens) + self.places.weight[: tokens.shape[1]]
        outputs = self.decoder(read, memory.cells, memory_mask=memory.mask, causal=True)
        return self.head(outputs[-1])

    def start(self, memory: Memory) -> list[LayerCache]:
        """What :meth:`step` keeps between calls: the projected memory, and room for ``length`` tokens."""
        return self.decoder.start(memory.cells, length=self.length)

    def step(
        self, token: Int[Tensor, " B"], memory: Memory, caches: Sequence[LayerCache], *, at: int
    ) -> Float[Tensor, "B V"]:
        """Logits after the token number ``at``, all before which went through the same ``caches``; inference only."""
        read = (self.embedding(token) + self.places.weight[at])[:, None]
        return self.head(self.decoder.step(read, caches, at=at, memory_mask=memory.mask))[:, 0]


@torch.no_grad()
def start_as_sines(embedding: nn.Embedding, tokens: slice) -> None:
    """Fill the rows ``tokens``, which count along an axis, with waves of 1/2 to 8 turns, as large as fresh ones.

    Then neighbors start alike, and what is learned of one token holds for those beside it. Raises ValueError unless 2
    divides the embedding's width.

    >>> start_as_sines(embedding := nn.Embedding(104, 32), slice(4, 104))
    >>> near, far = (embedding.weight[4] * embedding.weight[[5, 54]]).sum(-1)
    >>> bool(near > far)
    True
    """
    rows = embedding.weight[tokens]
    positions = SinePositions(2 * rows.shape[1], temperature=16.0, turns=8.0)
    waves = positions(torch.ones(1, 1, len(rows), dtype=torch.bool, device=rows.device))
    rows.copy_(waves[0, rows.shape[1] :, 0].T * STD * 2**0.5)
