"""Random numbers, drawn in one way everywhere."""

import torch
from torch import Tensor


def uniform_like(values: Tensor, generator: torch.Generator | None, *, dtype: torch.dtype | None = None) -> Tensor:
    """Uniform numbers in [0, 1) of the shape and device of ``values``, and of their type or ``dtype``.

    They are drawn where ``generator`` lives, so that one state gives the same numbers on every device. Under fullgraph
    compilation it must be None.

    >>> uniform_like(torch.zeros(2, 3), None).shape
    torch.Size([2, 3])
    """
    dtype = values.dtype if dtype is None else dtype
    if generator is None:
        return torch.rand_like(values, dtype=dtype)
    return torch.rand(values.shape, generator=generator, device=generator.device, dtype=dtype).to(values.device)
