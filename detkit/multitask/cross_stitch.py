"""The cross-stitch unit: each branch goes on with a mixture of the feature maps of all branches."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detkit._door import door
from detkit._ranges import Count, Finite


class CrossStitch(nn.Module):
    """Linear combinations of K branches' feature maps with learned weights: x'_i = sum over j of a_ij x_j.

    ``shares`` (K, K, channels) are the weights, of row i those that branch i takes, one for each channel; with
    ``per_channel=False`` they are (K, K, 1), one for the whole layer. They begin as ``same`` for a branch's own map and
    ``other`` for each other one (default: so that rows sum to 1). ``same=1`` leaves the branches independent, bit for
    bit, until it is trained; ``same=1 / K`` makes them equal.

    The source's authors learn the weights 100 to 1000 times as fast as the network. Give them a group of their own:
    ``parameter_groups(detector, lr, backbone=trunk.stitches, backbone_factor=100, undecayed=["shares"])``.
    Raises ValueError for a single branch. Source: Misra et al. 2016, sections 3.1 and 4; values at the start from 4.3.

    >>> stitch = CrossStitch(2, 8)
    >>> one, other = stitch([torch.ones(1, 8, 4, 4), torch.zeros(1, 8, 4, 4)])
    >>> round(one.mean().item(), 4), round(other.mean().item(), 4)
    (0.9, 0.1)
    """

    @door
    def __init__(
        self,
        branches: Count,
        channels: Count,
        *,
        same: Finite = 0.9,
        other: Finite | None = None,
        per_channel: bool = True,
    ) -> None:
        super().__init__()
        if branches < 2:
            raise ValueError(f"CrossStitch: branches={branches}; allowed are at least 2, which exchange something")
        self.branches, self.channels = branches, channels
        other = (1 - same) / (branches - 1) if other is None else other
        shares = torch.full((branches, branches), float(other)).fill_diagonal_(float(same))
        self.shares = nn.Parameter(shares[..., None].repeat(1, 1, channels if per_channel else 1))

    @door
    def forward(self, maps: Sequence[Float[Tensor, "B D H W"]]) -> list[Tensor]:
        """The K mixtures of the K ``maps``, all of one shape (B, channels, H, W)."""
        alike = len(maps) == self.branches and all(one.shape == maps[0].shape for one in maps)
        if not alike or maps[0].ndim != 4 or maps[0].shape[1] != self.channels:
            raise ValueError(
                f"CrossStitch: maps have shapes {[tuple(one.shape) for one in maps]}; allowed are {self.branches} of "
                f"one shape (B, {self.channels}, H, W)"
            )
        # Products and sums in this order, by no matrix product: zeros and ones then leave a map as it is on any device.
        return [
            sum_of([share[:, None, None] * one for share, one in zip(row, maps, strict=True)]) for row in self.shares
        ]

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"branches={self.branches}, channels={self.channels}, per_channel={self.shares.shape[2] > 1}"


def sum_of(parts: Sequence[Tensor]) -> Tensor:
    """The sum of tensors of one shape, from the first to the last.

    >>> sum_of([torch.ones(1), torch.ones(1)])
    tensor([2.])
    """
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
