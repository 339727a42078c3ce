"""The box head of FCOS: distances to the four sides of a box, and the centerness of the point in it."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from detkit._door import door
from detkit._ranges import Count
from detkit.heads.multibox import check_neck, flatten_levels, prediction_conv
from detkit.layers.recomputation import lean_tower


class FCOSHead(nn.Module):
    """Distances and a centerness logit for every point: a shared tower, then a 3 x 3 convolution for each output.

    ``tower`` maps (B, in_channels, H, W) to the same shape and may be any module (default: no tower); all levels share
    it. Each cell has one point. A ReLU keeps distances at least 0. Source: Tian et al. 2020, section 2 (centerness on
    the box branch), with torchvision's ReLU in place of exp.

    >>> import torch
    >>> distances, logits = FCOSHead(8)([torch.zeros(2, 8, 4, 4), torch.zeros(2, 8, 2, 2)])
    >>> distances.shape, logits.shape
    (torch.Size([2, 20, 4]), torch.Size([2, 20]))
    """

    gives_quality = True
    outputs = 4

    @door
    def __init__(self, in_channels: Count, *, tower: nn.Module | None = None) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.tower = nn.Identity() if tower is None else tower
        self.distances = prediction_conv(in_channels, 4, std=0.01)
        self.center = prediction_conv(in_channels, 1, std=0.01)

    @door
    def forward(
        self, features: Sequence[Float[Tensor, "B _ _ _"]]
    ) -> tuple[Float[Tensor, "B N 4"], Float[Tensor, "B N"]]:
        """Distances (left, top, right, bottom) and logits of all levels, in the order: level, row, column."""
        check_neck(features, self.in_channels, function="FCOSHead")
        found = [lean_tower(self.tower, level, self.distances, self.center) for level in features]
        distances = flatten_levels([distances.relu() for distances, _ in found], 4)
        return distances, flatten_levels([center for _, center in found], 1).squeeze(2)
