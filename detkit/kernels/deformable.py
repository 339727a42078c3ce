"""Deformable attention on a GPU: the samples of a block of queries are fetched, weighted and summed in registers.

Values, locations and weights may be of half precision; all arithmetic is float32. The backward pass fetches the cells
again instead of keeping them, and adds up the gradients of values in float32, in no fixed order: where PyTorch is told
to be deterministic, the torch form runs.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

QUERIES = 32
"""Queries of a program, each for one image and head."""
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


def sampled(values: Tensor, sizes: Sequence[int], counts: Sequence[int], locations: Tensor, weights: Tensor) -> Any:
    """Values (B, K, heads, depth) at locations (B, Q, heads, points, 2), weighted and summed: (B, Q, channels).

    ``sizes`` are rows and columns of each level, one after the other, ``counts`` the number of its points.
    NotImplemented in double precision.
    """
    if not _known(values, locations, weights):
        return NotImplemented
    values, locations, weights = values.contiguous(), locations.contiguous(), weights.contiguous()
    images, queries, heads, *_ = weights.shape
    found = values.new_empty(images, queries, heads * values.shape[3])
    if found.numel():
        given = (values, _levels(tuple(sizes), tuple(counts), values.device), locations, weights)
        sampled_kernel[_grid(weights)](
            *given, found, queries, values.shape[1], **_constants(values, weights), **OPTIONS
        )
    return found


def sampled_backward(
    upstream: Tensor,
    values: Tensor,
    sizes: Sequence[int],
    counts: Sequence[int],
    locations: Tensor,
    weights: Tensor,
) -> Any:
    """The gradients of values, locations and weights, from that of what :func:`sampled` returns."""
    if not _known(values, locations, weights) or torch.are_deterministic_algorithms_enabled():
        return NotImplemented
    upstream, values, locations, weights = (rows.contiguous() for rows in (upstream, values, locations, weights))
    by_values = torch.zeros_like(values, dtype=torch.float32)
    by_locations, by_weights = torch.empty_like(locations), torch.empty_like(weights)
    if by_weights.numel() and values.numel():
        given = (values, _levels(tuple(sizes), tuple(counts), values.device), locations, weights)
        sampled_backward_kernel[_grid(weights)](
            *(*given, upstream, by_values, by_locations, by_weights),
            *(weights.shape[1], values.shape[1]),
            **_constants(values, weights),
            **OPTIONS,
        )
    else:
        by_locations, by_weights = by_locations.zero_(), by_weights.zero_()
    return by_values.to(values.dtype), by_locations, by_weights


def _known(*inputs: Tensor) -> bool:
    return all(rows.dtype != torch.float64 for rows in inputs)


def _grid(weights: Tensor) -> tuple[int, int]:
    images, queries, heads, *_ = weights.shape
    return triton.cdiv(queries, QUERIES), images * heads


def _constants(values: Tensor, weights: Tensor) -> dict[str, int]:
    """What a kernel is compiled for."""
    heads, points = weights.shape[2:]
    depth = values.shape[3]
    sizes = {"HEADS": heads, "DEPTH": depth, "POINTS": points}
    return {**sizes, "QUERIES": QUERIES, "LANES": triton.next_power_of_2(depth)}


@lru_cache(maxsize=256)
def _levels(sizes: tuple[int, ...], counts: tuple[int, ...], device: torch.device) -> Tensor:
    """Rows, columns and first cell of the level of every point, (points, 3), copied once for these sizes."""
    rows, columns = torch.tensor(sizes, dtype=torch.int32).view(-1, 2).unbind(1)
    ends = (rows * columns).cumsum(0).int()
    levels = torch.stack((rows, columns, ends - rows * columns), 1)
    return levels.repeat_interleave(torch.tensor(counts), 0).to(device)


@triton.jit
@no_type_check
def sampled_kernel(
    values,
    levels,
    locations,
    weights,
    found,
    queries,
    cells,
    HEADS: tl.constexpr,
    DEPTH: tl.constexpr,
    POINTS: tl.constexpr,
    QUERIES: tl.constexpr,
    LANES: tl.constexpr,
):
    """One program for QUERIES queries of one image and head."""
    inside, places, table, lanes = _program(queries, cells, HEADS, DEPTH, QUERIES, LANES)
    total = tl.zeros((QUERIES, LANES), tl.float32)
    for point in range(POINTS):
        rows, columns, first = _level(levels, point)
        at = places * POINTS + point
        x, y = _point(locations, at, inside, rows, columns)
        weight = tl.load(weights + at, mask=inside, other=0.0).to(tl.float32)
        for corner in tl.static_range(4):
            cell, good, along_x, along_y = _corner(x, y, rows, columns, first, corner)
            kept = (good & inside)[:, None] & (lanes < DEPTH)
            value = tl.load(values + table + cell[:, None] * (HEADS * DEPTH) + lanes, mask=kept, other=0.0)
            total += (tl.where(good, along_x * along_y, 0.0) * weight)[:, None] * value.to(tl.float32)
    tl.store(found + places[:, None] * DEPTH + lanes, total, mask=inside[:, None] & (lanes < DEPTH))


@triton.jit
@no_type_check
def sampled_backward_kernel(
    values,
    levels,
    locations,
    weights,
    upstream,
    by_values,
    by_locations,
    by_weights,
    queries,
    cells,
    HEADS: tl.constexpr,
    DEPTH: tl.constexpr,
    POINTS: tl.constexpr,
    QUERIES: tl.constexpr,
    LANES: tl.constexpr,
):
    """The same programs; only the gradients of values are written by several of them."""
    inside, places, table, lanes = _program(queries, cells, HEADS, DEPTH, QUERIES, LANES)
    wanted = inside[:, None] & (lanes < DEPTH)
    outer = tl.load(upstream + places[:, None] * DEPTH + lanes, mask=wanted, other=0.0).to(tl.float32)
    for point in range(POINTS):
        rows, columns, first = _level(levels, point)
        at = places * POINTS + point
        x, y = _point(locations, at, inside, rows, columns)
        weight = tl.load(weights + at, mask=inside, other=0.0).to(tl.float32)
        by_x, by_y, by_weight = tl.zeros_like(x), tl.zeros_like(x), tl.zeros_like(x)
        for corner in tl.static_range(4):
            cell, good, along_x, along_y = _corner(x, y, rows, columns, first, corner)
            kept = good[:, None] & wanted
            cell = table + cell[:, None] * (HEADS * DEPTH) + lanes
            value = tl.load(values + cell, mask=kept, other=0.0).to(tl.float32)
            share = tl.where(good, along_x * along_y, 0.0)
            tl.atomic_add(by_values + cell, (share * weight)[:, None] * outer, mask=kept, sem="relaxed")
            product = tl.sum(value * outer, axis=1)
            by_weight += share * product
            by_share = tl.where(good, product * weight, 0.0)
            by_x += by_share * along_y * (corner % 2 * 2 - 1)
            by_y += by_share * along_x * (corner // 2 * 2 - 1)
        tl.store(by_locations + 2 * at, by_x * columns, mask=inside)
        tl.store(by_locations + 2 * at + 1, by_y * rows, mask=inside)
        tl.store(by_weights + at, by_weight, mask=inside)


@triton.jit
@no_type_check
def _program(queries, cells, HEADS: tl.constexpr, DEPTH: tl.constexpr, QUERIES: tl.constexpr, LANES: tl.constexpr):
    """Which queries there are; their places in (images, queries, heads); where the cells of image and head begin."""
    query = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    image, head = (tl.program_id(1) // HEADS).to(tl.int64), tl.program_id(1) % HEADS
    places = (image * queries + query) * HEADS + head
    return query < queries, places, (image * cells * HEADS + head) * DEPTH, tl.arange(0, LANES)[None, :]


@triton.jit
@no_type_check
def _level(levels, point):
    """Rows, columns and first cell of the level of a point."""
    return tl.load(levels + point * 3), tl.load(levels + point * 3 + 1), tl.load(levels + point * 3 + 2)


@triton.jit
@no_type_check
def _point(locations, at, inside, rows, columns):
    """x and y in cells; what is farther than one cell from the map, or no number, is moved to where nothing is."""
    x = tl.load(locations + 2 * at, mask=inside, other=0.0).to(tl.float32) * columns - 0.5
    y = tl.load(locations + 2 * at + 1, mask=inside, other=0.0).to(tl.float32) * rows - 0.5
    x, y = tl.where(x >= -2, x, -2.0), tl.where(y >= -2, y, -2.0)
    return tl.minimum(x, columns + 1.0), tl.minimum(y, rows + 1.0)


@triton.jit
@no_type_check
def _corner(x, y, rows, columns, first, CORNER: tl.constexpr):
    """One of the four cells around a point: which it is, whether the map has it, and how near it is along x and y."""
    left, top = tl.floor(x), tl.floor(y)
    column, row = left.to(tl.int32) + CORNER % 2, top.to(tl.int32) + CORNER // 2
    good = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
    right, down = x - left, y - top
    along_x = right if CORNER % 2 == 1 else 1 - right
    along_y = down if CORNER // 2 == 1 else 1 - down
    return tl.where(good, first + row * columns + column, 0), good, along_x, along_y
