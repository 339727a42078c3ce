"""Locations of keypoints in plain operators: the enlarged heatmaps in strips, a step of a loop each."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop_op

from detkit.detectors.keypoint import LONGEST

_STRIP = 64  # cells of a row that a step looks at
_NONE = torch.finfo(torch.float32).min  # some runtimes take the largest of -inf for this
_CUBIC = -0.75  # the slope of PyTorch's bicubic interpolation


def plain_decode_heatmaps(
    logits: Float[Tensor, "M P S S"], boxes: Float[Tensor, "M 4"], valid: Bool[Tensor, " M"], *, loops: bool = True
) -> tuple[Float[Tensor, "M P 3"], Float[Tensor, "M P"]]:
    """What the operator behind :func:`~detkit.detectors.decode_heatmaps` finds, up to the order of sums.

    Raises ValueError for ``loops=False``: the number of strips depends on the boxes.

    >>> heatmaps = torch.zeros(1, 1, 4, 4)
    >>> heatmaps[0, 0, 1, 2] = 5.0
    >>> plain_decode_heatmaps(heatmaps, torch.tensor([[10.0, 10, 14, 18]]), torch.tensor([True]))
    (tensor([[[12.5000, 12.5000,  1.0000]]]), tensor([[4.3945]]))
    """
    if not loops:
        raise ValueError(
            "plain: detkit.decode_heatmaps looks at as many cells as a box has pixels, and loops=False; allowed is "
            "loops=True, or a detector without KeypointStage"
        )
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    usable = (valid & torch.isfinite(boxes).all(1) & torch.isfinite(sides).all(1))[:, None]
    sides = torch.where(usable, sides, 1)
    cells = sides.ceil().clamp(max=LONGEST)
    best = torch.full_like(logits[:, :, 0, 0], _NONE)
    start = logits.new_zeros(())
    carried: Any = (start, start.clone(), best, best * 0, best * 0, logits.contiguous(), cells)
    _, _, scores, columns, rows, *_ = while_loop_op(_unfinished, _step, carried, ())
    places = (torch.stack((columns, rows), 2) + 0.5) * (sides / cells)[:, None] + boxes[:, None, :2]
    points = torch.cat((places, torch.ones_like(places[..., :1])), 2)
    return torch.where(usable[..., None], points, 0), torch.where(usable, scores, 0)


def _unfinished(row: Tensor, column: Tensor, best: Tensor, *rest: Tensor) -> Bool[Tensor, ""]:
    return row < rest[-1][:, 1].amax(0)


def _step(
    row: Tensor, column: Tensor, best: Tensor, columns: Tensor, rows: Tensor, logits: Tensor, cells: Tensor
) -> tuple[Tensor, ...]:
    """A strip of all heatmaps, in row order; a later cell counts only if it is larger."""
    wide, high = cells.split(1, dim=1)
    x = column + torch.arange(_STRIP, device=logits.device).to(logits)
    across = _weights(x[None], wide, logits.shape[3])
    down = _weights(row[None, None], high, logits.shape[2])
    values = (down[:, None] @ logits @ across[:, None].transpose(2, 3))[:, :, 0]
    values = torch.where(((x < wide) & (row < high))[:, None], values, _NONE)
    top = values.amax(2)
    first = torch.where(values == top[..., None], x, LONGEST).amin(2)
    better = top > best
    after = column + _STRIP
    wrapped = after >= cells[:, 0].amax(0)
    return (
        torch.where(wrapped, row + 1, row),
        torch.where(wrapped, 0, after),
        torch.where(better, top, best),
        torch.where(better, first, columns),
        torch.where(better, row, rows),
        logits.clone(),
        cells.clone(),
    )


def _weights(places: Float[Tensor, "_ N"], length: Float[Tensor, "M 1"], size: int) -> Float[Tensor, "M N S"]:
    """What each of ``size`` cells gives to these cells of a side enlarged to ``length``."""
    source = (places + 0.5) * (size / length) - 0.5
    low = source.floor()
    cells = torch.arange(size, device=places.device).to(places)
    total = torch.zeros_like(source)[..., None] * cells
    for tap in (-1, 0, 1, 2):
        away = (source - low - tap).abs()
        if tap in (0, 1):
            weight = ((_CUBIC + 2) * away - (_CUBIC + 3)) * away * away + 1
        else:
            weight = _CUBIC * (((away - 5) * away + 8) * away - 4)
        total = total + torch.where((low + tap).clamp(0, size - 1)[..., None] == cells, weight[..., None], 0)
    return total
