"""A head that says something of the whole image: its class, or the place of its one object."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from detkit._door import door
from detkit._ranges import Count, Fraction, NotNegative
from detkit.layers.position import cells_inside
from detkit.structures import Images


class ImageHead(nn.Module):
    """Pools the last feature map to ``cells`` x ``cells`` values a channel, then fully connected layers.

    ``tower`` maps the feature map to ``in_channels`` channels of the same size and may be any module (default: no
    tower). ``hidden`` are the widths of the layers before the last, each followed by ReLU and ``dropout``. One cell is
    global average pooling; more keep where things are, as a box needs it; as many as the map has are the map itself.
    Cells divide the map as far as the image reaches, so that padding and the rest of the batch do not matter.
    ``std`` is the standard deviation of the last layer's weights at the start, which keeps outputs near 0; None leaves
    them as torch draws them, as a few inputs need it. Hidden layers start by He's rule.

    >>> head = ImageHead(512, 25, hidden=(25, 25))
    >>> sum(parameter.numel() for parameter in head.parameters())
    14125
    >>> head([torch.zeros(2, 512, 14, 14)], Images(torch.zeros(2, 3, 224, 224), torch.tensor([[224, 224]] * 2))).shape
    torch.Size([2, 25])
    """

    @door
    def __init__(
        self,
        in_channels: Count,
        outputs: Count,
        *,
        hidden: Sequence[Count] = (),
        dropout: Fraction = 0.25,
        cells: Count = 1,
        tower: nn.Module | None = None,
        std: NotNegative | None = 0.01,
    ) -> None:
        super().__init__()
        self.cells = cells
        self.tower = nn.Identity() if tower is None else tower
        layers: list[nn.Module] = []
        widths = (in_channels * cells**2, *hidden)
        for before, after in pairwise(widths):
            hidden_layer = nn.Linear(before, after)
            nn.init.kaiming_normal_(hidden_layer.weight, nonlinearity="relu")
            layers += [hidden_layer, nn.ReLU(), nn.Dropout(dropout)]
        last = nn.Linear(widths[-1], outputs)
        if std is not None:
            nn.init.normal_(last.weight, std=std)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    @door
    def forward(self, features: Sequence[Float[Tensor, "B _ _ _"]], images: Images) -> Float[Tensor, "B outputs"]:
        """The outputs for each of the ``images``, from the last of ``features`` (B, D, H, W)."""
        return self.layers(self._pooled(self.tower(features[-1]), images).flatten(1))

    def _pooled(self, features: Float[Tensor, "B D H W"], images: Images) -> Float[Tensor, "B D _"]:
        """Means over the S x S cells of each image, row by row."""
        height, width = images.tensors.shape[-2:]
        inside = cells_inside(images.sizes, (height, width), (features.shape[-2], features.shape[-1]))
        features = torch.where(inside[:, None], features, 0)
        rows, columns = (self._shares(inside.any(axis)).to(features.dtype) for axis in (2, 1))
        shares = rows[:, :, None, :, None] * columns[:, None, :, None, :]
        return features.flatten(2) @ shares.flatten(3).flatten(1, 2).mT

    def _shares(self, inside: Bool[Tensor, "B L"]) -> Float[Tensor, "B S L"]:
        """What each of L rows, of which the first ones hold image, adds to the mean of each of S cells."""
        count = inside.sum(1)[:, None, None]
        place, cell = (torch.arange(n, device=inside.device) for n in (inside.shape[1], self.cells))
        begin = cell[:, None] * count // self.cells
        end = ((cell[:, None] + 1) * count + self.cells - 1) // self.cells  # rounded up, as in torch's adaptive pooling
        taken = ((place >= begin) & (place < end)).to(torch.float32)
        return taken / taken.sum(-1, keepdim=True).clamp(min=1)
