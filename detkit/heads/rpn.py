"""The head of a region proposal network: objectness and a box for every anchor."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from detkit._door import door
from detkit._inputs import promote
from detkit._ranges import Count, Whole
from detkit.boxes.align import read_cells
from detkit.heads.multibox import check_neck, flatten_levels
from detkit.layers.recomputation import is_hooked
from detkit.structures import DensePredictions, take_rows


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

    @property
    def is_local(self) -> bool:
        """Whether :meth:`at` can read single cells: not of a subclass with its own :meth:`forward`, another tower than
        that of the constructor, pruned or otherwise reparametrized convolutions, or where hooks watch one of them."""
        alike = all(
            (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode)
            == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")
            for layer in self.tower
            if isinstance(layer, nn.Conv2d)
        )
        kinds = [type(layer) for layer in self.tower]
        plain = kinds == [nn.Conv2d, nn.ReLU] * (len(kinds) // 2) and type(self).forward is RPNHead.forward
        return alike and plain and not any(is_hooked(part) for part in (self, self.tower, *self.tower))

    @door
    def at(self, features: Sequence[Float[Tensor, "B _ _ _"]], rows: Int[Tensor, "B K"]) -> DensePredictions:
        """What :meth:`forward` says of the anchors ``rows`` (B, K) of each image, from the cells around them alone.

        Few anchors are sampled for the loss: forward and backward pass of all others, and what they keep, are left out.
        Unless the head :attr:`is_local`, all are computed.
        """
        if not self.is_local:
            everything = self(features)
            return DensePredictions(*(take_rows(part, rows) for part in everything[:2]))
        per_cell = self.logits.out_channels
        own = (rows % per_cell)[..., None, None]
        values = self._read(features, rows // per_cell)
        logits = self.logits(values).reshape(*rows.shape, per_cell, 1).gather(2, own)
        deltas = self.deltas(values).reshape(*rows.shape, per_cell, 4).gather(2, own.expand(-1, -1, -1, 4))
        return DensePredictions(logits.squeeze(2), deltas.squeeze(2))

    def _read(self, features: Sequence[Tensor], cells: Int[Tensor, "B K"]) -> Float[Tensor, "M D 1 1"]:
        """The tower's output at ``cells``, numbered through all levels."""
        convolutions = [layer for layer in self.tower if isinstance(layer, nn.Conv2d)]
        reach = len(convolutions)
        values, inside = _surroundings(features, cells, reach)
        for convolution in convolutions:
            values = F.conv2d(torch.where(inside, values, 0), convolution.weight, convolution.bias).relu()
            inside = inside[..., 1:-1, 1:-1]
        return values


def _surroundings(
    features: Sequence[Tensor], cells: Int[Tensor, "B K"], reach: int
) -> tuple[Float[Tensor, "M D S S"], Bool[Tensor, "M 1 S S"]]:
    """The cells up to ``reach`` away from each of ``cells``, and which of them are on the map."""
    images = torch.arange(len(cells), device=cells.device).repeat_interleave(cells.shape[1])
    cells, start = cells.flatten(), 0
    level, y, x, height, width = (torch.zeros_like(cells) for _ in range(5))
    for i, feature in enumerate(features):
        rows, columns = feature.shape[2:]
        here, local = cells >= start, cells - start
        values = (level, i), (y, local // columns), (x, local % columns), (height, rows), (width, columns)
        level, y, x, height, width = (torch.where(here, new, old) for old, new in values)
        start += rows * columns
    steps = torch.arange(-reach, reach + 1, device=cells.device)
    in_rows, in_columns = (
        (at[:, None] + steps >= 0) & (at[:, None] + steps < most[:, None]) for at, most in ((y, height), (x, width))
    )
    maps = [promote(feature) for feature in features]
    first = torch.stack((x, y), dim=1).to(maps[0].dtype) - (reach + 0.5)
    rois = torch.cat((images[:, None].to(first), first, first + (2 * reach + 1)), dim=1)
    values = read_cells(maps, rois, level, 2 * reach + 1)
    return values.to(features[0].dtype), (in_rows[:, :, None] & in_columns[:, None])[:, None]
