"""Matrix NMS: all boxes lower each other's scores at once, with options and words as Soft-NMS."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn import functional

from detkit._door import door
from detkit._inputs import as_boxes, as_tensor, check_box_values, check_finite, first_bad, full_checks, promote
from detkit.boxes.overlap import box_iou
from detkit.boxes.soft_nms import DecayMethod, check_groups, check_options, read_rows, safe_sigma


@door
def matrix_nms(
    boxes: Shaped[Tensor, "*B N 4"] | None,
    scores: Shaped[Tensor, "*B N"],
    *,
    groups: Shaped[Tensor, "*B N"] | None = None,
    overlaps: Float[Tensor, "*B N N"] | None = None,
    method: DecayMethod = "gaussian",
    sigma: float = 0.5,
    nonfinite: Literal["raise", "drop"] = "raise",
) -> Float[Tensor, "*B N"]:
    """Scores (..., N) lowered where a better box of the same group covers the place; in the given order.

    boxes (..., N, 4) xyxy, or None and ``overlaps`` (..., N, N) in [0, 1] instead: :func:`detkit.boxes.mask_iou` of
    masks with themselves. A score is multiplied by the least, over all better boxes i, of f(IoU with i) / f(c_i), where
    c_i is the largest IoU of i with one better than i; f(IoU) is exp(-IoU^2 / ``sigma``) or, ``"linear"``, 1 - IoU. Of
    equal scores the lower index is better; scores below 0 stay. Nothing is dropped: compare with a threshold and take
    the best. Rows that are not finite (or pairs, in ``overlaps``) lower nothing and score 0; on the host, or with
    ``DETKIT_CHECKS=full``, they raise ValueError unless ``nonfinite="drop"``. Memory grows with N^2: choose the best
    few hundred first. Source: Wang et al. 2020 (SOLOv2), section 3.3.

    >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [20, 20, 30, 30]])
    >>> matrix_nms(boxes, torch.tensor([0.9, 0.8, 0.7]), method="linear")
    tensor([0.9000, 0.4000, 0.7000])
    """
    check_options("matrix_nms", method, sigma, nonfinite, None)
    if (boxes is None) == (overlaps is None):
        raise ValueError("matrix_nms: give either boxes or, with boxes=None, overlaps")
    scores = as_tensor(scores, function="matrix_nms", name="scores")
    host = scores.device.type == "cpu" and not torch.compiler.is_compiling()
    check = nonfinite == "raise" and (host or full_checks())
    scores = promote(scores)
    if check:
        check_finite(scores, function="matrix_nms", name="scores")
    usable = torch.isfinite(scores)
    if overlaps is None:
        assert boxes is not None
        boxes, scores = read_rows("matrix_nms", boxes, scores, scores.ndim, groups=groups)
        if check:
            check_box_values(boxes, function="matrix_nms")
        boxes = as_boxes(boxes, function="matrix_nms") if check else promote(boxes)
        usable = usable & torch.isfinite(boxes).all(-1)
        overlaps = box_iou(boxes, boxes)
    else:
        overlaps = _check_overlaps(overlaps, scores, groups, check)
    worse = _worse(scores, usable, groups)
    decay = (_linear_decay if method == "linear" else _gaussian_decay)(torch.where(worse, overlaps, 0), worse, sigma)
    lowered = torch.where(scores > 0, scores * decay.to(scores.dtype), scores)
    return torch.where(usable, lowered, 0)


def _worse(scores: Tensor, usable: Tensor, groups: Tensor | None) -> Bool[Tensor, "*B N N"]:
    """Where box j (column) is of the group of box i (row) and comes after it in order of score."""
    place = torch.arange(scores.shape[-1], device=scores.device)
    row, column = scores.unsqueeze(-1), scores.unsqueeze(-2)
    worse = (row > column) | ((row == column) & (place[:, None] < place))
    worse = worse & usable.unsqueeze(-1) & usable.unsqueeze(-2)
    return worse if groups is None else worse & (groups.unsqueeze(-1) == groups.unsqueeze(-2))


# Each decay starts with a row for nobody, who overlaps nothing: the largest and the least of no rows are then 0 and 1.


def _gaussian_decay(overlaps: Tensor, worse: Tensor, sigma: float) -> Tensor:
    squares = overlaps * overlaps
    covered = functional.pad(squares, (0, 0, 1, 0)).amax(-2)
    excess = torch.where(worse, squares - covered.unsqueeze(-1), 0)  # the least ratio has the largest exponent
    return torch.exp(-functional.pad(excess, (0, 0, 1, 0)).amax(-2) / safe_sigma(sigma, excess))


def _linear_decay(overlaps: Tensor, worse: Tensor, sigma: float) -> Tensor:
    rest = 1 - functional.pad(overlaps, (0, 0, 1, 0)).amax(-2).unsqueeze(-1)
    # A box that equals a better one says nothing which that one has not said.
    ratio = torch.where(worse & (rest > 0), (1 - overlaps) / torch.where(rest > 0, rest, 1), 1)
    return functional.pad(ratio, (0, 0, 1, 0), value=1.0).amin(-2)


def _check_overlaps(overlaps: Tensor, scores: Tensor, groups: Tensor | None, check: bool) -> Tensor:
    """Overlaps in [0, 1]; a pair that is not finite counts as 0."""
    if overlaps.ndim == 0 or overlaps.shape != (*scores.shape, scores.shape[-1]):
        raise ValueError(
            f"matrix_nms: overlaps has shape {tuple(overlaps.shape)}; allowed is {(*scores.shape, *scores.shape[-1:])}"
        )
    if groups is not None and groups.shape != scores.shape:
        raise ValueError(f"matrix_nms: groups has shape {tuple(groups.shape)}; allowed is {tuple(scores.shape)}")
    check_groups("matrix_nms", groups)
    overlaps = promote(overlaps)
    if check:
        check_finite(overlaps, function="matrix_nms", name="overlaps")
        outside = (overlaps < 0) | (overlaps > 1)
        if outside.any():
            index, count = first_bad(outside)
            place, value = ", ".join(map(str, index)), overlaps[index].item()
            raise ValueError(f"matrix_nms: overlaps[{place}]={value:g} must lie in [0, 1]; {count} outside")
    return torch.where(torch.isfinite(overlaps), overlaps, 0).clamp(0, 1)
