"""The two forms of a loss: by a kernel and in torch, values and gradients."""

from collections.abc import Callable

import torch
from torch import Tensor

from detkit import kernels


def with_gradients(device: str, loss: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    given = [rows.detach().to(device).requires_grad_() for rows in inputs]
    costs = loss(*given)
    outer = torch.rand(costs.shape, generator=torch.Generator().manual_seed(3)).to(costs)
    return costs.detach(), *torch.autograd.grad(costs, given, outer)


def assert_equal(device: str, loss: Callable[..., Tensor], *inputs: Tensor, least: float = 1e-6) -> None:
    """To 1e-5 of each number, or ``least`` of the largest."""
    found = with_gradients(device, loss, *inputs)
    with kernels.disabled():
        expected = with_gradients(device, loss, *inputs)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        finite = other[other.isfinite()].abs()
        largest = finite.max().item() if finite.numel() else 0
        torch.testing.assert_close(one, other, rtol=1e-5, atol=least * largest, equal_nan=True)
