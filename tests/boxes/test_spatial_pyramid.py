"""SpatialPyramidPool: adaptive max pooling of the cells that a box covers."""

import math

import pytest
import torch
from torch.nn import functional as F

from detkit.boxes import SpatialPyramidPool

WITHIN = [[0.0, 0, 64, 48], [5, 9, 30, 33], [16, 16, 17, 17]]
AT_EDGES = [[-9.0, -9, 90, 90], [60, 40, 64, 48], [0, 0, 1, 1]]
BOXES = torch.tensor([WITHIN, AT_EDGES])


def by_hand(features: torch.Tensor, box: list[float], stride: int, levels: tuple[int, ...]) -> torch.Tensor:
    height, width = features.shape[1:]
    x1, y1, x2, y2 = (value / stride for value in box)
    x1, y1 = min(max(math.floor(x1), 0), width - 1), min(max(math.floor(y1), 0), height - 1)
    x2, y2 = min(math.ceil(x2), width), min(math.ceil(y2), height)
    window = features[None, :, y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)]
    return torch.cat([F.adaptive_max_pool2d(window, level).flatten() for level in levels])


@pytest.mark.parametrize("levels", [(1, 3, 6), (2,)])
def test_every_box_is_pooled_as_by_hand(levels):
    features = torch.randn(2, 3, 6, 8)
    pooled = SpatialPyramidPool(levels, stride=8)([torch.zeros(2, 1, 1, 1), features], BOXES)
    expected = [by_hand(features[i], box, 8, levels) for i in range(2) for box in BOXES[i].tolist()]
    torch.testing.assert_close(pooled, torch.stack(expected))


def test_rows_are_chosen_before_they_are_pooled():
    pool, features = SpatialPyramidPool(stride=8), [torch.randn(2, 3, 6, 8)]
    rows = torch.tensor([4, 0])
    assert torch.equal(pool(features, BOXES, rows), pool(features, BOXES)[rows])


def test_it_needs_a_level():
    with pytest.raises(ValueError, match="SpatialPyramidPool: levels is empty"):
        SpatialPyramidPool((), stride=8)


def test_half_precision_boxes_name_every_image():
    """bfloat16 holds whole numbers up to 256."""
    features = torch.arange(300.0).reshape(300, 1, 1, 1)
    found = SpatialPyramidPool((1,), stride=16)([features], torch.tensor([0.0, 0, 8, 8]).bfloat16().expand(300, 1, 4))
    assert found.flatten().tolist() == list(range(300))
