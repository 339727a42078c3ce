"""YOLO v2's and v3's head: one convolution predicts everything of each anchor in a cell."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detkit._door import door
from detkit._ranges import Count, Probability
from detkit.heads.multibox import check_neck, flatten_levels
from detkit.structures import DensePredictions

_BOX, _OBJECTNESS = 4, 1


class GridHead(nn.Module):
    """A 1 x 1 convolution for each level; of each anchor it predicts tx, ty, tw, th, objectness and the classes.

    So its channels are ordered in the authors' files, anchor after anchor. ``in_channels`` and ``per_cell`` are the
    channels and the anchors per cell of each level, finest first. ``prior`` sets the bias so that objectness starts at
    that probability; without it all biases are 0. Weights are normal with deviation .01. Raises ValueError for
    in_channels and per_cell of different lengths, and for another number of feature maps.

    >>> import torch
    >>> predictions = GridHead((8, 16), (3, 3), num_classes=2)([torch.zeros(1, 8, 4, 4), torch.zeros(1, 16, 2, 2)])
    >>> [tuple(part.shape) for part in predictions[:3]]
    [(1, 60, 2), (1, 60, 4), (1, 60)]
    """

    gives_quality = True
    numbers = _BOX

    @door
    def __init__(
        self,
        in_channels: Sequence[Count],
        per_cell: Sequence[Count],
        *,
        num_classes: Count,
        prior: Probability | None = None,
    ) -> None:
        super().__init__()
        if len(in_channels) != len(per_cell):
            raise ValueError(f"GridHead: {len(in_channels)} in_channels for {len(per_cell)} per_cell levels")
        self.in_channels, self.outputs = tuple(in_channels), _BOX + _OBJECTNESS + num_classes
        self.levels = nn.ModuleList(
            nn.Conv2d(channels, count * self.outputs, kernel_size=1)
            for channels, count in zip(in_channels, per_cell, strict=True)
        )
        with torch.no_grad():
            for level in self.levels:
                nn.init.normal_(level.get_parameter("weight"), std=0.01)
                nn.init.zeros_(level.get_parameter("bias"))
                if prior is not None:
                    level.get_parameter("bias").unflatten(0, (-1, self.outputs))[:, _BOX] = math.log(
                        prior / (1 - prior)
                    )

    @door
    def forward(self, features: Sequence[Float[Tensor, "B _ _ _"]]) -> DensePredictions:
        """Predictions of all levels, in the order of the anchors: level, row, column, anchor."""
        check_neck(features, self.in_channels, function="GridHead")
        rows = flatten_levels([level(own) for level, own in zip(self.levels, features, strict=True)], self.outputs)
        deltas, quality, logits = rows.split((_BOX, _OBJECTNESS, self.outputs - _BOX - _OBJECTNESS), dim=-1)
        return DensePredictions(logits, deltas, quality.squeeze(-1))
