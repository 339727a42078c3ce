"""A decoder whose queries are boxes: each layer attends around the box of every query, and its head refines the box."""

import math
from collections.abc import Sequence

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


class BoxPositions(nn.Module):
    """Embeddings of boxes: sines and cosines of cx, cy, w and h, a quarter of ``channels`` each, through a small MLP.

    The shortest wave spans the image; the longest is ``temperature`` times as long. Raises ValueError unless 8
    divides ``channels``. Source: Liu et al. 2022, "DAB-DETR", section 4.2 and 4.4.

    >>> BoxPositions(16)(torch.rand(2, 5, 4)).shape
    torch.Size([2, 5, 16])
    """

    @door
    def __init__(self, channels: Count, *, temperature: Positive = 20.0) -> None:
        super().__init__()
        if channels < 8 or channels % 8:
            raise ValueError(f"BoxPositions: channels={channels} must be a multiple of 8")
        self.channels, self.temperature = channels, temperature
        self.net = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels))

    @door
    def forward(self, boxes: Float[Tensor, "B Q 4"]) -> Float[Tensor, "B Q D"]:
        """Embeddings (B, Q, channels) of ``boxes``, cx, cy, w, h as fractions of the image."""
        boxes = promote(boxes)
        steps = torch.arange(self.channels // 8, device=boxes.device, dtype=boxes.dtype)
        angles = boxes[..., None] * (2 * math.pi) / self.temperature ** (steps * 8 / self.channels)
        waves = torch.stack((angles.sin(), angles.cos()), -1).flatten(-3)
        return self.net(waves.to(next(self.net.parameters(), waves).dtype))

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"channels={self.channels}, temperature={self.temperature}"


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

    ``hidden`` is the width of the feed-forward net; ``points`` is as in
    :class:`~detkit.layers.deformable.DeformableAttention` on each of ``levels`` maps; ``dropout`` is as in
    :class:`~detkit.layers.transformer.DecoderLayer`. Source: Zhu et al. 2021, section 4.1 and appendix A.4.

    >>> layer, boxes = DeformableDecoderLayer(8, 2, hidden=16), torch.full((1, 5, 1, 4), 0.5)
    >>> layer(torch.zeros(1, 5, 8), boxes, torch.zeros(1, 12, 8), [(3, 4)]).shape
    torch.Size([1, 5, 8])
    """

    @door
    def __init__(
        self,
        channels: Count,
        heads: Count,
        *,
        hidden: Count,
        levels: Count = 1,
        points: Count = 4,
        dropout: Fraction = 0.0,
        norm_first: bool = False,
    ) -> None:
        super().__init__()
        self.attention = Attention(channels, heads, dropout=dropout)
        self.attention_residual = Residual(channels, norm_first=norm_first, dropout=dropout)
        self.memory_attention = DeformableAttention(channels, heads, levels=levels, points=points)
        self.memory_residual = Residual(channels, norm_first=norm_first, dropout=dropout)
        self.feed_forward = FeedForward(channels, hidden, dropout=dropout)
        self.feed_forward_residual = Residual(channels, norm_first=norm_first, dropout=dropout)

    @door
    def forward(
        self,
        embeddings: Float[Tensor, "B Q D"],
        boxes: Float[Tensor, "B Q levels 4"],
        memory: Float[Tensor, "B K D"],
        shapes: Shapes,
        *,
        positions: Float[Tensor, "B Q D"] | None = None,
        mask: Bool[Tensor, "#B #Q Q"] | None = None,
        inside: Bool[Tensor, "B K"] | None = None,
    ) -> Float[Tensor, "B Q D"]:
        """The ``embeddings`` after the three steps; positions are added to queries and keys, not to values.

        ``boxes`` are cx, cy, w, h as fractions of the padded image; ``mask`` says which query may attend to which;
        ``memory``, ``shapes`` and ``inside`` are as in :class:`~detkit.layers.deformable.DeformableAttention`.
        """

        def located(own: Tensor) -> Tensor:
            return own if positions is None else own + positions

        def attend(own: Tensor) -> Tensor:
            return self.attention(located(own), located(own), own, mask=mask)

        def recall(own: Tensor) -> Tensor:
            return self.memory_attention(located(own), boxes, memory, shapes, inside=inside)

        embeddings = self.memory_residual(self.attention_residual(embeddings, attend), recall)
        return self.feed_forward_residual(embeddings, self.feed_forward)


class BoxDecoder(nn.Module):
    """Decoder layers, each with a head that predicts a class and refines the boxes the next layer attends around.

    A head maps (embeddings, boxes) to (logits, boxes), as :class:`~detkit.heads.set_prediction.RefinementHead`, from
    embeddings normalized by ``norm``; ``positions`` embeds boxes. A box gets no gradient from the boxes that later
    layers refine from it. Raises ValueError unless there is one head per layer. Sources: Liu et al. 2022, "DAB-DETR",
    section 4; Zhu et al. 2021, appendix A.4.

    >>> from detkit.heads.set_prediction import RefinementHead
    >>> layers = [DeformableDecoderLayer(8, 2, hidden=16) for _ in range(2)]
    >>> heads = [RefinementHead(8, num_classes=2) for _ in range(2)]
    >>> decoder = BoxDecoder(layers, heads, positions=BoxPositions(8), norm=nn.LayerNorm(8))
    >>> logits, boxes = decoder(*BoxQueries(5, 8)(1), torch.zeros(1, 12, 8), (3, 4))
    >>> logits.shape, boxes.shape
    (torch.Size([2, 1, 5, 3]), torch.Size([2, 1, 5, 4]))
    """

    def __init__(
        self,
        layers: Sequence[DeformableDecoderLayer],
        heads: Sequence[nn.Module],
        *,
        positions: nn.Module,
        norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not layers or len(layers) != len(heads):
            raise ValueError(
                f"BoxDecoder: {len(layers)} layers and {len(heads)} heads; allowed is one head for each layer"
            )
        self.layers, self.heads = nn.ModuleList(layers), nn.ModuleList(heads)
        self.positions, self.norm = positions, nn.Identity() if norm is None else norm

    @door
    def forward(
        self,
        embeddings: Float[Tensor, "B Q D"],
        boxes: Float[Tensor, "B Q 4"],
        memory: Float[Tensor, "B K D"],
        shape: tuple[int, int],
        *,
        mask: Bool[Tensor, "#B #Q Q"] | None = None,
        inside: Bool[Tensor, "B K"] | None = None,
        shares: Float[Tensor, "B 2"] | None = None,
    ) -> tuple[Float[Tensor, "L B Q classes"], Float[Tensor, "L B Q 4"]]:
        """Logits and boxes after every layer; ``embeddings`` and ``boxes`` are the initial ones of the queries.

        Boxes are cx, cy, w, h as fractions of the image; ``shares`` (B, 2) is the fraction of the width and height
        of the padded batch that each image fills (default: all). ``memory`` holds the cells of a map of ``shape``
        (rows, columns); only cells ``inside`` are attended to; ``mask`` says which query may attend to which.
        """
        scale = 1 if shares is None else shares.repeat(1, 2)[:, None]
        logits, refined = [], []
        for layer, head in zip(self.layers, self.heads, strict=True):
            around, positions = (boxes * scale)[:, :, None], self.positions(boxes)
            embeddings = layer(embeddings, around, memory, [shape], positions=positions, mask=mask, inside=inside)
            scores, boxes = head(self.norm(embeddings), boxes)
            logits.append(scores)
            refined.append(boxes)
            boxes = boxes.detach()
        return torch.stack(logits), torch.stack(refined)
