"""Attention, and the encoder and decoder layers built from it, shared by DETR's queries and Pix2Seq's tokens.

Throughout, embeddings are (B, N, D); positions have the same shape and are added to queries and keys but not to values;
a mask is True where a query may attend to a key.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from detkit._door import door
from detkit._ranges import Count, Fraction


class KeyValues(NamedTuple):
    """The projected keys and values of one attention, split into heads."""

    keys: Float[Tensor, "B heads K depth"]
    values: Float[Tensor, "B heads K depth"]


class LayerCache(NamedTuple):
    """The KV cache of a decoder layer: the memory, projected once, and room for all of the layer's own tokens."""

    memory: KeyValues
    own: KeyValues


class Attention(nn.Module):
    """Multi-head attention: ``channels`` are split among ``heads``; each averages values with softmax weights.

    ``dropout`` applies to the attention weights in training mode. A query that may attend to no key outputs zeros.
    Initialization and results match ``torch.nn.MultiheadAttention``. Raises ValueError unless ``heads`` divides
    ``channels``. Source: Vaswani et al. 2017, section 3.2.

    >>> attention, embeddings = Attention(8, 2), torch.zeros(1, 5, 8)
    >>> attention(embeddings, embeddings, embeddings, causal=True).shape
    torch.Size([1, 5, 8])
    """

    @door
    def __init__(self, channels: Count, heads: Count, *, dropout: Fraction = 0.0) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"Attention: heads={heads} must divide channels={channels}")
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value, self.output = (nn.Linear(channels, channels) for _ in range(4))
        for part in (self.query, self.key, self.value, self.output):
            # The first three start as parts of one matrix (3 D, D): as DETR's, whose bound is smaller by sqrt(2).
            nn.init.xavier_uniform_(part.weight, gain=1.0 if part is self.output else 0.5**0.5)
            nn.init.zeros_(part.bias)

    @door
    def forward(
        self,
        queries: Float[Tensor, "B Q D"],
        keys: Float[Tensor, "B K D"],
        values: Float[Tensor, "B K D"],
        *,
        mask: Bool[Tensor, "#B #Q K"] | None = None,
        causal: bool = False,
    ) -> Float[Tensor, "B Q D"]:
        """The attention output of each query over ``values``; see :meth:`attend` for ``mask`` and ``causal``."""
        return self.attend(queries, self.project(keys, values), mask=mask, causal=causal)

    @door
    def project(self, keys: Float[Tensor, "B K D"], values: Float[Tensor, "B K D"]) -> KeyValues:
        """The keys and values that :meth:`attend` takes, projected once for many calls on the same memory."""
        return KeyValues(self._split(self.key(keys)), self._split(self.value(values)))

    @door
    def attend(
        self,
        queries: Float[Tensor, "B Q D"],
        among: KeyValues,
        *,
        mask: Bool[Tensor, "#B #Q K"] | None = None,
        causal: bool = False,
    ) -> Float[Tensor, "B Q D"]:
        """The output of each query, which attends only where ``mask`` is True and, with ``causal``, to no later key.

        ``mask`` is (B, Q, K), where B or Q may be 1; with ``causal`` the queries are the last Q of the K keys. Raises
        ValueError for a mask of another type or number of dimensions.
        """
        length, keys = queries.shape[1], among.keys.shape[2]
        plain = False
        if causal and mask is None and 1 < length == keys:  # the kernels know this mask; a branch, for traced lengths
            plain = True
        allowed = None if plain else self._allowed(mask, causal, length, keys, queries.device)
        fetched = F.scaled_dot_product_attention(
            self._split(self.query(queries)),
            among.keys,
            among.values,
            attn_mask=allowed,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=plain,
        )
        return self.output(fetched.transpose(1, 2).flatten(2))

    @door
    def attention_weights(
        self,
        queries: Float[Tensor, "B Q D"],
        among: KeyValues,
        *,
        mask: Bool[Tensor, "#B #Q K"] | None = None,
        causal: bool = False,
    ) -> Float[Tensor, "B heads Q K"]:
        """The weights of :meth:`attend`, without dropout: rows sum to 1, or to 0 where a query may attend to no key.

        >>> attention = Attention(8, 2)
        >>> weights = attention.attention_weights(torch.rand(1, 3, 8), attention.project(*torch.rand(2, 1, 5, 8)))
        >>> weights.shape, torch.allclose(weights.sum(-1), torch.ones(1, 2, 3))
        (torch.Size([1, 2, 3, 5]), True)
        """
        found = self._split(self.query(queries))
        logits = found @ among.keys.mT / found.shape[-1] ** 0.5
        allowed = self._allowed(mask, causal, queries.shape[1], among.keys.shape[2], queries.device)
        if allowed is None:
            return logits.softmax(-1)
        return torch.where(allowed, logits.masked_fill(~allowed, -torch.inf).softmax(-1), 0)

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"heads={self.heads}, dropout={self.dropout}"

    def _split(self, embeddings: Float[Tensor, "B N D"]) -> Float[Tensor, "B heads N depth"]:
        return embeddings.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def _allowed(
        self, mask: Tensor | None, causal: bool, length: int, keys: int, device: torch.device
    ) -> Bool[Tensor, "#B 1 #Q K"] | None:
        """Which of ``keys`` each of ``length`` queries may look at, by both rules; None where at all."""
        if mask is not None and (mask.dtype != torch.bool or mask.ndim != 3):
            raise ValueError(
                f"Attention: mask has shape {tuple(mask.shape)} and dtype {mask.dtype}; allowed is bool of shape "
                "(B, Q, K), with 1 in place of B or Q"
            )
        if causal and length > 1:  # a query alone is the last of all
            before = _causal_mask(length, keys, device)
            mask = before if mask is None else mask & before
        return None if mask is None else mask[:, None]


class Residual(nn.Module):
    """A step with a residual connection: ``norm(x + step(x))``, or ``x + step(norm(x))`` with ``norm_first``.

    ``dropout`` is applied to the step's output. Sources: Vaswani et al. 2017, section 3.1; Xiong et al. 2020.

    >>> Residual(2)(torch.tensor([[[1.0, 3.0]]]), lambda x: x * 0).detach().round()
    tensor([[[-1.,  1.]]])
    """

    def __init__(self, channels: int, *, norm_first: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm, self.dropout, self.norm_first = nn.LayerNorm(channels), nn.Dropout(dropout), norm_first

    def forward(self, embeddings: Float[Tensor, "B N D"], step: Callable[[Tensor], Tensor]) -> Float[Tensor, "B N D"]:
        """``embeddings`` after the step, which maps (B, N, D) to the same shape."""
        if self.norm_first:
            return embeddings + self.dropout(step(self.norm(embeddings)))
        return self.norm(embeddings + self.dropout(step(embeddings)))

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"norm_first={self.norm_first}"


class FeedForward(nn.Module):
    """Two linear layers with an activation and dropout between them, applied to each embedding separately.

    Source: Vaswani et al. 2017, section 3.3.

    >>> FeedForward(8, 32)(torch.zeros(1, 5, 8)).shape
    torch.Size([1, 5, 8])
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        *,
        dropout: float = 0.0,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        self.activation, self.dropout = activation(), nn.Dropout(dropout)
        for part in (self.inner, self.outer):
            nn.init.xavier_uniform_(part.weight)

    def forward(self, embeddings: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """The transformed ``embeddings``."""
        return self.outer(self.dropout(self.activation(self.inner(embeddings))))


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward net, each with a residual.

    ``hidden`` is the width of the feed-forward net; ``dropout`` applies to the attention weights, inside the net and
    after both steps. Source: Vaswani et al. 2017; positions in every layer: Carion et al. 2020, figure 10.

    >>> EncoderLayer(8, 2, hidden=16, norm_first=True)(torch.zeros(1, 5, 8)).shape
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
        norm_first: bool = False,
    ) -> None:
        super().__init__()
        self.attention = Attention(channels, heads, dropout=dropout)
        self.attention_residual = Residual(channels, norm_first=norm_first, dropout=dropout)
        self.feed_forward = FeedForward(channels, hidden, dropout=dropout, activation=activation)
        self.feed_forward_residual = Residual(channels, norm_first=norm_first, dropout=dropout)

    @door
    def forward(
        self,
        embeddings: Float[Tensor, "B N D"],
        *,
        positions: Float[Tensor, "#B N D"] | None = None,
        mask: Bool[Tensor, "#B #N N"] | None = None,
    ) -> Float[Tensor, "B N D"]:
        """The ``embeddings`` after both steps."""

        def attend(own: Tensor) -> Tensor:
            located = _plus(own, positions)
            return self.attention(located, located, own, mask=mask)

        return self.feed_forward_residual(self.attention_residual(embeddings, attend), self.feed_forward)


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention to a memory, and a feed-forward net, each with a residual.

    Arguments as for :class:`EncoderLayer`. Source: Vaswani et al. 2017; positions in every layer: Carion et al. 2020.

    >>> layer = DecoderLayer(8, 2, hidden=16)
    >>> layer(torch.zeros(1, 5, 8), layer.project(torch.zeros(1, 7, 8))).shape
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
        norm_first: bool = False,
    ) -> None:
        super().__init__()
        self.attention = Attention(channels, heads, dropout=dropout)
        self.attention_residual = Residual(channels, norm_first=norm_first, dropout=dropout)
        self.memory_attention = Attention(channels, heads, dropout=dropout)
        self.memory_residual = Residual(channels, norm_first=norm_first, dropout=dropout)
        self.feed_forward = FeedForward(channels, hidden, dropout=dropout, activation=activation)
        self.feed_forward_residual = Residual(channels, norm_first=norm_first, dropout=dropout)

    @door
    def project(self, memory: Float[Tensor, "B K D"], positions: Float[Tensor, "#B K D"] | None = None) -> KeyValues:
        """The keys and values of ``memory`` that :meth:`forward` takes; positions are added to the keys only."""
        return self.memory_attention.project(_plus(memory, positions), memory)

    @door
    def forward(
        self,
        embeddings: Float[Tensor, "B N D"],
        memory: KeyValues,
        *,
        positions: Float[Tensor, "#B N D"] | None = None,
        mask: Bool[Tensor, "#B #N _"] | None = None,
        memory_mask: Bool[Tensor, "#B #N _"] | None = None,
        causal: bool = False,
        extend: Callable[[KeyValues], KeyValues] | None = None,
    ) -> Float[Tensor, "B N D"]:
        """The ``embeddings`` after the three steps.

        ``mask`` and ``causal`` apply to self-attention, ``memory_mask`` to cross-attention. ``extend`` maps the keys
        and values of these embeddings to those of all embeddings that they attend to: a KV cache.
        """

        def attend(own: Tensor) -> Tensor:
            located = _plus(own, positions)
            among = self.attention.project(located, own)
            among = among if extend is None else extend(among)
            return self.attention.attend(located, among, mask=mask, causal=causal)

        def recall(own: Tensor) -> Tensor:
            return self.memory_attention.attend(_plus(own, positions), memory, mask=memory_mask)

        embeddings = self.memory_residual(self.attention_residual(embeddings, attend), recall)
        return self.feed_forward_residual(embeddings, self.feed_forward)


class TransformerEncoder(nn.Module):
    """A stack of encoder layers, then ``norm``: none for DETR, a LayerNorm if the layers normalize first.

    >>> encoder = TransformerEncoder([EncoderLayer(8, 2, hidden=16) for _ in range(2)])
    >>> encoder(torch.zeros(1, 5, 8)).shape
    torch.Size([1, 5, 8])
    """

    def __init__(self, layers: Sequence[EncoderLayer], *, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = nn.Identity() if norm is None else norm

    @door
    def forward(
        self,
        embeddings: Float[Tensor, "B N D"],
        *,
        positions: Float[Tensor, "#B N D"] | None = None,
        mask: Bool[Tensor, "#B #N N"] | None = None,
    ) -> Float[Tensor, "B N D"]:
        """The ``embeddings`` after all layers; positions are added in each."""
        for layer in self.layers:
            embeddings = layer(embeddings, positions=positions, mask=mask)
        return self.norm(embeddings)


class TransformerDecoder(nn.Module):
    """A stack of decoder layers; the outputs of all layers share ``norm`` (None leaves them unchanged).

    :meth:`start` and :meth:`step` decode a sequence token by token; the results equal those of ``causal`` on the whole
    sequence at once. Raises ValueError without layers.

    >>> decoder = TransformerDecoder([DecoderLayer(8, 2, hidden=16) for _ in range(2)], norm=nn.LayerNorm(8)).eval()
    >>> tokens, memory = torch.rand(1, 5, 8), torch.rand(1, 7, 8)
    >>> whole = decoder(tokens, memory, causal=True)[-1]
    >>> caches = decoder.start(memory, length=5)
    >>> steps = [decoder.step(tokens[:, i : i + 1], caches, at=i) for i in range(5)]
    >>> torch.allclose(torch.cat(steps, 1), whole, atol=1e-5)
    True
    """

    def __init__(self, layers: Sequence[DecoderLayer], *, norm: nn.Module | None = None) -> None:
        super().__init__()
        if not layers:
            raise ValueError("TransformerDecoder: got no layers; it needs at least one, whose output is the decoder's")
        self.layers = nn.ModuleList(layers)
        self.norm = nn.Identity() if norm is None else norm

    @door
    def forward(
        self,
        embeddings: Float[Tensor, "B N D"],
        memory: Float[Tensor, "B K D"],
        *,
        positions: Float[Tensor, "#B N D"] | None = None,
        memory_positions: Float[Tensor, "#B K D"] | None = None,
        mask: Bool[Tensor, "#B #N N"] | None = None,
        memory_mask: Bool[Tensor, "#B #N K"] | None = None,
        causal: bool = False,
    ) -> list[Float[Tensor, "B N D"]]:
        """The normalized output of every layer; the last is the output of the decoder."""
        outputs = []
        for layer in self._stack:
            embeddings = layer(
                embeddings,
                layer.project(memory, memory_positions),
                positions=positions,
                mask=mask,
                memory_mask=memory_mask,
                causal=causal,
            )
            outputs.append(self.norm(embeddings))
            embeddings = self._handed_on(embeddings, outputs[-1])
        return outputs

    @door
    def start(
        self,
        memory: Float[Tensor, "B K D"],
        *,
        length: int,
        memory_positions: Float[Tensor, "#B K D"] | None = None,
    ) -> list[LayerCache]:
        """A KV cache for each layer, with room for ``length`` tokens; :meth:`step` fills it in place."""
        caches = []
        for layer in self._stack:
            projected = layer.project(memory, memory_positions)
            shape = (*projected.keys.shape[:2], length, projected.keys.shape[3])
            room = KeyValues(projected.keys.new_zeros(shape), projected.values.new_zeros(shape))
            caches.append(LayerCache(projected, room))
        return caches

    @door
    def step(
        self,
        embeddings: Float[Tensor, "B N D"],
        caches: Sequence[LayerCache],
        *,
        at: int,
        positions: Float[Tensor, "#B N D"] | None = None,
        memory_mask: Bool[Tensor, "#B #N _"] | None = None,
    ) -> Float[Tensor, "B N D"]:
        """The output for the next N tokens, which follow ``at`` earlier ones. Inference only: caches carry no gradient.

        Raises ValueError if the caches have no room for the tokens.
        """
        end, room = at + embeddings.shape[1], caches[0].own.keys.shape[2]
        if not 0 <= at < end <= room:
            raise ValueError(f"TransformerDecoder: tokens {at} to {end} do not fit a cache of length {room}")
        for layer, cache in zip(self._stack, caches, strict=True):
            embeddings = layer(
                embeddings,
                cache.memory,
                positions=positions,
                memory_mask=memory_mask,
                causal=True,
                extend=lambda fresh, own=cache.own: _write(own, fresh, at),
            )
        return self.norm(embeddings)

    def _handed_on(self, embeddings: Tensor, normalized: Tensor) -> Tensor:
        """Of what a layer gave, what the next one starts from."""
        return embeddings

    @property
    def _stack(self) -> list[DecoderLayer]:
        return [cast(DecoderLayer, layer) for layer in self.layers]


@torch.no_grad()
def _write(own: KeyValues, fresh: KeyValues, at: int) -> KeyValues:
    """All keys and values so far, once ``fresh`` ones stand in their place."""
    end = at + fresh.keys.shape[2]
    own.keys[:, :, at:end] = fresh.keys
    own.values[:, :, at:end] = fresh.values
    return KeyValues(own.keys[:, :, :end], own.values[:, :, :end])


def _plus(embeddings: Tensor, positions: Tensor | None) -> Tensor:
    return embeddings if positions is None else embeddings + positions


def _causal_mask(length: int, keys: int, device: torch.device) -> Bool[Tensor, "1 Q K"]:
    """True where a key is not behind its query; the queries are the last ``length`` of ``keys``."""
    places = torch.arange(keys, device=device)
    return (places <= places[keys - length :, None])[None]
