"""Necks for a trunk of several branches."""

from torch import Tensor, nn

from detkit._door import door


class BranchNecks(nn.Module):
    """Puts a neck behind each named branch of a trunk that returns a dict of feature maps; others pass unchanged.

    ``nn.Sequential(trunk, BranchNecks(boxes=FPN(...)))`` is a trunk. Raises ValueError for a branch that the trunk has
    not, when it is called.

    >>> import torch
    >>> from detkit.necks import FPN
    >>> necks = BranchNecks(boxes=FPN([8], [4], channels=2))
    >>> features = necks({"boxes": [torch.zeros(1, 8, 4, 4)], "masks": [torch.zeros(1, 8, 4, 4)]})
    >>> {name: maps[0].shape[1] for name, maps in features.items()}
    {'boxes': 2, 'masks': 8}
    """

    @door
    def __init__(self, **necks: nn.Module) -> None:
        super().__init__()
        self.necks = nn.ModuleDict(necks)

    @door
    def forward(self, features: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
        """The feature maps of each branch, finest first."""
        if not isinstance(features, dict):
            raise ValueError("BranchNecks: the trunk returns no branches; allowed is a dict of feature maps by branch")
        if unknown := [name for name in self.necks if name not in features]:
            raise ValueError(f"BranchNecks: there is no branch {unknown}; the trunk has {sorted(features)}")
        return {name: self.necks[name](maps) if name in self.necks else maps for name, maps in features.items()}
