"""YOLO v2's neck: convolutions on the coarsest level, and beside them the pixels of the level before."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from detkit._door import door
from detkit._ranges import Count, Whole
from detkit.layers import ConvNormActivation, Passthrough, check_levels, init_convolutions
from detkit.necks.base import Neck


class PassthroughNeck(Neck):
    """One level from the last two: 3 x 3 convolutions on the last, the one before passed through, one convolution more.

    ``depth`` convolutions of ``channels`` work on the last level. The level before it, twice as fine, is reduced to
    ``passed`` channels by a 1 x 1 convolution, turned into 4 * ``passed`` coarser ones
    (:class:`~detkit.layers.Passthrough`) and put before the result; a last convolution merges both. With ``passed=0``
    there is none of this: v2 tiny has ``depth=1, passed=0``. Each convolution is followed by ``norm`` and a leaky ReLU
    of slope .1; they stand in the order of the authors' cfg: ``deep``, ``narrow``, ``merge``.

    Raises ValueError if levels are passed through that do not differ by a factor of 2.
    Source: Redmon and Farhadi 2017, section 2 ("Fine-Grained Features"), and the authors' configuration.

    >>> import torch
    >>> neck = PassthroughNeck([8, 16], [16, 32], channels=16, passed=4)
    >>> [level.shape for level in neck([torch.zeros(1, 8, 6, 8), torch.zeros(1, 16, 3, 4)])]
    [torch.Size([1, 16, 3, 4])]
    """

    @door
    def __init__(
        self,
        in_channels: Sequence[Count],
        in_strides: Sequence[Count],
        *,
        channels: Count = 1024,
        depth: Count = 2,
        passed: Whole = 64,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ) -> None:
        check_levels(in_channels, in_strides, function="PassthroughNeck")
        if passed and (len(in_strides) < 2 or in_strides[-1] != 2 * in_strides[-2]):
            raise ValueError(
                f"PassthroughNeck: in_strides={tuple(in_strides)} must end with two levels, one twice as fine as the "
                "other; or give passed=0"
            )
        super().__init__(in_channels, out_channels=[channels], strides=in_strides[-1:])
        convolution = partial(ConvNormActivation, norm=norm, activation=partial(nn.LeakyReLU, 0.1))
        self.deep = nn.Sequential(
            *(convolution(in_channels[-1] if i == 0 else channels, channels) for i in range(depth))
        )
        self.narrow = (
            nn.Sequential(convolution(in_channels[-2], passed, kernel_size=1), Passthrough()) if passed else None
        )
        self.merge = convolution(channels + 4 * passed, channels) if passed else None
        init_convolutions(self, partial(nn.init.kaiming_normal_, a=0.1))

    @door
    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """One level, of the size of the last."""
        self.check_features(features)
        deep = self.deep(features[-1])
        if self.narrow is None or self.merge is None:
            return [deep]
        return [self.merge(torch.cat((self.narrow(features[-2]), deep), dim=1))]
