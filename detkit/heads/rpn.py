"""The head of a region proposal network: objectness and a box for every anchor."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from detkit._door import door
from detkit._ranges import Count, Whole
from detkit.heads.multibox import check_neck, flatten_levels
from detkit.structures import DensePredictions


class RPNHead(nn.Module):
    """Objectness and deltas for every anchor: 3 x 3 convolutions that all levels share, then a 1 x 1 for each output.

    ``depth`` counts the 3 x 3 convolutions. Weights are drawn from a normal distribution with standard deviation .01;
    biases are 0.
    Source: Ren et al. 2015, section 3.1.

    >>> import torch
    >>> predictions = RPNHead(8, 3)([torch.zeros(2, 8, 4, 4), torch.zeros(2, 8, 2, 2)])
    >>> predictions.logits.shape, predictions.deltas.shape
    (torch.Size([2, 60, 1]), torch.Size([2, 60, 4]))
    """

    numbers = 4
    gives_quality = False

    @door
    def __init__(self, in_channels: Count, per_cell: Count, *, depth: Whole = 1) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.tower = nn.Sequential()
        for _ in range(depth):
            self.tower.extend([nn.Conv2d(in_channels, in_channels, 3, padding=1), nn.ReLU()])
        self.logits = nn.Conv2d(in_channels, per_cell, 1)
        self.deltas = nn.Conv2d(in_channels, per_cell * 4, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.get_parameter("bias"))

    @door
    def forward(self, features: Sequence[Float[Tensor, "B _ _ _"]]) -> DensePredictions:
        """Logits (B, N, 1) and deltas (B, N, 4), in the order of the anchors: level, row, column, anchor."""
        check_neck(features, self.in_channels, function="RPNHead")
        towers = [self.tower(level) for level in features]
        logits = flatten_levels([self.logits(level) for level in towers], 1)
        return DensePredictions(logits, flatten_levels([self.deltas(level) for level in towers], 4))
