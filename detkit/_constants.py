"""Constants of a module: tensors that move with it and are in no file of weights, and that nothing can erase."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Constants(nn.Module):
    """A module whose constants (anchor shapes, scales, mean and deviation) survive the meta device.

    They are buffers that no ``state_dict`` holds, so nothing could bring them back after ``to_empty``, or where
    ``load_state_dict(assign=True)`` fills a module that was built on the meta device: there they would be unwritten
    memory. So their values are kept beside them as long as they have no memory of their own.

    >>> with torch.device("meta"):
    ...     module = Constants()
    ...     module.register_constant("mean", [0.5, 0.25])
    >>> module.to_empty(device="cpu").mean
    tensor([0.5000, 0.2500])
    """

    def __init__(self) -> None:
        super().__init__()
        self._constants: dict[str, Tensor] = {}

    def register_constant(self, name: str, values: Any, *, dtype: torch.dtype | None = None) -> None:
        """Add a constant of these ``values``, a tensor or numbers, on the default device."""
        self._constants[name] = torch.as_tensor(values, dtype=dtype, device="cpu")
        self.register_buffer(name, self._constants[name].to(torch.empty(0).device), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """What ``to``, ``half`` and ``to_empty`` call; the last one hands back memory that nothing was written to."""
        before = {name: self.get_buffer(name) for name in self._constants}
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            after, values = self.get_buffer(name), self._constants[name] if buffer.is_meta else buffer
            if after.is_meta:
                self._constants[name] = values.detach().cpu()
            elif type(after) is type(values):
                self._buffers[name] = values.to(after)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Called for every module below the one whose ``load_state_dict`` is called."""
        super()._load_from_state_dict(*args, **kwargs)
        for name, values in self._constants.items():
            if self.get_buffer(name).is_meta:
                self._buffers[name] = values
