"""Random numbers: as the generator draws them, shaped as the values."""

import pytest
import torch

from detkit._noise import uniform_like


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_numbers_follow_the_generator_and_the_values(dtype):
    like = torch.zeros(3, 2, dtype=dtype)
    one, same = (uniform_like(like, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, same)
    assert torch.equal(one, torch.rand(3, 2, dtype=dtype, generator=torch.Generator().manual_seed(3)))
    assert not torch.equal(uniform_like(like, None), uniform_like(like, None))


def test_a_type_may_be_asked_for():
    for generator in (None, torch.Generator()):
        assert uniform_like(torch.zeros(2, dtype=torch.int64), generator, dtype=torch.float64).dtype == torch.float64
