"""Pasting the small mask of a detection into the pixels of its image."""

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from detkit._door import door
from detkit._inputs import as_boxes, promote
from detkit._ranges import Fraction, Whole
from detkit._sent import numbers_like

_FARTHEST = 2.0**30  # pixels; farther corners are moved here, where integers still hold


@door
@torch.no_grad()
def paste_masks(
    masks: Shaped[Tensor, "K S S"],
    boxes: Shaped[Tensor, "K 4"],
    size: tuple[Whole, Whole],
    *,
    threshold: Fraction | None = 0.5,
) -> Bool[Tensor, "K H W"] | Float[Tensor, "K H W"]:
    """Pastes every mask into its box, in an image of ``size`` (height, width).

    masks (K, S, S) are probabilities, boxes (K, 4) are in the image's pixels. Each mask is padded with one cell of
    zeros, its box is enlarged to match, with corners truncated to whole pixels, and the mask is resized bilinearly:
    torchvision's rule, after Detectron's. Returns probabilities, or with ``threshold`` True where they reach it.
    Nothing is drawn outside the image or for a box that is inverted or not finite. Memory is that of the result and of
    one box's visible part. Raises ValueError if shapes disagree, and for a size below 0.

    >>> paste_masks(torch.ones(1, 4, 4), torch.tensor([[1.0, 1, 4, 3]]), (5, 6))[0].int()
    tensor([[0, 0, 0, 0, 0, 0],
            [0, 1, 1, 1, 0, 0],
            [0, 1, 1, 1, 0, 0],
            [0, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 0]], dtype=torch.int32)
    """
    if masks.ndim != 3 or boxes.shape != (len(masks), 4) or masks.shape[1] != masks.shape[2]:
        raise ValueError(
            f"paste_masks: masks {tuple(masks.shape)} and boxes {tuple(boxes.shape)}; allowed is (K, S, S) and (K, 4)"
        )
    if masks.shape[1] < 1:
        raise ValueError(f"paste_masks: masks of {masks.shape[1]} cells; allowed is at least 1")
    framed = F.pad(promote(masks), (1, 1, 1, 1))
    dtype = framed.dtype if threshold is None else torch.bool
    canvas = torch.zeros((len(masks), *size), dtype=dtype, device=masks.device)
    corners = _grown(as_boxes(boxes, function="paste_masks"), masks.shape[1]).tolist()  # one wait for a device, not K
    for image, mask, (x1, y1, x2, y2) in zip(canvas, framed, corners, strict=True):
        rows, columns = _visible(y1, y2, size[0]), _visible(x1, x2, size[1])
        if rows and columns:
            drawn = _stretched(mask, rows, columns, y1, y2 - y1 + 1, x1, x2 - x1 + 1)
            image[rows.start : rows.stop, columns.start : columns.stop] = (
                drawn if threshold is None else drawn >= threshold
            )
    return canvas


def _grown(boxes: Float[Tensor, "K 4"], cells: int) -> Int[Tensor, "K 4"]:
    """Boxes enlarged by one cell on each side, in whole pixels; inverted or non-finite boxes become empty."""
    low, high = boxes[:, :2], boxes[:, 2:]
    reach, center = (high - low) * 0.5 * ((cells + 2) / cells), (high + low) * 0.5
    grown = torch.cat((center - reach, center + reach), dim=1)
    good = torch.isfinite(grown).all(1) & (high >= low).all(1)
    whole = grown.nan_to_num(0.0).clamp(-_FARTHEST, _FARTHEST).to(torch.int64)
    return torch.where(good[:, None], whole, numbers_like((0, 0, -2, -2), whole))


def _visible(low: int, high: int, length: int) -> range:
    """The pixels from ``low`` to ``high`` (inclusive) that lie inside the image."""
    return range(max(low, 0), min(high + 1, length))


def _stretched(
    mask: Float[Tensor, "S S"], rows: range, columns: range, top: int, height: int, left: int, width: int
) -> Float[Tensor, "h w"]:
    """The visible part of ``mask`` resized to (height, width): columns first, while there are few rows."""
    low, high, share = _sources(columns, left, width, mask)
    wide = mask[:, low] * (1 - share) + mask[:, high] * share
    low, high, share = _sources(rows, top, height, mask)
    return (wide[low] * (1 - share)[:, None]).addcmul_(wide[high], share[:, None])


def _sources(
    pixels: range, start: int, length: int, mask: Tensor
) -> tuple[Int[Tensor, "n"], Int[Tensor, "n"], Float[Tensor, "n"]]:
    """The two cells that each pixel lies between, and the interpolation weight of the second."""
    cells = mask.shape[0]
    offsets = torch.arange(pixels.start - start, pixels.stop - start, device=mask.device).to(mask.dtype)
    places = ((offsets + 0.5) * (cells / length) - 0.5).clamp(0, cells - 1)
    low = places.to(torch.int64)
    return low, (low + 1).clamp(max=cells - 1), places - low
