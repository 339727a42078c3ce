"""Mask R-CNN's mask loss: the target mask of each region, and the loss of the predicted one."""

from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

from detkit._door import door
from detkit._inputs import as_boxes, on_host, promote
from detkit._ranges import Count
from detkit.structures import NEGATIVE, take_rows
from detkit.structures.labels import check_labels

_FARTHEST = 1  # image side: so far outside a box may reach, or sampling it would take as long as the box is large

_MASKS_AT_ONCE = 4  # as floats


@door
def mask_loss(
    logits: Float[Tensor, "M *C S S"], targets: Float[Tensor, "M S S"], labels: Int[Tensor, "M"] | None = None
) -> Float[Tensor, "M"]:
    """Binary cross-entropy of each region's mask, averaged over its pixels; classes do not compete.

    logits are (M, C, S, S) with ``labels`` (M,) in 0..C-1, the class whose mask counts, or (M, S, S) without labels,
    for that mask alone. targets are (M, S, S) in [0, 1]. Unreduced; half precision is promoted. Raises ValueError if
    shapes disagree, and as :func:`own_class_masks`. Source: He et al. 2017, section 3.

    >>> mask_loss(torch.zeros(2, 3, 4, 4), torch.ones(2, 4, 4), torch.tensor([0, 2]))
    tensor([0.6931, 0.6931])
    """
    own = promote(logits) if labels is None else own_class_masks(logits, labels)
    if own.ndim != 3 or own.shape != targets.shape:
        raise ValueError(
            f"mask_loss: logits {tuple(logits.shape)} and targets {tuple(targets.shape)}; allowed is (M, C, S, S) with "
            "labels or (M, S, S) without, and (M, S, S)"
        )
    costs = F.binary_cross_entropy_with_logits(own, targets.to(own), reduction="none")
    return costs.flatten(1).mean(1)


def own_class_masks(logits: Float[Tensor, "M C S S"], labels: Int[Tensor, "M"]) -> Float[Tensor, "M S S"]:
    """Select the mask of each region's own class from the masks of all classes, promoted from half precision.

    A label below 0 (NEGATIVE, IGNORED) selects class 0. Raises ValueError if shapes disagree, and for a label of C
    or more (on accelerators with ``DETKIT_CHECKS=full``).

    >>> own_class_masks(torch.arange(8.0).reshape(1, 2, 2, 2), torch.tensor([1]))
    tensor([[[4., 5.],
             [6., 7.]]])
    """
    if logits.ndim != 4 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"own_class_masks: logits {tuple(logits.shape)} and labels {tuple(labels.shape)}; "
            "allowed is (M, C, S, S) and (M,)"
        )
    check_labels(labels, logits.shape[1], lowest=NEGATIVE, function="own_class_masks", name="labels")
    return promote(take_rows(logits, labels.clamp(min=0)[:, None]).squeeze(1))


@door
@torch.no_grad()
def mask_targets(
    masks: Shaped[Tensor, "B T H W"],
    boxes: Shaped[Tensor, "B K 4"],
    matched: Int[Tensor, "B K"],
    resolution: Count,
    *,
    sizes: Shaped[Tensor, "B 2"] | None = None,
    binarise: bool = False,
) -> Float[Tensor, "B K S S"]:
    """The target mask of each box: its object's mask, cropped and averaged to ``resolution`` x ``resolution``.

    masks are (B, T, H, W) in [0, 1] or, in an integer type, nonzero inside; boxes are (B, K, 4) in pixels of the masks;
    ``matched`` (B, K) is the object of each box: a negative one gives a meaningless mask. ``sizes`` (B, 2) says where
    the images end in a padded batch: the last pixel's value extends from its center to the border, as at the end of a
    tensor. Values in [0, 1] stay soft as in torchvision; ``binarise`` thresholds at 0.5 as Detectron did. Handles all
    images at once. A box that reaches more than one image side beyond the image is clipped there. If a box ends less
    than a pixel outside an image that is smaller than the batch, the part outside is blurred, where torchvision has
    zeros. Raises ValueError if shapes disagree.

    >>> masks = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    >>> masks[..., :4] = 1
    >>> mask_targets(masks, torch.tensor([[[0.0, 0, 8, 8]]]), torch.tensor([[0]]), 2)
    tensor([[[[0.8750, 0.0000],
              [0.8750, 0.0000]]]])
    """
    if masks.ndim != 4 or boxes.ndim != 3 or not len(masks) == len(boxes) or matched.shape != boxes.shape[:2]:
        raise ValueError(
            f"mask_targets: masks {tuple(masks.shape)}, boxes {tuple(boxes.shape)}, matched {tuple(matched.shape)}; "
            "allowed is (B, T, H, W), (B, K, 4), (B, K)"
        )
    if boxes.numel() and not masks.numel():
        raise ValueError(f"mask_targets: masks {tuple(masks.shape)} have no pixels to cut {boxes.shape[1]} boxes from")
    boxes = as_boxes(boxes, function="mask_targets")
    (images, objects, height, width), regions = masks.shape, boxes.shape[1]
    limits = torch.cat((boxes.new_full((1,), width), boxes.new_full((1,), height))).repeat(2)
    boxes = boxes.nan_to_num(0.0).clamp(-_FARTHEST * limits, (_FARTHEST + 1) * limits)
    first = torch.arange(images, device=masks.device)[:, None] * objects
    rows = (first + matched.clamp(min=0, max=max(objects - 1, 0))).flatten()  # every mask is an image of its own
    ends = None if sizes is None else sizes.repeat_interleave(objects, 0)
    cut = _cut_some if on_host(masks) else _cut
    cut = cut(masks.flatten(0, 1)[:, None], boxes.flatten(0, 1), rows, resolution, ends)
    cut = cut.reshape(images, regions, resolution, resolution)
    return (cut >= 0.5).to(cut) if binarise else cut


def _cut(
    masks: Shaped[Tensor, "N 1 H W"], boxes: Float[Tensor, "M 4"], rows: Int[Tensor, "M"], resolution: int, ends: Any
) -> Float[Tensor, "M 1 S S"]:
    """Box m of the mask ``rows[m]``, which ends at ``ends[rows[m]]``."""
    pixels = (masks if masks.dtype == torch.bool else masks.clamp(0, 1)).to(boxes.dtype)  # a copy in any case
    if ends is not None:
        _extend_(pixels, ends)
    return roi_align(pixels, torch.cat((rows[:, None].to(boxes), boxes), dim=1), (resolution, resolution))


def _cut_some(
    masks: Shaped[Tensor, "N 1 H W"], boxes: Float[Tensor, "M 4"], rows: Int[Tensor, "M"], resolution: int, ends: Any
) -> Float[Tensor, "M 1 S S"]:
    """:func:`_cut` a few masks at a time, those that a box looks at: as floats all of them would be 4 times as
    large."""
    result, blocks = boxes.new_zeros(len(boxes), 1, resolution, resolution), rows // _MASKS_AT_ONCE
    for block in blocks.unique().tolist():
        some, own = slice(block * _MASKS_AT_ONCE, (block + 1) * _MASKS_AT_ONCE), (blocks == block).nonzero().squeeze(1)
        limits = None if ends is None else ends[some]
        result[own] = _cut(masks[some], boxes[own], rows[own] - some.start, resolution, limits)
    return result


def _extend_(pixels: Float[Tensor, "B T H W"], sizes: Shaped[Tensor, "B 2"]) -> None:
    """Repeat the last row and column of each image once in the padding, in place: masks are large."""
    for dim in (2, 3):
        length, end = pixels.shape[dim], sizes[:, dim - 2].to(torch.int64)
        padded = (end < length).reshape(-1, 1, 1, 1)
        shape = [*pixels.shape[:2], *(1 if d == dim else pixels.shape[d] for d in (2, 3))]
        beyond, last = ((end - back).clamp(0, length - 1).reshape(-1, 1, 1, 1).expand(shape) for back in (0, 1))
        source = torch.where(padded, last, beyond)
        pixels.scatter_(dim, beyond, pixels.gather(dim, source))
