"""A decoder whose queries are boxes: each layer attends around the box of every query, and its head refines the box."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from detkit._door import door
from detkit._inputs import promote
from detkit._ranges import Count, Fraction, Positive
from detkit.layers.deformable import DeformableAttention, Shapes
from detkit.layers.transformer import Attention, FeedForward, Residual

EDGE = 1e-3
"""The logit of a fraction within this of 0 or 1 is that of this."""


def inverse_sigmoid(fractions: Float[Tensor, "*shape"], *, edge: float = EDGE) -> Float[Tensor, "*shape"]:
    """The logits of ``fractions``, at least in float32; both x and 1 - x count as at least ``edge``.

    >>> inverse_sigmoid(torch.tensor([0.5, 0.75, 2.0])).sigmoid()
    tensor([0.5000, 0.7500, 0.9990])
    """
    fractions = promote(fractions).clamp(0, 1)
    return (fractions.clamp(min=edge) / (1 - fractions).clamp(min=edge)).log()


def waves(
    fractions: Float[Tensor, "*shape N"], channels: int, *, temperature: float
) -> Float[Tensor, "*shape channels"]:
    """Sines and cosines of N ``fractions``, ``channels`` of each, one after another; at least in float32.

    The shortest wave is 1 long, the longest nearly ``temperature`` times as long.

    >>> waves(torch.tensor([0.25, 0.5]), 2, temperature=20.0).round(decimals=3).abs()
    tensor([1., 0., 0., 1.])
    """
    fractions = promote(fractions)
    steps = torch.arange(channels // 2, device=fractions.device, dtype=fractions.dtype)
    angles = fractions[..., None] * (2 * math.pi) / temperature ** (steps * 2 / channels)
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(-3)


class BoxPositions(nn.Module):
    """Embeddings of boxes: sines and cosines of cx, cy, w and h, a quarter of ``channels`` each, through ``net``.

    The shortest wave spans the image; the longest is ``temperature`` times as long. ``net`` is a small MLP by default.
    Raises ValueError unless 8 divides ``channels``. Source: Liu et al. 2022, "DAB-DETR", section 4.2 and 4.4.

    >>> BoxPositions(16)(torch.rand(2, 5, 4)).shape
    torch.Size([2, 5, 16])
    """

    @door
    def __init__(self, channels: Count, *, temperature: Positive = 20.0, net: nn.Module | None = None) -> None:
        super().__init__()
        if channels < 8 or channels % 8:
            raise ValueError(f"BoxPositions: channels={channels} must be a multiple of 8")
        self.channels, self.temperature = channels, temperature
        mlp = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels))
        self.net = mlp if net is None else net

    @door
    def forward(self, boxes: Float[Tensor, "B Q 4"]) -> Float[Tensor, "B Q D"]:
        """Embeddings (B, Q, channels) of ``boxes``, cx, cy, w, h as fractions of the image."""
        embedded = waves(boxes, self.channels // 4, temperature=self.temperature)
        return self.net(embedded.to(next(self.net.parameters(), embedded).dtype))

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"channels={self.channels}, temperature={self.temperature}"


class BoxNet(nn.Sequential):
    """A chain of layers that reads boxes, which are at least in float32, in the dtype of its parameters.

    >>> BoxNet(nn.Linear(4, 8)).bfloat16()(torch.rand(2, 5, 4)).dtype
    torch.bfloat16
    """

    @door
    def forward(self, input: Float[Tensor, "B Q 4"]) -> Float[Tensor, "B Q D"]:
        """What the layers make of boxes (B, Q, 4)."""
        return super().forward(input.to(next(self.parameters(), input).dtype))


class BoxQueries(nn.Module):
    """``count`` queries, each with a learned embedding and a learned box.

    Boxes start at 0.3 of the image's size, with evenly spread centers (the multiples of two irrational numbers,
    modulo 1). Raises ValueError for a count below 1. Source: Liu et al. 2022, "DAB-DETR", section 4.1.

    >>> embeddings, boxes = BoxQueries(5, 8)(2)
    >>> embeddings.shape, boxes.shape
    (torch.Size([2, 5, 8]), torch.Size([2, 5, 4]))
    """

    @door
    def __init__(self, count: Count, channels: Count) -> None:
        super().__init__()
        self.embeddings, self.boxes = nn.Embedding(count, channels), nn.Embedding(count, 4)
        centers = torch.arange(1, count + 1)[:, None] * torch.tensor([0.7548777, 0.5698403]) % 1
        start = torch.cat((centers, torch.full((count, 2), 0.3)), 1)
        with torch.no_grad():
            self.boxes.weight.copy_(start.logit(eps=EDGE))

    def forward(self, images: int) -> tuple[Float[Tensor, "B Q D"], Float[Tensor, "B Q 4"]]:
        """Embeddings and boxes, equal for each of B ``images``: boxes as fractions cx, cy, w, h, at least float32."""
        boxes = promote(self.boxes.weight).sigmoid()
        return self.embeddings.weight.expand(images, -1, -1), boxes.expand(images, -1, -1)


class DeformableDecoderLayer(nn.Module):
    """Self-attention, deformable attention around each query's box, and a feed-forward net, each with a residual.

    ``hidden`` is the width of the feed-forward net; ``memory_attention`` looks around the boxes, and
    ``memory_residual(embeddings, step)`` adds what it finds (None: as all residuals do); the rest is as in
    :class:`~detkit.layers.transformer.DecoderLayer`. Source: Zhu et al. 2021, section 4.1 and appendix A.4.

    >>> layer = DeformableDecoderLayer(8, 2, hidden=16, memory_attention=DeformableAttention(8, 2, levels=1))
    >>> layer(torch.zeros(1, 5, 8), torch.full((1, 5, 1, 4), 0.5), torch.zeros(1, 12, 8), [(3, 4)]).shape
    torch.Size([1, 5, 8])
    """

    @door
    def __init__(
        self,
        channels: Count,
        heads: Count,
        *,
        hidden: Count,
        memory_attention: DeformableAttention,
        dropout: Fraction = 0.0,
        activation: Callable[[], nn.Module] = nn.ReLU,
        norm_first: bool = False,
        memory_residual: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.attention = Attention(channels, heads, dropout=dropout)
        self.attention_residual = Residual(channels, norm_first=norm_first, dropout=dropout)
        self.memory_attention = memory_attention
        plain = Residual(channels, norm_first=norm_first, dropout=dropout)
        self.memory_residual = plain if memory_residual is None else memory_residual
        self.feed_forward = FeedForward(channels, hidden, dropout=dropout, activation=activation)
        self.feed_forward_residual = Residual(channels, norm_first=norm_first, dropout=dropout)

    @door
    def forward(
        self,
        embeddings: Float[Tensor, "B Q D"],
        references: Float[Tensor, "B Q #levels _"],
        memory: Float[Tensor, "B K D"],
        shapes: Shapes,
        *,
        positions: Float[Tensor, "B Q D"] | None = None,
        mask: Bool[Tensor, "#B #Q Q"] | None = None,
        inside: Bool[Tensor, "B K"] | None = None,
    ) -> Float[Tensor, "B Q D"]:
        """The ``embeddings`` after the three steps; positions are added to queries and keys, not to values.

        ``mask`` says which query may attend to which; ``references``, ``memory``, ``shapes`` and ``inside`` are as in
        :class:`~detkit.layers.deformable.DeformableAttention`.
        """

        def located(own: Tensor) -> Tensor:
            return own if positions is None else own + positions

        def attend(own: Tensor) -> Tensor:
            return self.attention(located(own), located(own), own, mask=mask)

        def recall(own: Tensor) -> Tensor:
            return self.memory_attention(located(own), references, memory, shapes, inside=inside)

        embeddings = self.memory_residual(self.attention_residual(embeddings, attend), recall)
        return self.feed_forward_residual(embeddings, self.feed_forward)


class BoxPredictions(NamedTuple):
    """What L layers predict, and the embeddings from which the last one does.

    Boxes are cx, cy, w, h as fractions of the image.
    """

    logits: Float[Tensor, "L B Q C"]
    boxes: Float[Tensor, "L B Q 4"]
    embeddings: Float[Tensor, "B Q D"]


class BoxDecoder(nn.Module):
    """Decoder layers, each with a head that predicts a class and refines the boxes the next layer attends around.

    A head maps (embeddings, references) to (logits, boxes), as
    :class:`~detkit.heads.set_prediction.RefinementHead`, from embeddings normalized by ``norm``; ``positions`` embeds
    references (None: they are given). References are boxes, or points in the first layer. A box gets no gradient from
    the boxes that later layers refine from it. Unless ``refine``, all layers attend around the first references.
    Raises ValueError unless there is one head per layer. Sources: Liu et al. 2022, "DAB-DETR", section 4; Zhu et al.
    2021, section 4.2 and appendix A.4.

    >>> from detkit.heads.set_prediction import RefinementHead
    >>> attention = DeformableAttention(8, 2, levels=1)
    >>> layers = [DeformableDecoderLayer(8, 2, hidden=16, memory_attention=attention) for _ in range(2)]
    >>> heads = [RefinementHead(8, num_classes=2) for _ in range(2)]
    >>> decoder = BoxDecoder(layers, heads, positions=BoxPositions(8), norm=nn.LayerNorm(8))
    >>> found = decoder(*BoxQueries(5, 8)(1), torch.zeros(1, 12, 8), [(3, 4)])
    >>> found.logits.shape, found.boxes.shape, found.embeddings.shape
    (torch.Size([2, 1, 5, 3]), torch.Size([2, 1, 5, 4]), torch.Size([1, 5, 8]))
    """

    def __init__(
        self,
        layers: Sequence[DeformableDecoderLayer],
        heads: Sequence[nn.Module],
        *,
        positions: nn.Module | None,
        norm: nn.Module | None = None,
        refine: bool = True,
    ) -> None:
        super().__init__()
        if not layers or len(layers) != len(heads):
            raise ValueError(
                f"BoxDecoder: {len(layers)} layers and {len(heads)} heads; allowed is one head for each layer"
            )
        self.layers, self.heads = nn.ModuleList(layers), nn.ModuleList(heads)
        self.positions, self.norm = positions, nn.Identity() if norm is None else norm
        self.refine = refine

    @door
    def forward(
        self,
        embeddings: Float[Tensor, "B Q D"],
        references: Float[Tensor, "B Q _"],
        memory: Float[Tensor, "B K D"],
        shapes: Shapes,
        *,
        positions: Float[Tensor, "B Q D"] | None = None,
        mask: Bool[Tensor, "#B #Q Q"] | None = None,
        inside: Bool[Tensor, "B K"] | None = None,
        shares: Float[Tensor, "B #levels 2"] | None = None,
    ) -> BoxPredictions:
        """Predictions after every layer; ``embeddings`` and ``references`` are the initial ones of the queries.

        References are boxes (B, Q, 4), cx, cy, w, h, or points (B, Q, 2), as fractions of the image; ``shares``
        (B, levels, 2) is the fraction of the width and height of each padded map that each image fills (default: all).
        ``memory`` holds the cells of maps of ``shapes`` (rows, columns); only cells ``inside`` are attended to;
        ``positions`` are those of the queries in all layers; ``mask`` says which query may attend to which.
        """
        logits, boxes, described = [], [], embeddings
        for layer, head in zip(self.layers, self.heads, strict=True):
            around = references[:, :, None]
            if shares is not None:
                around = around * shares.repeat(1, 1, references.shape[2] // 2)[:, None]
            own = positions if self.positions is None else self.positions(references)
            embeddings = layer(embeddings, around, memory, shapes, positions=own, mask=mask, inside=inside)
            described = self.norm(embeddings)
            scores, found = head(described, references)
            logits.append(scores)
            boxes.append(found)
            references = found.detach() if self.refine else references
        return BoxPredictions(torch.stack(logits), torch.stack(boxes), described)

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"refine={self.refine}"
