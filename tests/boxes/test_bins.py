"""RoIAlign's matrix against its definition: values are weighted means, gradients the product turned around."""

import math

import pytest
import torch
from torch import Tensor

from detkit.boxes.bins import Bins

SHAPE = (2, 6, 9)
BOXES = torch.tensor(
    [
        [0.0, 1, 1, 5, 4],
        [1, -3, -2, 20, 30],
        [0, 2, 2, 2, 2],
        [1, 7, 5, 3, 1],
        [0, 8.9, 5.9, 9.5, 6.5],
        [1, 40, 40, 50, 50],
    ],
    dtype=torch.float64,
)


def dense(bins: Bins) -> Tensor:
    """The matrix (bins, cells) itself."""
    entries = bins.weight.new_zeros(len(bins.index), math.prod(SHAPE))
    return entries.scatter_add_(1, bins.index.long(), bins.weight)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [1, 2, 3])
def test_reading_and_spreading_are_products_with_one_matrix(ratio, aligned):
    bins = Bins(BOXES, SHAPE, size=(3, 2), ratio=ratio, aligned=aligned)
    generator = torch.Generator().manual_seed(0)
    cells, gradient = (torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in (108, 36))
    torch.testing.assert_close(bins.read(cells), dense(bins) @ cells, rtol=0, atol=1e-12)
    by_cell, spread = bins.transposed(), torch.zeros_like(cells)
    spread[by_cell.read] = by_cell.gradient(gradient)
    torch.testing.assert_close(spread, dense(bins).T @ gradient, rtol=0, atol=1e-12)


def test_a_bin_inside_takes_a_mean_and_one_outside_takes_nothing():
    totals = dense(Bins(BOXES, SHAPE, size=(3, 3), ratio=2)).sum(1).view(len(BOXES), 9)
    torch.testing.assert_close(totals[0], torch.ones(9, dtype=torch.float64))
    assert not totals[-1].any()
    assert totals.min() >= 0
    assert totals.max() <= 1 + 1e-12
