"""Boxes inside kernels give the measures of the torch form bit for bit: in the interpreter and on a GPU."""

import pytest
import torch
import triton
import triton.language as tl
from strategies import random_boxes
from torch import Tensor

from detkit.boxes import box_iou, distance_box_iou
from detkit.boxes.measures import coordinate_limit, smallest_union
from detkit.kernels.overlap import EXACT, diou, down_and_across, iou, sides

LIMITS = {"LIMIT": coordinate_limit(torch.float32), "SMALLEST": smallest_union(torch.float32)}


@triton.jit
def measured(boxes, others, results, count, LIMIT: tl.constexpr, SMALLEST: tl.constexpr, CENTERS: tl.constexpr):
    rows = tl.program_id(0) * 64 + tl.arange(0, 64)
    columns = tl.program_id(1) * 64 + tl.arange(0, 64)
    some = sides(boxes, rows, rows < count, LIMIT)
    some, all_others = down_and_across(some, sides(others, columns, columns < count, LIMIT))
    measure = diou(some, all_others, SMALLEST) if CENTERS else iou(some, all_others, SMALLEST)
    inside = (rows < count)[:, None] & (columns < count)[None]
    tl.store(results + rows[:, None] * count + columns[None], measure, mask=inside)


def hostile(count: int, seed: int) -> Tensor:
    rows = random_boxes(count, seed=seed)
    rows[1::9], rows[2::9], rows[3::9] = rows[1::9] * 1e30, rows[2::9] * 1e-21, rows[3::9].flip(1)
    rows[4::9, 2], rows[5::9, 0], rows[6::9] = rows[4::9, 0].clone(), torch.nan, rows[:1].clone()
    return rows


@pytest.mark.parametrize("centers", [False, True])
def test_every_pair_measures_as_in_torch(device, centers):
    rows, others = hostile(150, 0), hostile(150, 1)
    results = torch.full((150, 150), -9.0, device=device)
    measured[(3, 3)](rows.to(device), others.to(device), results, 150, CENTERS=centers, **LIMITS, **EXACT)
    assert torch.equal(results.cpu(), (distance_box_iou if centers else box_iou)(rows, others))
