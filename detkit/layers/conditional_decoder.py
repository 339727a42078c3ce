"""The decoder of Conditional DETR: cross-attention looks for contents and for places, each with queries of its own."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from detkit._door import door
from detkit._inputs import promote
from detkit._ranges import Count, Fraction
from detkit.layers.box_decoder import waves
from detkit.layers.transformer import FeedForward, Residual


class ConditionalAttention(nn.Module):
    """Attention whose contents and positions are projected by themselves, in queries and in keys, and then added.

    With ``places`` every head compares something beside: the place that a query has with the positions of the keys.
    With ``positions=False`` that is all there is of positions, and none are added to contents. Raises ValueError unless
    ``heads`` divides ``channels``. Source: Meng et al. 2021, "Conditional DETR", section 3.2 and the release.

    >>> attention, embeddings = ConditionalAttention(8, 2), torch.zeros(1, 5, 8)
    >>> attention(embeddings, embeddings, positions=embeddings, key_positions=embeddings).shape
    torch.Size([1, 5, 8])
    """

    @door
    def __init__(
        self,
        channels: Count,
        heads: Count,
        *,
        dropout: Fraction = 0.0,
        places: bool = False,
        positions: bool = True,
    ) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"ConditionalAttention: heads={heads} must divide channels={channels}")
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value, self.output = (nn.Linear(channels, channels) for _ in range(4))
        self.query_position = nn.Linear(channels, channels) if positions else None
        self.key_position = nn.Linear(channels, channels)
        self.place = nn.Linear(channels, channels) if places else None
        for part in self.children():
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
                nn.init.zeros_(part.bias)

    @door
    def forward(
        self,
        queries: Float[Tensor, "B Q D"],
        keys: Float[Tensor, "B K D"],
        *,
        positions: Float[Tensor, "#B Q D"],
        key_positions: Float[Tensor, "#B K D"],
        places: Float[Tensor, "#B Q D"] | None = None,
        mask: Bool[Tensor, "#B #Q K"] | None = None,
    ) -> Float[Tensor, "B Q D"]:
        """The output of each query over ``keys``, to which it attends only where ``mask`` is True.

        ``positions`` and ``places`` are those of queries. Raises ValueError unless ``places`` are given just where the
        attention is built with them.
        """
        if (places is None) != (self.place is None):
            raise ValueError("ConditionalAttention: places go with an attention that is built with places=True")
        asked, there, located = self.query(queries), self.key(keys), self.key_position(key_positions)
        if self.query_position is not None:
            asked, there = asked + self.query_position(positions), there + located
        asked, there = self._split(asked), self._split(there)
        if self.place is not None and places is not None:
            asked = torch.cat((asked, self._split(self.place(places)).expand_as(asked)), -1)
            there = torch.cat((there, self._split(located).expand_as(there)), -1)
        fetched = F.scaled_dot_product_attention(
            asked,
            there,
            self._split(self.value(keys)),
            attn_mask=None if mask is None else mask[:, None],
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.output(fetched.transpose(1, 2).flatten(2))

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"heads={self.heads}, dropout={self.dropout}"

    def _split(self, embeddings: Float[Tensor, "B N D"]) -> Float[Tensor, "B heads N depth"]:
        return embeddings.unflatten(2, (self.heads, -1)).transpose(1, 2)


class ConditionalDecoderLayer(nn.Module):
    """Self-attention, cross-attention with places, and a feed-forward net, each with a residual.

    Arguments are as for :class:`~detkit.layers.DecoderLayer`; the ``first`` layer adds positions to the contents that
    cross-attention compares, as its queries have none yet. Source: Meng et al. 2021, section 3.2.

    >>> layer, queries, cells = ConditionalDecoderLayer(8, 2, hidden=16), torch.zeros(1, 5, 8), torch.zeros(1, 7, 8)
    >>> layer(queries, cells, positions=queries, places=queries, memory_positions=cells).shape
    torch.Size([1, 5, 8])
    """

    @door
    def __init__(
        self,
        channels: Count,
        heads: Count,
        *,
        hidden: Count,
        dropout: Fraction = 0.0,
        activation: Callable[[], nn.Module] = nn.ReLU,
        first: bool = False,
    ) -> None:
        super().__init__()
        self.attention = ConditionalAttention(channels, heads, dropout=dropout)
        self.attention_residual = Residual(channels, dropout=dropout)
        self.memory_attention = ConditionalAttention(channels, heads, dropout=dropout, places=True, positions=first)
        self.memory_residual = Residual(channels, dropout=dropout)
        self.feed_forward = FeedForward(channels, hidden, dropout=dropout, activation=activation)
        self.feed_forward_residual = Residual(channels, dropout=dropout)

    @door
    def forward(
        self,
        embeddings: Float[Tensor, "B Q D"],
        memory: Float[Tensor, "B K D"],
        *,
        positions: Float[Tensor, "#B Q D"],
        places: Float[Tensor, "#B Q D"],
        memory_positions: Float[Tensor, "#B K D"],
        memory_mask: Bool[Tensor, "#B #Q K"] | None = None,
    ) -> Float[Tensor, "B Q D"]:
        """The ``embeddings`` after the three steps; ``memory_mask`` says which cells a query may attend to."""

        def attend(own: Tensor) -> Tensor:
            return self.attention(own, own, positions=positions, key_positions=positions)

        def recall(own: Tensor) -> Tensor:
            return self.memory_attention(
                *(own, memory),
                positions=positions,
                key_positions=memory_positions,
                places=places,
                mask=memory_mask,
            )

        embeddings = self.memory_residual(self.attention_residual(embeddings, attend), recall)
        return self.feed_forward_residual(embeddings, self.feed_forward)


class ConditionalDecoder(nn.Module):
    """A stack of layers whose queries each look around a point; their outputs share ``norm``.

    ``points`` maps positions of queries to the logits of x and y. The place that a layer looks for is the waves of this
    point, from the second layer on times ``scale`` of the query's embedding. Raises ValueError without layers. Source:
    Meng et al. 2021, "Conditional DETR", section 3.2.

    >>> layers = [ConditionalDecoderLayer(8, 2, hidden=16, first=i == 0) for i in range(2)]
    >>> decoder = ConditionalDecoder(layers, points=nn.Linear(8, 2), scale=nn.Linear(8, 8), norm=nn.LayerNorm(8))
    >>> queries, cells = torch.zeros(1, 5, 8), torch.zeros(1, 7, 8)
    >>> [tuple(rows.shape) for rows in decoder(queries, cells, positions=queries, memory_positions=cells)]
    [(1, 5, 8), (1, 5, 8)]
    """

    def __init__(
        self, layers: Sequence[ConditionalDecoderLayer], *, points: nn.Module, scale: nn.Module, norm: nn.Module
    ) -> None:
        super().__init__()
        if not layers:
            raise ValueError("ConditionalDecoder: got no layers; it needs at least one, whose output is the decoder's")
        self.layers, self.points, self.scale, self.norm = nn.ModuleList(layers), points, scale, norm

    @door
    def forward(
        self,
        embeddings: Float[Tensor, "B Q D"],
        memory: Float[Tensor, "B K D"],
        *,
        positions: Float[Tensor, "#B Q D"],
        memory_positions: Float[Tensor, "#B K D"],
        memory_mask: Bool[Tensor, "#B #Q K"] | None = None,
    ) -> list[Float[Tensor, "B Q D"]]:
        """The normalized output of every layer; the last is the output of the decoder."""
        points, outputs = self.references(positions), []
        around = waves(points.flip(-1), positions.shape[-1] // 2, temperature=10000.0).to(embeddings)
        for i, layer in enumerate(self.layers):
            places = around * self.scale(embeddings) if i else around
            embeddings = layer(
                *(embeddings, memory),
                positions=positions,
                places=places,
                memory_positions=memory_positions,
                memory_mask=memory_mask,
            )
            outputs.append(self.norm(embeddings))
            embeddings = self._handed_on(embeddings, outputs[-1])
        return outputs

    @door
    def references(self, positions: Float[Tensor, "#B Q D"]) -> Float[Tensor, "#B Q 2"]:
        """The point of each query, x and y as fractions of the image, at least in float32.

        >>> layer = ConditionalDecoderLayer(8, 2, hidden=16)
        >>> decoder = ConditionalDecoder([layer], points=nn.Linear(8, 2), scale=nn.Identity(), norm=nn.Identity())
        >>> decoder.references(torch.zeros(1, 5, 8)).shape
        torch.Size([1, 5, 2])
        """
        return promote(self.points(positions)).sigmoid()

    def _handed_on(self, embeddings: Tensor, normalized: Tensor) -> Tensor:
        """Of what a layer gave, what the next one starts from."""
        return embeddings
