"""An operator that handed over runs the kernel on its device, unless kernels are off or the kernel declines."""

import pytest
import torch
from torch import Tensor

from detkit import kernels
from detkit.kernels.switch import takes_over


@torch.library.custom_op("detkit_tests::doubled", mutates_args=())
def doubled(values: Tensor, times: int) -> Tensor:
    return values * 2**times


@doubled.register_fake
def _(values: Tensor, times: int) -> Tensor:
    return torch.empty_like(values)


def kernel(values: Tensor, times: int) -> Tensor:
    return NotImplemented if times > 1 else values * 2**times + 100


@pytest.fixture(autouse=True)
def handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detkit.kernels.switch.available", lambda: True)
    takes_over(doubled, lambda values, times: values * 2**times, lambda: kernel, device="cpu")


def test_the_kernel_answers_where_it_is_registered():
    assert doubled(torch.ones(1), 1).item() == 102


def test_what_the_kernel_declines_the_torch_form_answers():
    assert doubled(torch.ones(1), 2).item() == 4


def test_disabled_kernels_leave_everything_to_the_torch_form_and_come_back():
    with kernels.disabled():
        assert doubled(torch.ones(1), 1).item() == 2
        assert torch.compile(doubled, fullgraph=True, backend="eager")(torch.ones(1), 1).item() == 2
    with pytest.raises(KeyError), kernels.disabled():
        raise KeyError
    assert doubled(torch.ones(1), 1).item() == 102


def test_without_triton_the_torch_form_answers(monkeypatch):
    monkeypatch.setattr("detkit.kernels.switch.available", lambda: False)
    assert doubled(torch.ones(1), 1).item() == 2
