"""Records of the losses inside boxes, masks and keypoints, and of what they learn: see tests/records.py."""

from functools import partial

import references as slow
import torch
from opspec import FLOATS, TYPES, OpSpec, each, refusals, rows
from torch import Tensor

from detkit import losses

CLASSES, POINTS, SIDE = 3, 2, 2  # of a mask and a heatmap
HEIGHT, WIDTH, OBJECTS, REGIONS_OF_IMAGE = 5, 7, 2, 3
CELLS = 4


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """A logit and a soft target for each pixel of one mask a region."""
    logits = torch.randn(count, SIDE, SIDE, generator=seeded(1)) * 3
    return logits.to(dtype), torch.rand(count, SIDE, SIDE, generator=seeded(2)).to(dtype)


def drawn_by_class(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    logits = torch.randn(count, CLASSES, SIDE, SIDE, generator=seeded(3)) * 3
    return logits.to(dtype), drawn(count, dtype)[1], torch.arange(count) % CLASSES


def slow_mask_loss(logits, targets):
    pixels = [(x, y) for row, wanted in zip(logits, targets, strict=True) for x, y in zip(row, wanted, strict=True)]
    return sum(slow.entropy(x, y) for x, y in pixels) / len(pixels)


def heatmaps(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Every cell in turn, every third heatmap without a keypoint that can be learned."""
    logits = torch.randn(count, POINTS, SIDE, SIDE, generator=seeded(4)) * 3
    places = torch.arange(count * POINTS).reshape(count, POINTS)
    return logits.to(dtype), places % SIDE**2, places % 3 > 0


def slow_keypoint_loss(logits, cells, usable):
    maps = [[x for row in heatmap for x in row] for heatmap in logits]
    return [-slow.log_shares(m)[cell] if good else 0.0 for m, cell, good in zip(maps, cells, usable, strict=True)]


def of_objects(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """In each image masks, boxes of which some end outside, and the object of each box or none."""
    values = torch.rand(count, OBJECTS, HEIGHT, WIDTH, generator=seeded(5))
    masks = values.to(dtype) if dtype.is_floating_point else (values > 0.4).to(dtype)
    boxes = rows(count * REGIONS_OF_IMAGE, torch.float64).reshape(count, REGIONS_OF_IMAGE, 4) / 16
    matched = (torch.arange(count * REGIONS_OF_IMAGE) % (OBJECTS + 1) - 1).reshape(count, REGIONS_OF_IMAGE)
    return masks, boxes.to(dtype), matched


def padded_objects(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The same, of images that fill the batch, end before it, or end before it in one direction."""
    sizes = torch.tensor([[HEIGHT, WIDTH], [3, 4], [HEIGHT, 4]])
    return *of_objects(count, dtype), sizes[torch.arange(count) % 3]


def slow_mask_targets(masks, boxes, matched, size=None, *, cut=False):
    if size is not None:  # the last row and column once more, where there is padding
        (y, x), masks = size, [[list(row) for row in mask] for mask in masks]
        for mask in masks:
            if y < HEIGHT:
                mask[y] = list(mask[y - 1])
            if x < WIDTH:
                for row in mask:
                    row[x] = row[x - 1]
    found = [slow.aligned(masks[max(i, 0)], box, SIDE) for box, i in zip(boxes, matched, strict=True)]
    return [[[float(v >= 0.5) if cut else v for v in row] for row in mask] for mask in found]


def posed(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Keypoints in and around boxes whose sides are powers of 2 or 0, so that every type finds the same cell."""
    shape = count, REGIONS_OF_IMAGE
    low = torch.randint(10, 60, (*shape, 2), generator=seeded(6))
    sides = 2 ** torch.randint(0, 6, (*shape, 2), generator=seeded(7))
    sides[::4, -1, 1] = 0
    share = torch.rand(*shape, 5, 2, generator=seeded(8), dtype=torch.float64) * 1.4 - 0.2
    share[..., 0, :], share[..., 1, :] = 0, 1  # two corners, which belong to the box
    places = low[..., None, :] + share * sides[..., None, :]
    seen = (torch.arange(count * REGIONS_OF_IMAGE * 5) % 7).clamp(max=2).reshape(*shape, 5, 1)
    matched = torch.arange(REGIONS_OF_IMAGE).repeat(count, 1)
    matched[1::3] = matched[1::3].roll(1, dims=1)
    matched[2::3, 0] = -1
    return torch.cat((places, seen), dim=3).to(dtype), torch.cat((low, low + sides), dim=2).to(dtype), matched


def slow_keypoint_targets(keypoints, boxes, matched):
    found = [
        [[slow.cell_of(point, box, CELLS) for point in points[max(i, 0)]] for box, i in zip(own, objects, strict=True)]
        for points, own, objects in zip(keypoints, boxes, matched, strict=True)
    ]
    cells, usable = ([[[pair[i] for pair in box] for box in image] for image in found] for i in (0, 1))
    return cells, usable


MASK_SHAPES = "(M, C, S, S) labels (M, S, S) (M, S, S)"
MASKS, LABELS = torch.zeros(3, CLASSES, SIDE, SIDE), torch.zeros(3).long()
LOGITS = {"logits": MASKS, "targets": MASKS[:, 0], "labels": LABELS}
TOO_LARGE = "labels[1]=3 0..2 NEGATIVE (-1) IGNORED (-2) 1 3"
OF_MASKS = "(B, T, H, W), (B, K, 4), (B, K)"
CUT = {
    "masks": torch.zeros(1, OBJECTS, 4, 6),
    "boxes": torch.zeros(1, 3, 4),
    "matched": LABELS[None],
    "resolution": SIDE,
}
OF_HEATMAPS = "(M, P, S, S), (M, P), (M, P)"
POSED = {**CUT, "keypoints": torch.zeros(1, OBJECTS, 5, 3)}
del POSED["masks"]

REGIONS = (
    OpSpec(
        "mask_loss",
        losses.mask_loss,
        drawn,
        each(slow_mask_loss),
        refusals(
            losses.mask_loss,
            LOGITS,
            {
                f"logits (3, 3, 2, 2) targets (3, 2, 2) {MASK_SHAPES}": {"labels": None},
                f"logits (3, 2, 2) targets (2, 2, 2) {MASK_SHAPES}": {
                    "logits": MASKS[:, 0],
                    "targets": MASKS[:2, 0],
                    "labels": None,
                },
                f"logits (3, 3, 2, 2) targets (3, 3, 2, 2) {MASK_SHAPES}": {"targets": MASKS},
            },
        ),
        FLOATS,
        "checked",
        sums=True,
    ),
    OpSpec(
        "mask_loss of labels",
        losses.mask_loss,
        drawn_by_class,
        each(lambda logits, targets, label: slow_mask_loss(logits[label], targets)),
        {
            f"own_class_masks: {TOO_LARGE}": partial(
                losses.mask_loss, MASKS, MASKS[:, 0], torch.tensor([0, CLASSES, -1])
            )
        },
        FLOATS,
        "checked",
        sums=True,
    ),
    OpSpec(
        "mask_targets",
        lambda masks, boxes, matched: losses.mask_targets(masks, boxes, matched, SIDE),
        of_objects,
        each(slow_mask_targets),
        refusals(
            losses.mask_targets,
            CUT,
            {
                f"masks (2, 4, 6), boxes (1, 3, 4), matched (1, 3) {OF_MASKS}": {"masks": CUT["masks"][0]},
                f"masks (1, 2, 4, 6), boxes (2, 3, 4), matched (1, 3) {OF_MASKS}": {"boxes": torch.zeros(2, 3, 4)},
                f"masks (1, 2, 4, 6), boxes (1, 3, 4), matched (3,) {OF_MASKS}": {"matched": LABELS},
                "boxes (1, 3, 5) (..., 4)": {"boxes": torch.zeros(1, 3, 5)},
                "resolution=0 1": {"resolution": 0},
            },
        ),
        TYPES,
    ),
    OpSpec(
        "mask_targets of a padded batch",
        lambda masks, boxes, matched, sizes: losses.mask_targets(masks, boxes, matched, SIDE, sizes=sizes),
        padded_objects,
        each(slow_mask_targets),
        refusals(losses.mask_targets, CUT, {"resolution=-1 1": {"resolution": -1}}),
        TYPES,
    ),
    OpSpec(
        "mask_targets binarised",
        lambda masks, boxes, matched: losses.mask_targets(masks, boxes, matched, SIDE, binarise=True),
        of_objects,
        each(partial(slow_mask_targets, cut=True)),
        refusals(losses.mask_targets, CUT, {"resolution=-2 1": {"resolution": -2}}),
        FLOATS,  # the mean of integer masks may be one half, where rounding decides
    ),
    OpSpec(
        "keypoint_loss",
        losses.keypoint_loss,
        heatmaps,
        each(slow_keypoint_loss),
        refusals(
            losses.keypoint_loss,
            {"logits": MASKS, "cells": LABELS[:, None].expand(3, CLASSES), "usable": torch.ones(3, CLASSES).bool()},
            {
                f"logits (3, 2, 2), cells (3, 3), usable (3, 3) {OF_HEATMAPS}": {"logits": MASKS[:, 0]},
                f"logits (3, 3, 2, 2), cells (3,), usable (3, 3) {OF_HEATMAPS}": {"cells": LABELS},
                f"logits (3, 3, 2, 2), cells (3, 3), usable (3, 1) {OF_HEATMAPS}": {"usable": torch.ones(3, 1).bool()},
            },
        ),
        FLOATS,
        "checked",
    ),
    OpSpec(
        "keypoint_targets",
        lambda keypoints, boxes, matched: losses.keypoint_targets(keypoints, boxes, matched, CELLS),
        posed,
        slow_keypoint_targets,
        refusals(
            losses.keypoint_targets,
            POSED,
            {
                "keypoints (1, 2, 5, 2), boxes (1, 3, 4), matched (1, 3) (B, T, P, 3), (B, K, 4), (B, K)": {
                    "keypoints": torch.zeros(1, OBJECTS, 5, 2)
                },
                "keypoints (1, 2, 5, 3), boxes (3, 4), matched (1, 3) (B, T, P, 3), (B, K, 4), (B, K)": {
                    "boxes": torch.zeros(3, 4)
                },
                "keypoints (1, 2, 5, 3), boxes (1, 3, 4), matched (3,) (B, T, P, 3), (B, K, 4), (B, K)": {
                    "matched": LABELS
                },
                "boxes (1, 3, 5) (..., 4)": {"boxes": torch.zeros(1, 3, 5)},
                "resolution=0 1": {"resolution": 0},
            },
        ),
        TYPES,
    ),
)
