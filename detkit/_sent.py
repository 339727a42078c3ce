"""What the host sends to a device without waiting until the device has done all before."""

from typing import Any

import torch
from torch import Tensor

_READ_LATER = ("mps", "xpu")  # devices that may read the host's memory after the copy returns, when it may be gone


def sent(values: Tensor, device: torch.device) -> Tensor:
    """``values.to(device)``: of the host's memory a GPU takes a copy first, but of pinned memory, which must stay.

    What goes to the host is waited for.

    >>> sent(torch.ones(2), torch.device("cpu"))
    tensor([1., 1.])
    """
    leaves = values.device.type == "cpu" and device.type not in _READ_LATER
    return values.to(device, non_blocking=leaves)


def sent_numbers(values: Any, device: torch.device, *, dtype: torch.dtype | None = None) -> Tensor:
    """``torch.tensor(values, dtype=dtype, device=device)``.

    >>> sent_numbers([[4, 6]], torch.device("cpu"))
    tensor([[4, 6]])
    """
    return sent(torch.tensor(values, dtype=dtype, device="cpu"), device)


def numbers_like(values: Any, like: Tensor) -> Tensor:
    """``like.new_tensor(values)``.

    >>> numbers_like((1, 2), torch.zeros(1))
    tensor([1., 2.])
    """
    return sent_numbers(values, like.device, dtype=like.dtype)
