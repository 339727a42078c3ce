"""A loss or gradient that is not finite is named, the same on every process; nothing else is."""

import math

import processes
import pytest
import torch
import torch.distributed as torch_dist
from strategies import assert_refused
from torch import Tensor, nn

from detkit.tricks import nonfinite
from detkit.tricks.finite import largest


def learned(loss_of: float = 1.0) -> nn.Sequential:
    """A model with gradients."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    (model(torch.ones(1, 2)).sum() * loss_of).backward()
    return model


def losses(**values: float) -> dict[str, Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


def test_losses_without_names_are_refused():
    assert_refused("nonfinite: losses Tensor allowed is a dict", nonfinite, torch.tensor(1.0))


def test_a_step_of_finite_numbers_may_be_taken():
    assert nonfinite(losses(box=2.0, large=3e38, none=0.0), learned()) == []
    assert nonfinite({}) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_named_with_its_value(value):
    assert nonfinite(losses(box=2.0, mask=value), learned()) == [f"loss mask is {value}"]
    assert nonfinite(losses(box=value)) == [f"loss box is {value}"]


@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel])
def test_a_gradient_that_is_not_finite_is_named_though_every_loss_is_finite(wrap):
    model = learned()
    model[0].weight.grad[1, 0] = math.inf
    model[1].bias.grad[:] = math.nan
    expected = ["the gradient of 0.weight holds 1 of 6 values", "the gradient of 1.bias holds 1 of 1 values"]
    assert nonfinite(losses(box=2.0), wrap(model)) == expected


def test_parameters_without_a_gradient_are_left_out():
    model = learned()
    model[0].weight.grad = None
    assert nonfinite(losses(box=1.0), model) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
def test_the_largest_magnitude_is_exact_in_every_type_and_no_large_number_counts_as_infinite(dtype):
    limit = torch.finfo(dtype).max
    values = [torch.tensor([1, -limit], dtype=dtype), torch.zeros(0, dtype=dtype), torch.tensor([2**62])]
    assert largest(values) == limit
    for bad in (math.nan, math.inf, -math.inf):
        assert not largest([*values, torch.tensor([bad, 0], dtype=dtype)]).isfinite()


def one_rank(rank: int, folder: str) -> None:
    torch_dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    good, bad = nonfinite(losses(box=1.0)), nonfinite(losses(box=math.nan if rank == 1 else 1.0))
    torch_dist.destroy_process_group()
    assert good == []
    assert bad == ["loss box is nan in process 1"]


@pytest.mark.slow(3)
def test_all_processes_hear_what_one_of_them_found(tmp_path):
    processes.end(
        *(processes.start(one_rank, rank, str(tmp_path), printed=tmp_path / f"{rank}.txt") for rank in range(2))
    )


def test_losses_of_several_values_and_sparse_gradients_are_named():
    assert nonfinite({"each": torch.tensor([1.0, float("inf")])}) == ["loss each is [1.0, inf]"]
    table = nn.Embedding(3, 2, sparse=True)
    (table(torch.tensor([1])) * float("nan")).sum().backward()
    assert nonfinite({}, table) == ["the gradient of weight holds 2 of 2 values"]
