"""IoU and DIoU of a kernel on a GPU."""

import pytest
import torch
from overlap_cases import *  # noqa: F403
from overlap_cases import EXACT, LIMITS, measured
from strategies import random_boxes

from detkit.boxes import box_iou

pytestmark = pytest.mark.cuda


def test_millions_of_pairs_measure_as_in_torch(device):
    rows, others = random_boxes(4096, seed=0), random_boxes(4096, seed=1)
    results = torch.full((4096, 4096), -9.0, device=device)
    measured[(64, 64)](rows.to(device), others.to(device), results, 4096, CENTERS=False, **LIMITS, **EXACT)
    assert torch.equal(results.cpu(), box_iou(rows, others))
