"""The second-stage head, which predicts the class and the refined box of each pooled region."""

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor, nn

from detkit._door import door
from detkit._ranges import Count
from detkit.heads.mask import conv_tower


class BoxHead(nn.Module):
    """Predicts class logits, background last, and box deltas for each region.

    ``body`` maps pooled features (M, D, S, S) to (M, width), as :func:`dense_body` and :func:`conv_body` do. Each
    class has its own deltas unless ``class_agnostic``. Source: Girshick 2015, "Fast R-CNN", section 2.1.

    >>> import torch
    >>> logits, deltas = BoxHead(dense_body(8, 7, width=16), 16, num_classes=3)(torch.zeros(5, 8, 7, 7))
    >>> logits.shape, deltas.shape
    (torch.Size([5, 4]), torch.Size([5, 3, 4]))
    """

    @door
    def __init__(self, body: nn.Module, width: Count, *, num_classes: Count, class_agnostic: bool = False) -> None:
        super().__init__()
        self.body = body
        self.logits = nn.Linear(width, num_classes + 1)
        self.deltas = nn.Linear(width, 4 if class_agnostic else 4 * num_classes)

    @door
    def forward(self, regions: Float[Tensor, "M D S S"]) -> tuple[Float[Tensor, "M classes"], Float[Tensor, "M C 4"]]:
        """Logits (M, C + 1), and deltas (M, C, 4), or (M, 1, 4) if class-agnostic."""
        described = self.body(regions)
        return self.logits(described), self.deltas(described).unflatten(1, (-1, 4))


@door
def dense_body(in_channels: Count, size: Count, *, width: Count = 1024) -> nn.Sequential:
    """Two fully connected layers of ``width`` on regions (M, in_channels, size, size), as in Faster R-CNN with FPN.

    Source: Lin et al. 2017, "Feature Pyramid Networks", section 4.2.

    >>> dense_body(8, 7, width=16)[1]
    Linear(in_features=392, out_features=16, bias=True)
    """
    layers = nn.Linear(in_channels * size * size, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
    return nn.Sequential(nn.Flatten(), *layers)


@door
def conv_body(
    in_channels: Count,
    size: Count,
    *,
    channels: Sequence[Count] = (256, 256, 256, 256),
    width: Count = 1024,
    norm: Callable[[int], nn.Module] | None = None,
) -> nn.Sequential:
    """3 x 3 convolutions, one for each of ``channels``, then one fully connected layer of ``width``.

    ``norm`` is built for each convolution, which then has no bias. A batch norm takes its statistics over the regions
    of all images together. Source: Wu and He 2018, "Group Normalization", section 4.2.

    >>> len(conv_body(8, 7, channels=(16, 16), width=32))
    5
    """
    tower = conv_tower(in_channels, channels, norm=norm)
    flat = (in_channels, *channels)[-1] * size * size
    return nn.Sequential(*tower, nn.Flatten(), nn.Linear(flat, width), nn.ReLU())
