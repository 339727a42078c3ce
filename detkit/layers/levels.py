"""Checks of a list of feature maps, finest first: the number of levels, their channels and their strides."""

from collections.abc import Sequence

from torch import Tensor

from detkit._door import door


def check_levels(
    channels: Sequence[int], strides: Sequence[int], *, function: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return both as tuples after checking that they describe the same levels, finest first.

    Raises ValueError for no levels, different lengths, a number below 1, or decreasing strides.

    >>> check_levels([256, 512], [8, 16], function="FPN")
    ((256, 512), (8, 16))
    """
    channels, strides = tuple(channels), tuple(strides)
    described = f"{function}: channels {channels} and strides {strides}"
    if not channels or len(channels) != len(strides):
        raise ValueError(f"{described} must have one entry for each level, and at least one level")
    if min(*channels, *strides) < 1:
        raise ValueError(f"{described} must all be at least 1")
    if list(strides) != sorted(strides):
        raise ValueError(f"{described} must be ordered finest level first, so that strides do not shrink")
    return channels, strides


@door
def check_features(features: Sequence[Tensor], channels: Sequence[int], *, function: str) -> None:
    """Raise ValueError unless ``features`` are maps (B, channels[l], H_l, W_l), one for each entry of ``channels``.

    >>> import torch
    >>> check_features([torch.zeros(1, 8, 4, 4)], [8], function="FPN")
    """
    shapes = [tuple(feature.shape) for feature in features]
    if len(shapes) != len(channels) or any(
        len(shape) != 4 or shape[1] != expected for shape, expected in zip(shapes, channels, strict=True)
    ):
        raise ValueError(
            f"{function}: features have shapes {shapes}; allowed is one (B, channels, H, W) for each level, "
            f"with channels {tuple(channels)}"
        )
