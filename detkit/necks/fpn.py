"""The feature pyramid network: strong features at every scale, and coarser levels on top."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from detkit._door import door
from detkit._ranges import Count, Whole
from detkit.layers import ConvNormActivation, check_levels, init_convolutions
from detkit.layers.recomputation import in_pieces
from detkit.necks.base import Neck


class FPN(Neck):
    """Lateral 1 x 1 convolutions, added from the coarsest level down, each smoothed by a 3 x 3 convolution.

    ``features[l]`` (B, in_channels[l], H_l, W_l) become (B, channels, H_l, W_l); the coarser map is resized to the
    finer one by nearest neighbor, so that odd sizes fit. ``extra`` coarser levels follow, each half the size of the one
    before (rounded up), computed as ``extra_from`` says: "pool" subsamples the last output (Faster R-CNN); "input"
    convolves the last input and "output" the last output with stride 2, with a ReLU before each further one
    (RetinaNet).
    Sources: arXiv 1612.03144, section 3; arXiv 1708.02002, section 4. Without ``norm`` it is torchvision's.
    Raises ValueError for in_channels and in_strides of different lengths, or another ``extra_from``.

    >>> import torch
    >>> neck = FPN([8, 16, 32], [8, 16, 32], channels=4, extra=2, extra_from="input")
    >>> neck.out_channels, neck.strides
    ((4, 4, 4, 4, 4), (8, 16, 32, 64, 128))
    >>> features = [torch.zeros(1, 8, 15, 8), torch.zeros(1, 16, 8, 4), torch.zeros(1, 32, 4, 2)]
    >>> [tuple(level.shape[2:]) for level in neck(features)]
    [(15, 8), (8, 4), (4, 2), (2, 1), (1, 1)]
    """

    @door
    def __init__(
        self,
        in_channels: Sequence[Count],
        in_strides: Sequence[Count],
        *,
        channels: Count = 256,
        extra: Whole = 0,
        extra_from: Literal["pool", "input", "output"] = "pool",
        norm: Callable[[int], nn.Module] | None = None,
    ) -> None:
        check_levels(in_channels, in_strides, function="FPN")
        if extra_from not in ("pool", "input", "output"):
            raise ValueError(f"FPN: extra_from={extra_from!r} must be 'pool', 'input' or 'output'")
        strides = [*in_strides, *(in_strides[-1] * 2 ** (i + 1) for i in range(extra))]
        super().__init__(in_channels, out_channels=[channels] * len(strides), strides=strides)
        self.extra_from = extra_from
        self.extra_levels = extra
        self.normed = norm is not None
        block = partial(ConvNormActivation, norm=norm, activation=None)
        self.laterals = nn.ModuleList(block(width, channels, kernel_size=1) for width in in_channels)
        self.outputs = nn.ModuleList(block(channels, channels) for _ in in_channels)
        sources = [in_channels[-1] if extra_from == "input" else channels] + [channels] * extra
        convolutions = [nn.Conv2d(width, channels, 3, stride=2, padding=1) for width in sources[:extra]]
        self.extra = nn.ModuleList([] if extra_from == "pool" else convolutions)
        init_convolutions(self, partial(nn.init.kaiming_uniform_, a=1))

    @door
    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """The pyramid, finest first, with the extra levels at its end."""
        self.check_features(features)
        merged = [self.laterals[-1](features[-1])]
        for i in range(len(features) - 2, 0, -1):
            merged.insert(0, self._merged(i, features[i], merged[0]))
        pyramid = [output(level) for output, level in zip(self.outputs[-len(merged) :], merged, strict=True)]
        if len(features) > 1:
            pyramid.insert(0, self._finest(features[0], merged[0]))
        return pyramid + self._coarser(features[-1], pyramid[-1])

    def _merged(self, level: int, feature: Tensor, coarser: Tensor) -> Tensor:
        lateral = self.laterals[level](feature)
        return lateral + F.interpolate(coarser, size=lateral.shape[-2:], mode="nearest")

    def _finest(self, feature: Tensor, coarser: Tensor) -> Tensor:
        """The finest output, three quarters of all cells; what is merged into it a 1 x 1 layer gives again at once.

        On a CPU image after image, as the gradients of this layer are the peak of memory.
        """

        def finest(feature: Tensor, coarser: Tensor) -> Tensor:
            return self.outputs[0](self._merged(0, feature, coarser))

        if self.normed:  # by statistics of all images
            return finest(feature, coarser)
        return in_pieces(finest, 1, feature, coarser, parts=(self.laterals[0], self.outputs[0]))

    def _coarser(self, feature: Tensor, output: Tensor) -> list[Tensor]:
        levels = [feature if self.extra_from == "input" else output]
        if self.extra_from == "pool":
            for _ in range(self.extra_levels):
                levels.append(F.max_pool2d(levels[-1], kernel_size=1, stride=2))
        for i, convolution in enumerate(self.extra):
            levels.append(convolution(F.relu(levels[-1]) if i else levels[-1]))
        return levels[1:]
