"""stable_topk and falling_order equal a stable sort, ties included."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detkit._ranking import falling_order, from_rising_bits, rising_bits, stable_topk


def by_sorting(values: torch.Tensor, count: int) -> torch.Tensor:
    return values.sort(dim=-1, descending=True, stable=True).indices[..., :count]


VALUES = [0.0, -0.0, 1e-45, -1e-45, 0.25, -0.25, 0.5, 0.5 + 2**-24, 1.0, 3e38, -3e38, float("inf"), float("-inf")]


@given(st.lists(st.sampled_from(VALUES), min_size=1, max_size=40), st.data())
def test_it_is_the_beginning_of_a_stable_descending_sort(numbers, data):
    count = data.draw(st.integers(0, len(numbers) + 3))
    values = torch.tensor(numbers)
    assert torch.equal(stable_topk(values, count), by_sorting(values, count))


@given(st.lists(st.sampled_from(VALUES), max_size=40))
def test_the_order_of_all_is_that_sort(numbers):
    values = torch.tensor([numbers, numbers[::-1]])
    assert torch.equal(falling_order(values), by_sorting(values, len(numbers)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_float_type_and_any_leading_dimensions(dtype, generator):
    values = torch.randint(0, 5, (2, 3, 100), generator=generator).to(dtype)
    assert torch.equal(stable_topk(values, 10), by_sorting(values, 10))


def test_rows_that_do_not_lie_in_one_piece(generator):
    values = torch.rand(50, 4, generator=generator).T
    assert torch.equal(stable_topk(values, 7), by_sorting(values, 7))


def test_five_thousand_equal_values_come_in_rising_order():
    assert torch.equal(stable_topk(torch.ones(5000), 5000), torch.arange(5000))


def test_bits_rise_with_the_values_and_lead_back_to_them():
    values = torch.tensor(sorted(VALUES))
    bits = rising_bits(values)
    assert bits.dtype == torch.int64
    assert bits.abs().max() < 2**31
    assert torch.equal(bits.diff() > 0, values.diff() > 0)
    assert torch.equal(from_rising_bits(bits), values)
