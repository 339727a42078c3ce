"""Heads that predict a few numbers for every default box, with separate filters at every level."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detkit._door import door
from detkit._ranges import Count, Finite, Positive


@door
def prediction_conv(
    in_channels: Count, out_channels: Count, *, std: Positive | None = None, bias: Finite = 0.0
) -> nn.Conv2d:
    """The last convolution of a head: 3 x 3, weights Xavier or normal with ``std``, constant ``bias``.

    >>> prediction_conv(8, 4, bias=-4.6).bias[0].item()
    -4.599...
    """
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
    with torch.no_grad():
        nn.init.xavier_uniform_(conv.weight) if std is None else nn.init.normal_(conv.weight, std=std)
        nn.init.constant_(conv.get_parameter("bias"), bias)
    return conv


class MultiBoxHead(nn.Module):
    """SSD's predictor: one convolution per feature level, ``outputs`` numbers per default box.

    ``in_channels`` and ``per_cell`` are the channels and the boxes per cell of every level, finest first. With
    ``outputs = num_classes + 1`` it is the class head of a softmax detector (background last), with 4 the box head.
    ``convolution``, called with the numbers of channels before and behind it, makes that of a level: by default 3 x 3;
    ``partial(SeparableConv, linear=True)`` makes SSDlite's. Source: Liu et al. 2016, section 2.1.

    >>> head = MultiBoxHead((8, 16), (4, 6), outputs=4)
    >>> head([torch.zeros(2, 8, 5, 5), torch.zeros(2, 16, 3, 3)]).shape
    torch.Size([2, 154, 4])
    """

    @door
    def __init__(
        self,
        in_channels: Sequence[Count],
        per_cell: Sequence[Count],
        *,
        outputs: Count,
        convolution: Callable[[int, int], nn.Module] = prediction_conv,
    ) -> None:
        super().__init__()
        if len(in_channels) != len(per_cell):
            raise ValueError(f"MultiBoxHead: {len(in_channels)} in_channels for {len(per_cell)} per_cell levels")
        self.in_channels, self.outputs = tuple(in_channels), outputs
        self.levels = nn.ModuleList(
            convolution(channels, boxes * outputs) for channels, boxes in zip(in_channels, per_cell, strict=True)
        )

    @door
    def forward(self, features: Sequence[Float[Tensor, "B _ _ _"]]) -> Float[Tensor, "B N outputs"]:
        """Predictions of all levels, in the order of the default boxes: level, row, column, box.

        Raises ValueError for another number of levels, or of channels of one, than the head was built for.
        """
        check_neck(features, self.in_channels, function="MultiBoxHead")
        return flatten_levels([level(rows) for level, rows in zip(self.levels, features, strict=True)], self.outputs)


def check_neck(
    features: Sequence[Float[Tensor, "B _ _ _"]], in_channels: int | Sequence[int], *, function: str
) -> None:
    """Raise ValueError for another number of levels, or of channels of one, than a head was built for.

    ``in_channels`` is one number where all levels, as many as come, share the head.

    >>> check_neck([torch.zeros(1, 8, 4, 4)], (8, 8), function="GridHead")
    Traceback (most recent call last):
    ValueError: GridHead: got 1 feature levels, was built for 2
    """
    expected = [in_channels] * len(features) if isinstance(in_channels, int) else in_channels
    if len(features) != len(expected):
        raise ValueError(f"{function}: got {len(features)} feature levels, was built for {len(expected)}")
    for level, (rows, channels) in enumerate(zip(features, expected, strict=True)):
        if rows.shape[1] != channels:
            raise ValueError(
                f"{function}: features[{level}] has {rows.shape[1]} channels, was built for {channels}; put the neck "
                "with these out_channels before it, or build it with in_channels of the features"
            )


@door
def flatten_levels(maps: Sequence[Float[Tensor, "B _ _ _"]], outputs: int) -> Float[Tensor, "B N outputs"]:
    """Maps (B, A * outputs, H, W) of all levels as one tensor (B, N, outputs), in the order of the anchors.

    Channel a * outputs + q of a cell holds output q of its anchor a. Raises ValueError for channels that are no
    multiple of ``outputs``.

    >>> flatten_levels([torch.zeros(2, 6, 3, 3), torch.zeros(2, 6, 1, 1)], outputs=2).shape
    torch.Size([2, 30, 2])
    """
    for i, level in enumerate(maps):
        if level.shape[1] % outputs:
            raise ValueError(
                f"flatten_levels: maps[{i}] has {level.shape[1]} channels; allowed is a multiple of outputs={outputs}"
            )
    rows = [level.unflatten(1, (-1, outputs)).permute(0, 3, 4, 1, 2).flatten(1, 3) for level in maps]
    return torch.cat(rows, dim=1)
