"""Feature maps encoded as a memory that decoders attend to, shared by DETR's queries and for Pix2Seq's tokens."""

from typing import NamedTuple

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


def _as_rows(cells: Float[Tensor, "B D H W"]) -> Float[Tensor, "B N D"]:
    """Cells one after another, row by row."""
    return cells.flatten(2).transpose(1, 2)
