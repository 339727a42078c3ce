"""A box head shared by all feature levels."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from detkit._door import door
from detkit._ranges import Count
from detkit.heads.multibox import check_neck, flatten_levels, prediction_conv
from detkit.layers.recomputation import lean_tower


class RegressionHead(nn.Module):
    """Box deltas for every anchor: a tower that all levels share, then one 3 x 3 convolution.

    ``tower`` maps (B, in_channels, H, W) to the same shape and may be any module (default: no tower). ``outputs`` is
    how many numbers per anchor the coder decodes: 4, or 4 * (bins + 1) for distributions.
    Source: Lin et al. 2017 (RetinaNet), section 4.

    >>> import torch
    >>> RegressionHead(8, 3)([torch.zeros(2, 8, 4, 4), torch.zeros(2, 8, 2, 2)]).shape
    torch.Size([2, 60, 4])
    """

    @door
    def __init__(
        self, in_channels: Count, per_cell: Count, *, tower: nn.Module | None = None, outputs: Count = 4
    ) -> None:
        super().__init__()
        self.in_channels, self.outputs = in_channels, outputs
        self.tower = nn.Identity() if tower is None else tower
        self.deltas = prediction_conv(in_channels, per_cell * outputs, std=0.01)

    @door
    def forward(self, features: Sequence[Float[Tensor, "B _ _ _"]]) -> Float[Tensor, "B N D"]:
        """Deltas of all levels, in the order of the anchors: level, row, column, anchor."""
        check_neck(features, self.in_channels, function="RegressionHead")
        return flatten_levels([lean_tower(self.tower, level, self.deltas)[0] for level in features], self.outputs)
