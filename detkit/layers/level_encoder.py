"""The encoder of Deformable DETR: every cell of several maps attends to a few points on all of them."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from detkit._door import door
from detkit._ranges import Count, Fraction
from detkit.layers.deformable import DeformableAttention, Shapes
from detkit.layers.map_encoder import LevelMemory, LevelProjection
from detkit.layers.transformer import FeedForward, Residual
from detkit.structures import Images


class DeformableEncoderLayer(nn.Module):
    """Deformable attention of each cell around its place on all levels, and a feed-forward net, each with a residual.

    ``hidden`` is the width of the feed-forward net; ``dropout`` and ``activation`` are as in
    :class:`~detkit.layers.transformer.EncoderLayer`. Source: Zhu et al. 2021, section 4.1 and appendix A.4.

    >>> layer = DeformableEncoderLayer(8, hidden=16, attention=DeformableAttention(8, 2, levels=1))
    >>> layer(torch.zeros(1, 12, 8), torch.full((1, 12, 1, 2), 0.5), [(3, 4)]).shape
    torch.Size([1, 12, 8])
    """

    @door
    def __init__(
        self,
        channels: Count,
        *,
        hidden: Count,
        attention: DeformableAttention,
        dropout: Fraction = 0.0,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.attention_residual = Residual(channels, dropout=dropout)
        self.feed_forward = FeedForward(channels, hidden, dropout=dropout, activation=activation)
        self.feed_forward_residual = Residual(channels, dropout=dropout)

    @door
    def forward(
        self,
        cells: Float[Tensor, "B K D"],
        references: Float[Tensor, "B K #levels 2"],
        shapes: Shapes,
        *,
        positions: Float[Tensor, "B K D"] | None = None,
        inside: Bool[Tensor, "B K"] | None = None,
    ) -> Float[Tensor, "B K D"]:
        """The ``cells`` after both steps; positions are added to queries, not to values.

        ``references``, ``shapes`` and ``inside`` are as in :class:`~detkit.layers.deformable.DeformableAttention`.
        """

        def attend(own: Tensor) -> Tensor:
            queries = own if positions is None else own + positions
            return self.attention(queries, references, own, shapes, inside=inside)

        return self.feed_forward_residual(self.attention_residual(cells, attend), self.feed_forward)


class LevelEncoder(nn.Module):
    """Encodes the cells of several maps, which look around their own places on all of them.

    ``projection`` makes them of as many channels as ``layers`` have; ``positions`` embeds a mask of cells, as in
    :class:`~detkit.layers.MapEncoder`, and every level has a learned embedding beside. ``dropout`` applies to the
    projected cells. Source: Zhu et al. 2021, "Deformable DETR", section 4.1 and appendix A.2.

    >>> from detkit.layers.position import SinePositions
    >>> layer = DeformableEncoderLayer(8, hidden=16, attention=DeformableAttention(8, 2, levels=2))
    >>> projection = LevelProjection([nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 3, stride=2, padding=1)])
    >>> encoder = LevelEncoder(projection, positions=SinePositions(8), layers=[layer], channels=8)
    >>> images = Images(torch.zeros(1, 3, 32, 64), torch.tensor([[32, 40]]))
    >>> encoder([torch.zeros(1, 3, 2, 4)], images).cells.shape
    torch.Size([1, 10, 8])
    """

    @door
    def __init__(
        self,
        projection: LevelProjection,
        *,
        positions: nn.Module,
        layers: Sequence[DeformableEncoderLayer],
        channels: Count,
        dropout: Fraction = 0.0,
    ) -> None:
        super().__init__()
        self.projection, self.positions, self.dropout = projection, positions, nn.Dropout(dropout)
        self.layers = nn.ModuleList(layers)
        self.levels = nn.Parameter(torch.randn(len(projection.projections), channels))

    @door
    def forward(self, features: list[Tensor], images: Images) -> LevelMemory:
        """The encoded cells of ``features``."""
        memory = self.projection(features, images)
        references, positions = memory.centers(), self._positions(memory)
        cells = self.dropout(memory.cells)
        for layer in self.layers:
            cells = cast(DeformableEncoderLayer, layer)(
                cells, references, memory.shapes, positions=positions, inside=memory.inside
            )
        return memory._replace(cells=cells)

    def _positions(self, memory: LevelMemory) -> Float[Tensor, "B K D"]:
        sizes = [rows * columns for rows, columns in memory.shapes]
        parts = []
        for level, inside, shape in zip(self.levels, memory.inside.split(sizes, 1), memory.shapes, strict=True):
            own = self.positions(inside.unflatten(1, shape), dtype=memory.cells.dtype)
            parts.append(own.flatten(2).transpose(1, 2) + level)
        return torch.cat(parts, 1)
