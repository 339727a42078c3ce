"""Records of the functions that read feature maps and images inside boxes: see tests/records.py."""

import math
from typing import Any

import references as slow
import torch
from opspec import BOXES, TYPES, Changes, OpSpec, each, refusals, rows
from torch import Tensor

from detkit.boxes.crop import crop_and_resize
from detkit.boxes.pooling import project_to_cells, roi_align, roi_pool, spatial_pyramid_pool

HEIGHT, WIDTH, CHANNELS = 5, 7, 2
SCALE = 1 / 16  # boxes reach to about 100 pixels: some past the map, and a power of 2 keeps float32 exact
PIXELS = (80, 100)


def one_in_each(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Maps of the promoted type, and a box in each image."""
    generator = torch.Generator().manual_seed(9)
    maps = torch.rand(count, CHANNELS, HEIGHT, WIDTH, generator=generator, dtype=torch.float64)
    wide = dtype in (torch.float64, torch.int32, torch.int64)
    return maps.to(torch.float64 if wide else torch.float32), rows(count, dtype)[:, None]


def in_cells(count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    maps, boxes = one_in_each(count, dtype)
    return maps, (boxes.double() / 16).to(dtype)


def of_each_image(function: Any) -> Any:
    """A reference of a map (D, H, W) and a box, for every image."""
    return lambda maps, boxes: [function(image, box) for image, (box,) in zip(maps, boxes, strict=True)]


def away_from_zero(value: float) -> int:
    return math.floor(abs(value) + 0.5) * (1 if value >= 0 else -1)


def slow_roi_pool(channels, box, size=2):
    x1, y1, x2, y2 = (away_from_zero(c * SCALE) for c in box)
    width, height = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)

    def cells(start, side, part, limit):
        first, behind = start + math.floor(part * side / size), start + math.ceil((part + 1) * side / size)
        return range(min(max(first, 0), limit), min(max(behind, 0), limit))

    return [
        [
            [
                max((plane[y][x] for y in cells(y1, height, i, HEIGHT) for x in cells(x1, width, j, WIDTH)), default=0)
                for j in range(size)
            ]
            for i in range(size)
        ]
        for plane in channels
    ]


def slow_roi_align(channels, box):
    return [slow.aligned(plane, [c * SCALE for c in box], 2, 2) for plane in channels]


def slow_pyramid(channels, box, levels=(1, 3)):
    def window(low, high, limit):
        first = min(max(math.floor(low), 0), limit - 1)
        return first, max(min(max(math.ceil(high), 0), limit), first + 1)

    (left, right), (top, bottom) = window(box[0], box[2], WIDTH), window(box[1], box[3], HEIGHT)

    def cells(start, stop, part, count):
        side = stop - start
        return range(start + part * side // count, start - (-(part + 1) * side // count))

    return [
        max(plane[y][x] for y in cells(top, bottom, i, n) for x in cells(left, right, j, n))
        for n in levels
        for plane in channels
        for i in range(n)
        for j in range(n)
    ]


def slow_cells(box):
    def nearest(value):
        return min(max(math.floor((value + 8) / 16), 1), 13)

    height, width = PIXELS
    starts = [nearest(math.floor(c * 224 / side) + 1) - 1 for c, side in zip(box[:2], (width, height), strict=True)]
    stops = [nearest(math.ceil(c * 224 / side) + 1) for c, side in zip(box[2:], (width, height), strict=True)]
    return [*starts, *(max(stop, start + 1) for start, stop in zip(starts, stops, strict=True))]


def slow_crop(channels, box, size=5, context=1, fill=-1.0):
    """Boxes in pixels of the map itself."""

    def places(low, high):
        return [low + (high - low) * (i + 0.5 - context) / (size - 2 * context) for i in range(size)]

    def read(plane, y, x):
        inside = 0 <= y <= HEIGHT and 0 <= x <= WIDTH
        return slow.between(plane, max(y - 0.5, 0), max(x - 0.5, 0)) if inside else fill

    xs, ys = places(box[0], box[2]), places(box[1], box[3])
    return [[[read(plane, y, x) for x in xs] for y in ys] for plane in channels]


MAPS = torch.zeros(1, CHANNELS, HEIGHT, WIDTH)
FORMS = "(K, 5) (1, K, 4) (N, 4)"
READ: Changes = {
    "features (2, 5, 7) (B, D, H, W)": {"features": MAPS[0]},
    "features (1, 2, 0, 7) (B, D, H, W)": {"features": MAPS[:, :, :0]},
    "features (1, 0, 5, 7) (B, D, H, W)": {"features": MAPS[:, :0]},
    f"boxes (3, 4) {FORMS}": {"boxes": BOXES},
    f"boxes (2, 3, 4) {FORMS}": {"boxes": BOXES.expand(2, 3, 4)},
    "boxes 2 1 images": {"boxes": [BOXES, BOXES]},
    "boxes[0] (3, 5) (..., 4)": {"boxes": [torch.zeros(3, 5)]},
    "boxes[0] (1, 3, 4) (N, 4)": {"boxes": [BOXES[None]]},
    "boxes[1] image 1 0..0 2": {"boxes": torch.tensor([[0.0] * 5, [1.0] * 5, [-1.0] * 5])},
}
SCALED: Changes = {
    "output_size=0 1": {"output_size": 0},
    "output_size[1]=0 1": {"output_size": (2, 0)},
    "spatial_scale=0": {"spatial_scale": 0},
    "spatial_scale=inf": {"spatial_scale": math.inf},
}
POOLED = {"features": MAPS, "boxes": BOXES[None], "output_size": 2}

POOLING = (
    OpSpec(
        "roi_pool",
        lambda maps, boxes: roi_pool(maps, boxes, 2, SCALE),
        one_in_each,
        of_each_image(slow_roi_pool),
        refusals(roi_pool, POOLED, {**READ, **SCALED}),
        TYPES,
        "checked",
        (1,),
    ),
    OpSpec(
        "roi_align",
        lambda maps, boxes: roi_align(maps, boxes, 2, SCALE, sampling_ratio=2),
        one_in_each,
        of_each_image(slow_roi_align),
        refusals(roi_align, POOLED, {**READ, **SCALED}),
        TYPES,
        "checked",
        (1,),
    ),
    OpSpec(
        "spatial_pyramid_pool",
        lambda maps, boxes: spatial_pyramid_pool(maps, boxes, (1, 3)),
        in_cells,
        of_each_image(slow_pyramid),
        refusals(
            spatial_pyramid_pool,
            {"features": MAPS, "boxes": BOXES[None]},
            {
                **READ,
                "levels=() one number": {"levels": ()},
                "levels[1]=0 1": {"levels": (1, 0)},
            },
        ),
        TYPES,
        "checked",
        (1,),
    ),
    OpSpec(
        "project_to_cells",
        lambda boxes: project_to_cells(boxes, PIXELS),
        lambda count, dtype: (rows(count, dtype),),
        each(slow_cells),
        refusals(
            project_to_cells,
            {"boxes": BOXES, "size": PIXELS},
            {
                "boxes (3, 5) (..., 4)": {"boxes": torch.zeros(3, 5)},
                "size=(80,) 2 numbers": {"size": (80,)},
                "size[1]=0 above 0": {"size": (80, 0)},
                "input_size=0 1": {"input_size": 0},
                "stride=0 1": {"stride": 0},
                "cells=0 1": {"cells": 0},
            },
        ),
    ),
    OpSpec(
        "crop_and_resize",
        lambda images, boxes: crop_and_resize(images, boxes, 5, context=1, fill=-1.0),
        in_cells,
        of_each_image(slow_crop),
        refusals(
            crop_and_resize,
            {"images": MAPS, "boxes": BOXES[None], "output_size": 4},
            {
                "images (2, 5, 7) (B, D, H, W) pixels": {"images": MAPS[0]},
                "images (1, 0, 5, 7) (B, D, H, W) pixels": {"images": MAPS[:, :0]},
                "boxes (3, 4) (1, K, 4)": {"boxes": BOXES},
                "boxes (2, 3, 4) (1, K, 4)": {"boxes": BOXES.expand(2, 3, 4)},
                "output_size=0 1": {"output_size": 0},
                "context=2 output_size=4": {"context": 2},
                "context=-1 0": {"context": -1},
                "image_sizes (2,) (1, 2)": {"image_sizes": torch.tensor([5, 7])},
            },
        ),
        TYPES,
        "checked",
    ),
)
