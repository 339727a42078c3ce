"""The interface of every backbone: images in, feature maps of known channels and strides out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from detkit._door import door
from detkit._ranges import Count
from detkit.layers import check_levels


class Backbone(nn.Module, ABC):
    """Turns images into feature maps, finest first.

    ``out_channels[l]`` and ``strides[l]`` describe level l: its channels, and the distance in image pixels between
    neighboring cells. They are known before the first forward pass, so that necks, heads and anchors can be built from
    them.

    Raises ValueError if they do not describe the same levels, finest first.

    >>> import torch
    >>> class Patches(Backbone):
    ...     def __init__(self):
    ...         super().__init__(out_channels=[8], strides=[4])
    ...         self.patch = nn.Conv2d(3, 8, 4, stride=4)
    ...     def forward(self, images):
    ...         self.check_images(images)
    ...         return [self.patch(images)]
    >>> Patches()(torch.zeros(1, 3, 16, 8))[0].shape
    torch.Size([1, 8, 4, 2])
    """

    @door
    def __init__(self, *, out_channels: Sequence[Count], strides: Sequence[Count]) -> None:
        super().__init__()
        self.out_channels, self.strides = check_levels(out_channels, strides, function=type(self).__name__)

    @door
    @abstractmethod
    def forward(self, images: Float[Tensor, "B D H W"]) -> list[Tensor]:
        """Level l has shape (B, out_channels[l], ~H / strides[l], ~W / strides[l]); ``images`` are (B, 3, H, W)."""

    @door
    def check_images(self, images: Tensor) -> None:
        """Raise ValueError unless ``images`` are floating point of shape (B, 3, H, W)."""
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(
                f"{type(self).__name__}: images have shape {tuple(images.shape)} and dtype {images.dtype}; "
                "allowed is floating point of shape (B, 3, H, W)"
            )
