"""YOLO v1's head: fully connected layers see the whole image and predict everything of each cell of a fixed grid."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from detkit._door import door
from detkit._ranges import Count, Fraction
from detkit.structures import DensePredictions

_BOX = 4


class CellHead(nn.Module):
    """Classes of each cell, and a confidence and a box for each of its predictors, from one feature map of fixed size.

    ``grid`` is (height, width) of the map. ``hidden`` is the width of a first fully connected layer, with a leaky ReLU
    of slope .1 and ``dropout`` after it; None leaves these out, as in v1 tiny. The outputs are ordered as in Darknet:
    the classes of all cells, then all confidences, then all boxes. All predictors of a cell share its classes. Nothing
    is bounded by a sigmoid. Raises ValueError for another number or size of feature maps.
    Source: Redmon et al. 2016, section 2.1.

    >>> import torch
    >>> predictions = CellHead(8, (2, 3), per_cell=2, num_classes=5)([torch.zeros(1, 8, 2, 3)])
    >>> [tuple(part.shape) for part in predictions[:3]]
    [(1, 12, 5), (1, 12, 4), (1, 12)]
    """

    gives_quality = True
    numbers = _BOX

    @door
    def __init__(
        self,
        in_channels: Count,
        grid: tuple[Count, Count],
        *,
        per_cell: Count,
        num_classes: Count,
        hidden: Count | None = None,
        dropout: Fraction = 0.5,
    ) -> None:
        super().__init__()
        self.in_channels, self.grid, self.per_cell, self.num_classes = in_channels, tuple(grid), per_cell, num_classes
        cells = grid[0] * grid[1]
        self.parts = (cells * num_classes, cells * per_cell, cells * per_cell * _BOX)
        inputs = in_channels * cells
        first = [] if hidden is None else [nn.Linear(inputs, hidden), nn.LeakyReLU(0.1), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*first, nn.Linear(hidden or inputs, sum(self.parts)))

    @door
    def forward(self, features: Sequence[Float[Tensor, "B _ _ _"]]) -> DensePredictions:
        """Predictions in the order of the anchors: row, column, predictor."""
        expected = (self.in_channels, *self.grid)
        if len(features) != 1 or tuple(features[0].shape[1:]) != expected:
            shapes, allowed = [tuple(level.shape) for level in features], ", ".join(map(str, expected))
            raise ValueError(f"CellHead: features have shapes {shapes}; allowed is one, (B, {allowed})")
        classes, quality, boxes = self.layers(features[0].flatten(1)).split(self.parts, dim=1)
        logits = classes.unflatten(1, (-1, 1, self.num_classes)).expand(-1, -1, self.per_cell, -1).flatten(1, 2)
        return DensePredictions(logits, boxes.unflatten(1, (-1, _BOX)), quality)
