"""YOLO v2's passthrough layer: pixels of a finer map as channels of a coarser one, in Darknet's order."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from detkit._door import door
from detkit._ranges import Count


class Passthrough(nn.Module):
    """Maps (B, D, H, W) to (B, stride² D, H / stride, W / stride) without losing a number, as Darknet's ``[reorg]``.

    It reads its input as if it had D / stride² channels, stride times as high and wide; of these, the pixels at
    each place of a stride x stride cell make a group of channels; and the result is read with stride² D channels. So
    the order is neither that of ``nn.PixelUnshuffle`` nor a stack of shifted maps: weights trained in Darknet need it.
    Raises ValueError where the height or the width is no multiple of ``stride``, or D of its square.
    Source: Redmon and Farhadi 2017, section 2 ("Fine-Grained Features"), and the authors' released code.

    >>> import torch
    >>> pixels = torch.arange(16.0).reshape(1, 4, 2, 2)  # read as one channel of 4 x 4
    >>> Passthrough()(pixels)[0, :4, 0, 0]
    tensor([ 0.,  2.,  8., 10.])
    """

    @door
    def __init__(self, stride: Count = 2) -> None:
        super().__init__()
        self.stride = stride

    @door
    def forward(self, features: Float[Tensor, "B D H W"]) -> Float[Tensor, "B _ _ _"]:
        """The same numbers on a coarser grid."""
        stride = self.stride
        _, channels, height, width = features.shape
        self._check(channels, height, width)
        large = features.reshape(-1, channels // stride**2, height, stride, width, stride)
        groups = large.permute(0, 3, 5, 1, 2, 4)  # row in the cell, column in the cell, channel, height, width
        return groups.reshape(-1, channels * stride**2, height // stride, width // stride)

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"stride={self.stride}"

    def _check(self, channels: int, height: Any, width: Any) -> None:
        if channels % self.stride**2 or height % self.stride or width % self.stride:
            raise ValueError(
                f"Passthrough: features of {channels} channels, {height} high and {width} wide; allowed are multiples "
                f"of {self.stride**2}, {self.stride} and {self.stride}"
            )
