"""Deformable attention by kernels on a GPU, and what they decline anywhere."""

import pytest
import torch

pytest.importorskip("triton")

from deformable_cases import *  # noqa: F403
from deformable_cases import SHAPES, inputs

from detkit.kernels import deformable
from detkit.layers.deformable import deformable_attention

pytestmark = pytest.mark.cuda


def test_only_the_first_image_of_a_size_waits(device, no_wait):
    given = [rows.to(device).requires_grad_() for rows in inputs(40)]
    deformable_attention(given[0], SHAPES, *given[1:]).sum().backward()
    with no_wait:
        deformable_attention(given[0], SHAPES, *given[1:]).sum().backward()


def test_double_precision_is_declined_without_a_launch():
    values = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    assert (
        deformable.sampled(values, [1, 1], [1], torch.zeros(1, 1, 1, 1, 2), torch.zeros(1, 1, 1, 1)) is NotImplemented
    )
