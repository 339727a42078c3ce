"""The interface of every backbone: images in, feature maps of known channels and strides out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from detkit._door import door
from detkit._ranges import Count
from detkit.layers import check_levels
from detkit.layers.recomputation import recomputed


class Backbone(nn.Module, ABC):
    """Turns images into feature maps, finest first.

    ``out_channels[l]`` and ``strides[l]`` describe level l: its channels, and the distance in image pixels between
    neighboring cells. They are known before the first forward pass, so that necks, heads and anchors can be built from
    them. A backbone that calls its parts by :meth:`run` saves memory with :func:`~detkit.backbones.recompute_backbone`.

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

    recomputes = False

    @door
    def __init__(self, *, out_channels: Sequence[Count], strides: Sequence[Count]) -> None:
        super().__init__()
        self.out_channels, self.strides = check_levels(out_channels, strides, function=type(self).__name__)

    @door
    @abstractmethod
    def forward(self, images: Float[Tensor, "B D H W"]) -> list[Tensor]:
        """Level l has shape (B, out_channels[l], ~H / strides[l], ~W / strides[l]); ``images`` are (B, 3, H, W)."""

    def run(self, part: Callable[[Tensor], Any], features: Tensor) -> Any:
        """``part(features)``; where the backbone ``recomputes``, what happens inside is not kept for the backward pass.

        >>> import torch
        >>> from detkit.backbones import SmallBackbone
        >>> SmallBackbone((4,)).run(nn.ReLU(), torch.tensor([-1.0, 1.0]))
        tensor([0., 1.])
        """
        return recomputed(part, features, parts=self.modules()) if self.recomputes else part(features)

    def steps(self) -> list[list[nn.Module]]:
        """The backbone in steps, for what is done to each level before the next: the modules of step l map level l - 1,
        the first the images, to level l.

        Raises ValueError for a backbone that does not come apart so.

        >>> from detkit.backbones import SmallBackbone
        >>> [len(modules) for modules in SmallBackbone((8, 16, 32), levels=(0, 2)).steps()]
        [2, 2]
        """
        raise ValueError(
            f"{type(self).__name__}: its levels cannot be computed one from the other; allowed are SequentialBackbone, "
            "SmallBackbone, ResNetBackbone, and backbones that define steps()"
        )

    @door
    def check_images(self, images: Tensor) -> None:
        """Raise ValueError unless ``images`` are floating point of shape (B, 3, H, W)."""
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(
                f"{type(self).__name__}: images have shape {tuple(images.shape)} and dtype {images.dtype}; "
                "allowed is floating point of shape (B, 3, H, W)"
            )
