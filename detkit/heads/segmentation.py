"""The head that classifies every pixel: the decoder of an encoder-decoder."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

from detkit._door import door
from detkit._ranges import Count
from detkit.layers import ConvNormActivation, check_features, init_convolutions


class SegmentationHead(nn.Module):
    """Decodes feature maps, from the coarsest up to the finest, into class logits of that resolution.

    At each level the map so far is enlarged to that level's size (nearest neighbor) and goes through a residual block
    to ``channels`` of it (default: the encoder's). With ``skips`` the encoder's map of the level is put beside it first
    (Ronneberger et al. 2015, U-Net); without, nothing but the coarsest map tells of the image (Badrinarayanan et al.
    2017, SegNet; without its pooling indices). A 1 x 1 convolution makes the logits. ``norm`` is called with the number
    of channels. He initialization. Raises ValueError for ``channels`` of another number of levels.

    >>> head = SegmentationHead([8, 16, 32], 2)
    >>> maps = [torch.zeros(1, 8, 17, 9), torch.zeros(1, 16, 9, 5), torch.zeros(1, 32, 5, 3)]
    >>> head(maps).shape
    torch.Size([1, 2, 17, 9])
    """

    @door
    def __init__(
        self,
        in_channels: Sequence[Count],
        num_classes: Count,
        *,
        channels: Sequence[Count] | None = None,
        skips: bool = True,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.in_channels, self.skips, self.num_classes = tuple(in_channels), skips, num_classes
        widths = tuple(in_channels[:-1] if channels is None else channels)
        if not self.in_channels or len(widths) != len(self.in_channels) - 1:
            raise ValueError(
                f"SegmentationHead: in_channels={self.in_channels} and channels={widths}; allowed is one of channels "
                "for each level but the coarsest"
            )
        inputs = [*widths[1:], self.in_channels[-1]]
        self.blocks = nn.ModuleList(
            _block(before + skips * own, width, norm)
            for before, own, width in zip(inputs, self.in_channels, widths, strict=False)
        )
        self.logits = nn.Conv2d((*widths, *self.in_channels)[0], num_classes, 1)
        init_convolutions(self, nn.init.kaiming_normal_)

    @door
    def forward(self, features: Sequence[Float[Tensor, "B _ _ _"]]) -> Float[Tensor, "B C _ _"]:
        """Logits (B, C, H_0, W_0) from ``features[l]`` (B, in_channels[l], H_l, W_l), finest first."""
        check_features(features, self.in_channels, function="SegmentationHead")
        decoded = features[-1]
        for level in range(len(self.blocks) - 1, -1, -1):
            decoded = F.interpolate(decoded, size=features[level].shape[-2:], mode="nearest")
            if self.skips:
                decoded = torch.cat((decoded, features[level]), dim=1)
            decoded = self.blocks[level](decoded)
        return self.logits(decoded)


def _block(before: int, after: int, norm: Callable[[int], nn.Module]) -> BasicBlock:
    shortcut = ConvNormActivation(before, after, kernel_size=1, norm=norm, activation=None)
    return BasicBlock(before, after, downsample=shortcut, norm_layer=norm)
