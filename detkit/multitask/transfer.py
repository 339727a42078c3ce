"""Sequential transfer: frozen encoders of other tasks, whose features are fused into those of the one that learns."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detkit._door import door
from detkit._ranges import Whole
from detkit.layers import ConvNormActivation
from detkit.multitask.cross_stitch import CrossStitch
from detkit.multitask.trunks import named_modules, shape_of


class TransferTrunk(nn.Module):
    """A backbone that learns, and frozen ones of other tasks that help it; their coarsest maps are fused into its.

    ``auxiliaries`` were trained before, each with its task. Here they get no gradient and stay in evaluation mode, so
    that batch norms keep their statistics, too. Their last maps and the backbone's, K streams of one shape, go through
    ``depth`` layers of a 3 x 3 convolution for each stream and a :class:`CrossStitch` between all; a 1 x 1 convolution
    of what comes out, side by side, is the last map of the branch ``branch``. Its finer maps are the backbone's own.
    The frozen maps are returned, too, under the auxiliaries' names: the stages that were trained with them still read
    them. ``out_channels`` and ``strides`` are the backbone's. Parameters of the auxiliaries stop requiring gradients.
    Raises ValueError for no auxiliary, one of the branch's name, one that shares parameters with the backbone, and last
    maps of different channels or strides.

    Source: "Multitask Learning in Image Recognition, Segmentation, and Classification", section 2, "OEQ". It says of
    the fusion that the first layers of the decoder are expanded, that cross-stitches are used, and that one map comes
    out: the rest is our choice.

    >>> from detkit.backbones import SmallBackbone
    >>> trunk = TransferTrunk(SmallBackbone((8, 16)), {"boxes": SmallBackbone((8, 16))}, branch="masks")
    >>> {name: [tuple(level.shape) for level in maps] for name, maps in trunk(torch.zeros(2, 3, 32, 32)).items()}
    {'masks': [(2, 8, 8, 8), (2, 16, 4, 4)], 'boxes': [(2, 8, 8, 8), (2, 16, 4, 4)]}
    """

    @door
    def __init__(
        self, backbone: nn.Module, auxiliaries: Mapping[str, nn.Module], *, branch: str, depth: Whole = 1
    ) -> None:
        super().__init__()
        self.out_channels, self.strides = shape_of(backbone, "TransferTrunk")
        others = {name: shape_of(part, "TransferTrunk") for name, part in auxiliaries.items()}
        last = self.out_channels[-1], self.strides[-1]
        if not others or branch in others or any((out[-1], strides[-1]) != last for out, strides in others.values()):
            raise ValueError(
                f"TransferTrunk: branch={branch!r} and auxiliaries with out_channels and strides {others}; allowed is "
                f"at least one, of another name, whose last map has {last[0]} channels and stride {last[1]}"
            )
        self.backbone, self.branch = backbone, branch
        frozen = named_modules(auxiliaries, "TransferTrunk")
        if set(backbone.parameters()) & set(frozen.parameters()):
            raise ValueError("TransferTrunk: an auxiliary shares parameters with the backbone; allowed is a copy of it")
        self.auxiliaries = frozen.requires_grad_(False).eval()
        streams, width = len(others) + 1, last[0]
        self.layers = nn.ModuleList(
            nn.ModuleList(ConvNormActivation(width, width) for _ in range(streams)) for _ in range(depth)
        )
        self.stitches = nn.ModuleList(CrossStitch(streams, width) for _ in range(depth))
        self.fuse = ConvNormActivation(streams * width, width, kernel_size=1)

    def train(self, mode: bool = True) -> "TransferTrunk":
        """As of any module, but the auxiliaries stay in evaluation mode."""
        super().train(mode)
        self.auxiliaries.eval()
        return self

    @door
    def forward(self, images: Float[Tensor, "B D H W"]) -> dict[str, list[Tensor]]:
        """The feature maps of each branch, finest first: the fused one's, then the auxiliaries'."""
        own = list(self.backbone(images))
        with torch.no_grad():
            others = {name: list(auxiliary(images)) for name, auxiliary in self.auxiliaries.items()}
        maps = [own[-1], *(levels[-1] for levels in others.values())]
        for layers, stitch in zip(self.layers, self.stitches, strict=True):
            maps = stitch([layer(one) for layer, one in zip(layers, maps, strict=True)])  # pyright: ignore
        return {self.branch: [*own[:-1], self.fuse(torch.cat(maps, dim=1))], **others}
