"""Every family learns under autocast in bfloat16 and in float16."""

import math

import pytest
import torch
from families import FAMILIES
from half_precision import trained


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_trains_with_finite_losses_and_weights(name, dtype):
    losses, left_out, spoiled = trained(name, dtype, steps=3, scale=2.0**8)
    assert all(math.isfinite(loss) for loss in losses)
    assert not spoiled
    assert left_out < 2
