"""The mask head of Mask R-CNN, which predicts a mask for every region."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detkit._door import door
from detkit._ranges import Count
from detkit.layers import ConvNormActivation, init_convolutions
from detkit.layers.recomputation import in_pieces

_REGIONS_AT_ONCE = 8  # that are enlarged


class MaskHead(nn.Module):
    """Predicts mask logits of every class for pooled regions, at twice their resolution.

    One 3 x 3 convolution with ReLU for each of ``channels`` (``norm`` is built for each, which then has no bias, as in
    torchvision's second version), a 2 x 2 transposed convolution of stride 2 with ReLU, and a 1 x 1 convolution to
    ``num_classes``. Weights are initialized as in torchvision: normal, with He's fan-out variance.
    Raises ValueError for counts below 1. Source: He et al. 2017 (Mask R-CNN), figure 4 right.

    >>> MaskHead(8, 3, channels=(4, 4))(torch.zeros(5, 8, 14, 14)).shape
    torch.Size([5, 3, 28, 28])
    """

    @door
    def __init__(
        self,
        in_channels: Count,
        num_classes: Count,
        *,
        channels: Sequence[Count] = (256, 256, 256, 256),
        norm: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.tower = conv_tower(in_channels, channels, norm=norm)
        width = (in_channels, *channels)[-1]
        self.upsample = nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)
        self.logits = nn.Conv2d(width, num_classes, kernel_size=1)
        for layer in (self.upsample, self.logits):
            kaiming_fan_out(layer.weight)

    @door
    def forward(
        self, pooled: Float[Tensor, "M D _ _"], pick: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> Float[Tensor, "M ..."]:
        """Logits (M, C, 2 S, 2 S) of pooled regions (M, D, S, S).

        With ``pick`` it is ``pick(logits, rows)``, a few regions at a time, whose numbers are ``rows``: what is not
        picked is never there for all of them.
        """

        def enlarged(described: Tensor, rows: Tensor) -> Tensor:
            """An eighth of the work, and more than half of the memory: four times as many cells."""
            logits = self.logits(torch.relu(self.upsample(described)))
            return logits if pick is None else pick(logits, rows)

        described, rows = self.tower(pooled), torch.arange(pooled.shape[0], device=pooled.device)
        return in_pieces(enlarged, _REGIONS_AT_ONCE, described, rows, parts=(self.upsample, self.logits))


def conv_tower(
    in_channels: int, channels: Sequence[int], *, norm: Callable[[int], nn.Module] | None = None
) -> nn.Sequential:
    """A 3 x 3 convolution with ReLU for each of ``channels``, with normal fan-out weights and zero biases.

    >>> len(conv_tower(8, (4, 4)))
    2
    """
    widths = (in_channels, *channels)
    tower = nn.Sequential(
        *(ConvNormActivation(before, after, norm=norm) for before, after in zip(widths, channels, strict=False))
    )
    init_convolutions(tower, kaiming_fan_out)
    return tower


def kaiming_fan_out(weight: Tensor) -> Tensor:
    """Fill ``weight`` in place with normal samples of variance 2 / fan-out (He et al. 2015).

    >>> kaiming_fan_out(torch.empty(64, 1, 3, 3)).std().item() < 0.1
    True
    """
    return nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
