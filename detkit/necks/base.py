"""The interface of every neck: feature maps in, feature maps of known channels and strides out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from detkit._door import door
from detkit._ranges import Count
from detkit.layers import check_features, check_levels


class Neck(nn.Module, ABC):
    """Turns feature maps into feature maps, finest first; with a backbone it makes ``nn.Sequential(backbone, neck)``.

    Built from the channels and strides of its input, it declares those of its output as a backbone does:
    ``out_channels`` and ``strides``. Raises ValueError if these do not describe the same levels, finest first.

    >>> import torch
    >>> class Coarsest(Neck):
    ...     def __init__(self, in_channels, in_strides):
    ...         super().__init__(in_channels, out_channels=in_channels[-1:], strides=in_strides[-1:])
    ...     def forward(self, features):
    ...         self.check_features(features)
    ...         return [features[-1]]
    >>> Coarsest([8, 16], [4, 8]).strides
    (8,)
    """

    @door
    def __init__(
        self, in_channels: Sequence[Count], *, out_channels: Sequence[Count], strides: Sequence[Count]
    ) -> None:
        super().__init__()
        self.in_channels = tuple(in_channels)
        self.out_channels, self.strides = check_levels(out_channels, strides, function=type(self).__name__)

    @door
    @abstractmethod
    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """``features[l]`` (B, in_channels[l], H_l, W_l), finest first, to maps (B, out_channels[l], ...)."""

    @door
    def check_features(self, features: Sequence[Tensor]) -> None:
        """Raise ValueError unless ``features`` are one (B, in_channels[l], H_l, W_l) for each input level."""
        check_features(features, self.in_channels, function=type(self).__name__)
