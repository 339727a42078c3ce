"""Position embeddings for the cells of a padded batch, and the mask of the cells that hold image."""

import math

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from detkit._door import door
from detkit._ranges import Count, Positive


class SinePositions(nn.Module):
    """Sines and cosines of each cell's row, then of its column; each takes half of ``channels``.

    Cells are counted from 1 to the last one inside the image, which maps to 2 pi for any image size; with ``centered``
    the first counts as 1/2. ``temperature`` is the ratio of the longest wave to the shortest; the shortest makes
    ``turns`` over the image. More turns make neighbors easier to tell apart from the start; beyond half a turn per cell
    they add no information. Raises ValueError unless 4 divides ``channels``. Sources: Carion et al. 2020, appendix A.4,
    with the release's 1e-6 in the division; ``centered``: the release of Zhu et al. 2021, "Deformable DETR".

    >>> positions = SinePositions(4)(torch.ones(1, 1, 4, dtype=torch.bool))
    >>> positions[0, 2, 0].mul(100).round().int()  # sine of a quarter, a half, three quarters and a whole turn
    tensor([ 100,    0, -100,    0], dtype=torch.int32)
    """

    @door
    def __init__(
        self, channels: Count, *, temperature: Positive = 10000.0, turns: Positive = 1.0, centered: bool = False
    ) -> None:
        super().__init__()
        if channels < 4 or channels % 4:
            raise ValueError(f"SinePositions: channels={channels} must be a multiple of 4")
        self.channels, self.temperature, self.turns, self.centered = channels, temperature, turns, centered

    @door
    def forward(self, inside: Bool[Tensor, "B H W"], *, dtype: torch.dtype = torch.float32) -> Float[Tensor, "B D H W"]:
        """Positions (B, channels, H, W) of cells; ``inside`` masks those that hold image: see :func:`cells_inside`.

        They are cast to ``dtype`` at the end: half precision cannot tell angles of many turns apart.
        """
        exact = torch.promote_types(dtype, torch.float32)
        waves = torch.arange(0, self.channels // 2, 2, device=inside.device, dtype=exact)
        waves = self.temperature ** (waves * 2 / self.channels)
        halves = []
        for dim in (1, 2):
            counted = inside.to(exact).cumsum(dim)
            last = counted.narrow(dim, -1, 1)
            counted = counted - 0.5 if self.centered else counted
            angles = counted / (last + 1e-6) * (2 * math.pi * self.turns)
            angles = angles[..., None] / waves
            halves.append(torch.stack((angles.sin(), angles.cos()), -1).flatten(3))
        return torch.cat(halves, -1).permute(0, 3, 1, 2).to(dtype)

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        said = f"channels={self.channels}, temperature={self.temperature}, turns={self.turns}"
        return f"{said}, centered={self.centered}"


class GridPositions(nn.Module):
    """Sines, then cosines, of each cell's row, then those of its column; each takes a quarter of ``channels``.

    Unlike :class:`SinePositions`, cells are counted from 0 in steps of 1, and padding is counted too: it is for images
    of about the size that was trained on. Raises ValueError unless 4 divides ``channels``. Source: Zhao et al. 2024,
    "RT-DETR", the release, after Vaswani et al. 2017, section 3.5.

    >>> GridPositions(4)(torch.ones(1, 2, 2, dtype=torch.bool))[0, :, 1, 0].mul(100).round().int()
    tensor([ 84,  54,   0, 100], dtype=torch.int32)
    """

    @door
    def __init__(self, channels: Count, *, temperature: Positive = 10000.0) -> None:
        super().__init__()
        if channels < 4 or channels % 4:
            raise ValueError(f"GridPositions: channels={channels} must be a multiple of 4")
        self.channels, self.temperature = channels, temperature

    @door
    def forward(self, inside: Bool[Tensor, "B H W"], *, dtype: torch.dtype = torch.float32) -> Float[Tensor, "B D H W"]:
        """Positions (B, channels, H, W); only the shape of ``inside`` matters."""
        images, height, width = inside.shape
        exact = torch.promote_types(dtype, torch.float32)
        waves = torch.arange(self.channels // 4, device=inside.device, dtype=exact) * (4 / self.channels)
        angles = (torch.arange(side, device=inside.device, dtype=exact)[:, None] for side in (height, width))
        rows, columns = (
            torch.cat((turned.sin(), turned.cos()), 1).T for turned in (a / self.temperature**waves for a in angles)
        )
        both = (rows[:, :, None].expand(-1, -1, width), columns[:, None].expand(-1, height, -1))
        return torch.cat(both).to(dtype).expand(images, -1, -1, -1)

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"channels={self.channels}, temperature={self.temperature}"


class LearnedPositions(nn.Module):
    """A learned embedding for every column, then one for every row; each takes half of ``channels``.

    ``size`` (rows, columns) is the number of embeddings; maps may be smaller. Embeddings start uniform in [0, 1).
    Raises ValueError for odd ``channels`` and for a larger map. Source: Carion et al. 2020, section 4.2 (table 3).

    >>> LearnedPositions(8, size=(50, 50))(torch.ones(2, 3, 4, dtype=torch.bool)).shape
    torch.Size([2, 8, 3, 4])
    """

    @door
    def __init__(self, channels: Count, *, size: tuple[Count, Count] = (50, 50)) -> None:
        super().__init__()
        if channels < 2 or channels % 2:
            raise ValueError(f"LearnedPositions: channels={channels} must be even")
        self.rows, self.columns = (nn.Embedding(count, channels // 2) for count in size)
        for embedding in (self.rows, self.columns):
            nn.init.uniform_(embedding.weight)

    @door
    def forward(self, inside: Bool[Tensor, "B H W"], *, dtype: torch.dtype = torch.float32) -> Float[Tensor, "B D H W"]:
        """Positions (B, channels, H, W); only the shape of ``inside`` matters."""
        images, height, width = inside.shape
        if height > self.rows.num_embeddings or width > self.columns.num_embeddings:
            raise ValueError(
                f"LearnedPositions: a map of {height} x {width} cells is larger than the "
                f"{self.rows.num_embeddings} x {self.columns.num_embeddings} that have positions"
            )
        rows, columns = self.rows.weight[:height, None], self.columns.weight[None, :width]
        both = torch.cat((columns.expand(height, -1, -1), rows.expand(-1, width, -1)), -1)
        return both.to(dtype).permute(2, 0, 1).expand(images, -1, -1, -1)


def cells_inside(sizes: Shaped[Tensor, "B 2"], frame: tuple[int, int], cells: tuple[int, int]) -> Bool[Tensor, "B H W"]:
    """Which of ``cells`` (rows, columns) laid over a padded ``frame`` (height, width) start inside their image.

    ``sizes`` (B, 2) is where the images end in the frame, at least one pixel each. Equals the pixel mask resized with
    nearest-neighbor interpolation.

    >>> cells_inside(torch.tensor([[32, 33]]), (64, 96), (2, 3)).int()
    tensor([[[1, 1, 0],
             [0, 0, 0]]], dtype=torch.int32)
    """
    rows, columns = (
        torch.arange(count, device=sizes.device) * length // count < sizes[:, i, None]
        for i, (length, count) in enumerate(zip(frame, cells, strict=True))
    )
    return rows[:, :, None] & columns[:, None]
