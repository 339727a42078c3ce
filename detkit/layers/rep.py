"""Blocks of the hybrid encoders: RepVGG's, which merge into one convolution, in cross-stage partial nets."""

from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from detkit._door import door
from detkit._ranges import Count, Positive
from detkit.layers.blocks import ConvNormActivation

Norm = Callable[[int], nn.Module]
Activation = Callable[[], nn.Module]


class RepVGGBlock(nn.Module):
    """The sum of a 3 x 3 and a 1 x 1 convolution, each with a norm, then an activation.

    Maps (B, in_channels, H, W) to (B, out_channels, H, W). :meth:`merged` is the same in inference as one convolution,
    where the norms are batch norms. Source: Ding et al. 2021, "RepVGG", section 3.3, without the identity branch.

    >>> block = RepVGGBlock(8, 16).eval()
    >>> features = torch.rand(1, 8, 4, 6)
    >>> torch.allclose(block(features), block.merged()(features), atol=1e-5)
    True
    """

    @door
    def __init__(
        self,
        in_channels: Count,
        out_channels: Count,
        *,
        norm: Norm = nn.BatchNorm2d,
        activation: Activation = nn.SiLU,
    ) -> None:
        super().__init__()
        self.wide = ConvNormActivation(in_channels, out_channels, norm=norm, activation=None)
        self.narrow = ConvNormActivation(in_channels, out_channels, kernel_size=1, norm=norm, activation=None)
        self.activation = activation()

    @door
    def forward(self, features: Float[Tensor, "B D H W"]) -> Float[Tensor, "B _ H W"]:
        """The activated sum of both convolutions."""
        return self.activation(self.wide(features) + self.narrow(features))

    @property
    def can_merge(self) -> bool:
        """Whether :meth:`merged` is possible."""
        return all(_has_statistics(block[1]) for block in (self.wide, self.narrow))

    @torch.no_grad()
    def merged(self) -> nn.Sequential:
        """One 3 x 3 convolution and the activation; for norms that use running statistics.

        Raises ValueError for other norms, which no convolution can hold.
        """
        weight, bias = _folded(self.wide)
        narrow, shift = _folded(self.narrow)
        convolution = nn.Conv2d(weight.shape[1], len(weight), 3, padding=1, device=weight.device, dtype=weight.dtype)
        convolution.weight.copy_(weight + F.pad(narrow, (1, 1, 1, 1)))
        convolution.bias.copy_(bias + shift)  # pyright: ignore[reportOptionalMemberAccess]
        return nn.Sequential(convolution, self.activation)


class CSPRepBlock(nn.Module):
    """Two 1 x 1 convolutions; ``depth`` :class:`RepVGGBlock` follow one of them, then both are added.

    Inside there are ``expansion`` times ``out_channels`` channels, rounded down; another number than these is projected
    back. Maps (B, in_channels, H, W) to (B, out_channels, H, W). Source: Zhao et al. 2024, "RT-DETR", figure 4 and its
    release.

    >>> CSPRepBlock(16, 8, expansion=0.5)(torch.zeros(1, 16, 4, 6)).shape
    torch.Size([1, 8, 4, 6])
    """

    @door
    def __init__(
        self,
        in_channels: Count,
        out_channels: Count,
        *,
        depth: Count = 3,
        expansion: Positive = 1.0,
        norm: Norm = nn.BatchNorm2d,
        activation: Activation = nn.SiLU,
    ) -> None:
        super().__init__()
        width = int(out_channels * expansion)
        self.deep, self.short = (
            ConvNormActivation(in_channels, width, kernel_size=1, norm=norm, activation=activation) for _ in range(2)
        )
        self.blocks = nn.Sequential(
            *(RepVGGBlock(width, width, norm=norm, activation=activation) for _ in range(depth))
        )
        self.output: nn.Module = nn.Identity()
        if width != out_channels:
            self.output = ConvNormActivation(width, out_channels, kernel_size=1, norm=norm, activation=activation)

    @door
    def forward(self, features: Float[Tensor, "B D H W"]) -> Float[Tensor, "B _ H W"]:
        """The sum of both ways."""
        return self.output(self.blocks(self.deep(features)) + self.short(features))


class ELANBlock(nn.Module):
    """A 1 x 1 convolution; half of it goes through two :class:`CSPRepBlock`; all that came out is joined at the end.

    Each of the two, ``depth`` blocks deep and ``width`` channels wide, is followed by a 3 x 3 convolution. Both halves
    and both results are projected to ``out_channels``. Maps (B, in_channels, H, W) to (B, out_channels, H, W). Sources:
    Peng et al. 2024, "D-FINE", section 4.3 and its release; Wang et al. 2024, "YOLOv9", GELAN.
    Raises ValueError for an odd number of channels.

    >>> ELANBlock(16, 8, width=4, depth=1)(torch.zeros(1, 16, 4, 6)).shape
    torch.Size([1, 8, 4, 6])
    """

    @door
    def __init__(
        self,
        in_channels: Count,
        out_channels: Count,
        *,
        width: Count,
        depth: Count = 3,
        norm: Norm = nn.BatchNorm2d,
        activation: Activation = nn.SiLU,
    ) -> None:
        super().__init__()
        if in_channels % 2:
            raise ValueError(f"ELANBlock: in_channels={in_channels} must be even: half of them go another way")

        def convolved(before: int, after: int, kernel_size: int) -> ConvNormActivation:
            return ConvNormActivation(before, after, kernel_size=kernel_size, norm=norm, activation=activation)

        def blocks(before: int) -> nn.Sequential:
            deep = CSPRepBlock(before, width, depth=depth, norm=norm, activation=activation)
            return nn.Sequential(deep, convolved(width, width, 3))

        self.input = convolved(in_channels, in_channels, 1)
        self.first, self.second = blocks(in_channels // 2), blocks(width)
        self.output = convolved(in_channels + 2 * width, out_channels, 1)

    @door
    def forward(self, features: Float[Tensor, "B D H W"]) -> Float[Tensor, "B _ H W"]:
        """What the last convolution makes of all that was computed."""
        computed = list(self.input(features).chunk(2, 1))
        for blocks in (self.first, self.second):
            computed.append(blocks(computed[-1]))
        return self.output(torch.cat(computed, 1))


@door
def separable_downsampling(channels: Count, *, norm: Norm = nn.BatchNorm2d) -> nn.Sequential:
    """A 1 x 1 convolution, then a depthwise 3 x 3 one of stride 2, each with a norm and without activation.

    Source: Wang et al. 2024, "YOLOv10", section 3.2 ("spatial-channel decoupled downsampling").

    >>> separable_downsampling(8)(torch.zeros(1, 8, 5, 6)).shape
    torch.Size([1, 8, 3, 3])
    """
    depthwise = nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels, bias=False)
    pointwise = ConvNormActivation(channels, channels, kernel_size=1, norm=norm, activation=None)
    return nn.Sequential(pointwise, nn.Sequential(depthwise, norm(channels)))


def _folded(block: ConvNormActivation) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with its norm."""
    convolution, norm = cast(Any, block[0]), cast(Any, block[1])
    if not _has_statistics(norm):
        raise ValueError(f"RepVGGBlock: no convolution can hold {norm}; allowed are batch norms with statistics")
    values = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    weight, bias = fuse_conv_bn_weights(convolution.weight, convolution.bias, *values)
    return weight, bias


def _has_statistics(norm: nn.Module) -> bool:
    return isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None
