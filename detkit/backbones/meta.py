"""What a network gives, by shape only: one pass on the meta device, where nothing is computed."""

from typing import Any

import torch
from torch import Tensor, nn


def meta_pass(module: nn.Module, inputs: Tensor) -> Any:
    """What ``module`` gives for ``inputs``, as tensors on the meta device; the module stays as it is.

    ``inputs`` take the precision of the module's weights. Give two images or more: a batch norm in training mode
    refuses one value per channel.

    >>> meta_pass(nn.Conv2d(3, 8, 3, stride=2), torch.empty(2, 3, 9, 9)).shape
    torch.Size([2, 8, 4, 4])
    """
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    meta = {name: torch.empty_like(value, device="meta") for name, value in state.items()}
    dtype = next((value.dtype for value in state.values() if value.is_floating_point()), inputs.dtype)
    with torch.no_grad():
        return torch.func.functional_call(module, meta, (inputs.to("meta", dtype),))
