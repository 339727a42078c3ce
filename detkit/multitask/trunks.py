"""Trunks of several branches: one backbone for each, stitched together, or one for all."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from detkit._door import door
from detkit._ranges import Count, Finite
from detkit.multitask.cross_stitch import CrossStitch


@runtime_checkable
class Encoder(Protocol):
    """A backbone that runs step by step: detkit's Sequential, Small and ResNet backbones, or one of your own.

    >>> from detkit.backbones import SmallBackbone
    >>> isinstance(SmallBackbone((8,)), Encoder)
    True
    """

    out_channels: tuple[int, ...]
    strides: tuple[int, ...]

    def steps(self) -> list[list[nn.Module]]:
        """The modules of each step: those of the first map images to level 0, those of step l level l - 1 to l."""
        ...


class SharedTrunk(nn.Module):
    """Hard parameter sharing: one backbone, whose feature maps are those of every branch.

    ``branches`` are the names under which stages read them. ``out_channels`` and ``strides`` are the backbone's.
    Raises ValueError for no names, or one that occurs twice. Source: Caruana 1997, section 2.

    >>> import torch
    >>> from detkit.backbones import SmallBackbone
    >>> features = SharedTrunk(SmallBackbone((8, 16)), ["boxes", "masks"])(torch.zeros(1, 3, 32, 32))
    >>> features["boxes"][1] is features["masks"][1]
    True
    """

    @door
    def __init__(self, backbone: nn.Module, branches: Sequence[str]) -> None:
        super().__init__()
        if not branches or len(set(branches)) < len(branches):
            raise ValueError(f"SharedTrunk: branches={branches!r}; allowed are distinct names, at least one")
        self.backbone, self.branches = backbone, tuple(branches)
        self.out_channels, self.strides = shape_of(backbone, "SharedTrunk")

    @door
    def forward(self, images: Float[Tensor, "B D H W"]) -> dict[str, list[Tensor]]:
        """The feature maps of each branch, finest first."""
        features = self.backbone(images)
        return {name: list(features) for name in self.branches}


class StitchedTrunk(nn.Module):
    """Soft parameter sharing: a backbone for each branch, and a cross-stitch between all of them after every level.

    ``backbones`` have the same ``out_channels`` and ``strides`` and come apart in steps. ``stitches[l]`` takes the maps
    of level l, in the order of the backbones, and returns what goes on to level l + 1 and to the stages; None leaves a
    level alone. Where stitches are identities the branches are what the backbones are by themselves, bit for bit.
    Raises ValueError for backbones that differ, do not come apart or are one only, and stitches of another number.
    Source: Misra et al. 2016, section 4.1.

    >>> import torch
    >>> from detkit.backbones import SmallBackbone
    >>> trunk = StitchedTrunk({name: SmallBackbone((8, 16)) for name in ("boxes", "masks")}, cross_stitches(2, (8, 16)))
    >>> {name: [tuple(level.shape) for level in maps] for name, maps in trunk(torch.zeros(1, 3, 32, 32)).items()}
    {'boxes': [(1, 8, 8, 8), (1, 16, 4, 4)], 'masks': [(1, 8, 8, 8), (1, 16, 4, 4)]}
    """

    @door
    def __init__(self, backbones: Mapping[str, nn.Module], stitches: Sequence[nn.Module | None]) -> None:
        super().__init__()
        shapes = {name: shape_of(backbone, "StitchedTrunk") for name, backbone in backbones.items()}
        if len(shapes) < 2 or len(set(shapes.values())) > 1:
            raise ValueError(
                f"StitchedTrunk: backbones have out_channels and strides {shapes}; allowed are at least two backbones, "
                "all with the same"
            )
        self.out_channels, self.strides = next(iter(shapes.values()))
        if len(stitches) != len(self.strides):
            raise ValueError(
                f"StitchedTrunk: {len(stitches)} stitches; allowed is one, or None, for each level of "
                f"{self.out_channels}"
            )
        self.backbones = named_modules(backbones, "StitchedTrunk")
        self.stitches = nn.ModuleList(nn.Identity() if stitch is None else stitch for stitch in stitches)
        for name, backbone in backbones.items():
            if not isinstance(backbone, Encoder):
                raise ValueError(f"StitchedTrunk: backbone {name!r} is a {type(backbone).__name__} without steps()")
            backbone.steps()

    @door
    def forward(self, images: Float[Tensor, "B D H W"]) -> dict[str, list[Tensor]]:
        """The stitched feature maps of each branch, finest first."""
        maps = [images] * len(self.backbones)
        levels: list[list[Tensor]] = []
        steps: Any = [backbone.steps() for backbone in self.backbones.values()]  # pyright: ignore[reportCallIssue]
        for stitch, modules in zip(self.stitches, zip(*steps, strict=True), strict=True):
            maps = list(stitch([_run(own, one) for own, one in zip(modules, maps, strict=True)]))
            levels.append(maps)
        return dict(zip(self.backbones, map(list, zip(*levels, strict=True)), strict=True))


@door
def cross_stitches(
    branches: Count, channels: Sequence[Count], *, same: Finite = 0.9, per_channel: bool = True
) -> list[CrossStitch]:
    """A cross-stitch between ``branches`` for each level of ``channels``.

    >>> cross_stitches(3, (8, 16))[1]
    CrossStitch(branches=3, channels=16, per_channel=True)
    """
    return [CrossStitch(branches, width, same=same, per_channel=per_channel) for width in channels]


def shape_of(backbone: nn.Module, function: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A backbone's out_channels and strides; raises ValueError, with ``function``, for what has none.

    >>> from detkit.backbones import SmallBackbone
    >>> shape_of(SmallBackbone((8,)), "f")
    ((8,), (4,))
    """
    if not (hasattr(backbone, "out_channels") and hasattr(backbone, "strides")):
        raise ValueError(f"{function}: a {type(backbone).__name__} has no out_channels and strides; give a backbone")
    out_channels, strides = backbone.out_channels, backbone.strides
    return tuple(out_channels), tuple(strides)  # pyright: ignore[reportArgumentType]


def named_modules(modules: Mapping[str, nn.Module], function: str) -> nn.ModuleDict:
    """The modules of branches; raises ValueError, with ``function``, for names that torch gives no module.

    >>> named_modules({"a.b": nn.Identity()}, "f")
    Traceback (most recent call last):
    ValueError: f: branches are called ['a.b']; allowed are names of modules (module name can't contain ".", got: a.b)
    """
    try:
        return nn.ModuleDict(modules)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{function}: branches are called {list(modules)}; allowed are names of modules ({error.args[0]})"
        ) from error


def _run(modules: Sequence[nn.Module], features: Tensor) -> Tensor:
    for module in modules:
        features = module(features)
    return features
