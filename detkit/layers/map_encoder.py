"""Feature maps encoded as a memory that decoders attend to, shared by DETR's queries and for Pix2Seq's tokens."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from detkit._door import door
from detkit.layers.position import cells_inside
from detkit.layers.transformer import TransformerEncoder
from detkit.structures import Images


class Memory(NamedTuple):
    """Encoded images: their S cells, and a mask of the cells that hold image, not padding.

    A decoder adds ``positions`` to the cells to form keys; None means that the cells already contain them.
    """

    cells: Float[Tensor, "B S D"]
    mask: Bool[Tensor, "B 1 S"]
    positions: Float[Tensor, "B S D"] | None = None


class MapEncoder(nn.Module):
    """Encodes the cells of the last feature map with self-attention among the cells that hold image.

    ``projection`` maps it to the D channels of ``encoder``; ``positions(inside, dtype=)`` embeds a mask of cells (B, H,
    W) as (B, D, H, W), as :class:`~detkit.layers.SinePositions` does. Attention adds positions to
    queries and keys but not to values (Carion et al. 2020, figure 10). With ``positions_in_cells`` positions are added
    to the cells themselves, before the encoder and again after it, so that the values a decoder reads carry positions
    (Chen et al. 2022, "Pix2seq", section 2.2, with the positions of the release).

    >>> import torch
    >>> from detkit.layers.position import SinePositions
    >>> encoder = MapEncoder(nn.Conv2d(16, 8, 1), positions=SinePositions(8), encoder=TransformerEncoder([]))
    >>> images = Images(torch.zeros(1, 3, 32, 64), torch.tensor([[32, 40]]))
    >>> memory = encoder([torch.zeros(1, 16, 1, 3)], images)
    >>> memory.cells.shape, memory.positions.shape, memory.mask
    (torch.Size([1, 3, 8]), torch.Size([1, 3, 8]), tensor([[[ True,  True, False]]]))
    """

    def __init__(
        self,
        projection: nn.Module,
        *,
        positions: nn.Module,
        encoder: TransformerEncoder,
        positions_in_cells: bool = False,
    ) -> None:
        super().__init__()
        self.projection, self.positions, self.encoder = projection, positions, encoder
        self.positions_in_cells = positions_in_cells

    @door
    def forward(self, features: list[Tensor], images: Images) -> Memory:
        """The memory of ``images`` from the last of ``features`` (B, E, H, W)."""
        last = self.projection(features[-1])
        height, width = images.tensors.shape[-2:]
        inside = cells_inside(images.sizes, (height, width), (last.shape[-2], last.shape[-1]))
        cells, mask = _as_rows(last), inside.flatten(1)[:, None]
        positions = _as_rows(self.positions(inside, dtype=last.dtype))
        if self.positions_in_cells:
            return Memory(self.encoder(cells + positions, mask=mask) + positions, mask)
        return Memory(self.encoder(cells, positions=positions, mask=mask), mask, positions)

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"positions_in_cells={self.positions_in_cells}"


class LevelMemory(NamedTuple):
    """The cells of several maps, level after level: K in all, and (rows, columns) of each map.

    ``inside`` says which of them hold image, not padding, and ``shares`` which fraction of the width and height of each
    map they fill, at least in float32.
    """

    cells: Float[Tensor, "B K D"]
    inside: Bool[Tensor, "B K"]
    shapes: list[tuple[int, int]]
    shares: Float[Tensor, "B levels 2"]

    def centers(self) -> Float[Tensor, "B K levels 2"]:
        """Where the center of each cell lies on every level, x and y as fractions of the padded map.

        Here the image fills half of the first map and all of the second:

        >>> shares = torch.tensor([[[0.5, 1.0], [1.0, 1.0]]])
        >>> memory = LevelMemory(torch.zeros(1, 3, 1), torch.tensor([[True, False, True]]), [(1, 2), (1, 1)], shares)
        >>> memory.centers()[0, :, :, 0]
        tensor([[0.2500, 0.5000],
                [0.7500, 1.5000],
                [0.2500, 0.5000]])
        """
        return self.fractions()[:, :, None] * self.shares[:, None]

    def fractions(self) -> Float[Tensor, "B K 2"]:
        """Where the center of each cell lies in its image, x and y from 0 to 1; more outside.

        >>> memory = LevelMemory(torch.zeros(1, 2, 1), torch.tensor([[True] * 2]), [(1, 2)], torch.ones(1, 1, 2))
        >>> memory.fractions()
        tensor([[[0.2500, 0.5000],
                 [0.7500, 0.5000]]])
        """
        parts = []
        for (rows, columns), share in zip(self.shapes, self.shares.unbind(1), strict=True):
            y, x = ((torch.arange(side, device=share.device).to(share) + 0.5) / side for side in (rows, columns))
            grid = torch.stack((x.expand(rows, -1), y[:, None].expand(-1, columns)), -1)
            parts.append(grid.flatten(0, 1) / share[:, None])
        return torch.cat(parts, 1)


class LevelProjection(nn.Module):
    """Projects each level by its own of ``projections`` and hands their cells to a decoder, level after level.

    More projections than levels read the last one, or if they are ``chained`` the output of the projection before, but
    for the first of them. Source: Zhu et al. 2021, "Deformable DETR", appendix A.2.

    >>> import torch
    >>> projection = LevelProjection([nn.Conv2d(8, 4, 1), nn.Conv2d(16, 4, 1)])
    >>> images = Images(torch.zeros(1, 3, 32, 64), torch.tensor([[32, 40]]))
    >>> memory = projection([torch.zeros(1, 8, 2, 4), torch.zeros(1, 16, 1, 2)], images)
    >>> memory.cells.shape, memory.shapes, memory.inside[0, -2:]
    (torch.Size([1, 10, 4]), [(2, 4), (1, 2)], tensor([True, True]))
    """

    def __init__(self, projections: Sequence[nn.Module], *, chained: bool = False) -> None:
        super().__init__()
        self.projections, self.chained = nn.ModuleList(projections), chained

    @door
    def forward(self, features: list[Tensor], images: Images) -> LevelMemory:
        """The memory of ``images``. Raises ValueError if there are more ``features`` than projections."""
        if len(features) > len(self.projections):
            raise ValueError(
                f"LevelProjection: {len(features)} features for {len(self.projections)} projections; give as many"
            )
        maps: list[Tensor] = []
        for i, project in enumerate(self.projections):
            further = self.chained and i > len(features)
            maps.append(project(maps[-1] if further else features[min(i, len(features) - 1)]))
        shapes = [(level.shape[-2], level.shape[-1]) for level in maps]
        height, width = images.tensors.shape[-2:]
        inside = [cells_inside(images.sizes, (height, width), shape) for shape in shapes]
        cells = torch.cat([_as_rows(level) for level in maps], 1)
        dtype = torch.promote_types(cells.dtype, torch.float32)
        shares = torch.stack([_shares(level.to(dtype)) for level in inside], 1)
        return LevelMemory(cells, torch.cat([level.flatten(1) for level in inside], 1), shapes, shares)

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"chained={self.chained}"


class MapAttention(nn.Module):
    """Self-attention among all cells of one map, padding too; ``positions`` are added in each layer of ``encoder``.

    ``positions(inside, dtype=)`` is as in :class:`MapEncoder`. Source: Zhao et al. 2024, "RT-DETR", section 4.2
    ("attention-based intra-scale feature interaction").

    >>> from detkit.layers.position import GridPositions
    >>> from detkit.layers.transformer import EncoderLayer
    >>> attention = MapAttention(GridPositions(8), TransformerEncoder([EncoderLayer(8, 2, hidden=16)]))
    >>> attention(torch.zeros(2, 8, 3, 4)).shape
    torch.Size([2, 8, 3, 4])
    """

    def __init__(self, positions: nn.Module, encoder: TransformerEncoder) -> None:
        super().__init__()
        self.positions, self.encoder = positions, encoder

    @door
    def forward(self, features: Float[Tensor, "B D H W"]) -> Float[Tensor, "B D H W"]:
        """The encoded cells, each in its place."""
        everywhere = torch.ones_like(features[:1, 0], dtype=torch.bool)
        positions = _as_rows(self.positions(everywhere, dtype=features.dtype))
        encoded = self.encoder(_as_rows(features), positions=positions)
        # Contiguous, as in _as_rows: a batch norm that reads a transposed map of one image has wrong gradients.
        return encoded.transpose(1, 2).reshape_as(features).contiguous()


def _as_rows(cells: Float[Tensor, "B D H W"]) -> Float[Tensor, "B N D"]:
    """Cells one after another, row by row."""
    if cells.requires_grad and not torch.compiler.is_compiling():
        cells.register_hook(Tensor.contiguous)  # else torch 2.15 batch norms of one image pass on a wrong one
    return cells.flatten(2).transpose(1, 2)


def _shares(inside: Float[Tensor, "B H W"]) -> Float[Tensor, "B 2"]:
    """The fractions of columns and rows that hold image, which begins in the first."""
    return torch.stack((inside[:, 0].mean(1), inside[:, :, 0].mean(1)), 1)
