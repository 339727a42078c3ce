"""Whether a training step may be taken: losses and gradients that are not finite, by name."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from detkit import dist
from detkit._wrappers import unwrapped


@torch.no_grad()
def nonfinite(losses: Mapping[str, Tensor], model: nn.Module | None = None) -> list[str]:
    """Name the losses, and the gradients of ``model``, that hold NaN or infinity; empty where the step may be taken.

    Call it after ``backward`` and before the optimizer's step, on every process: all get the same answer, what any of
    them found, or they would wait for one another. The host waits once for an accelerator. One step with such a
    gradient makes the whole model NaN, and AdamW's moments too; and the forward pass has already moved BatchNorm's
    statistics: put those back as well where the step is left out, as ``detkit.train`` does. Raises ValueError for
    losses that are no dict.

    >>> model, losses = nn.Linear(1, 1), {"box": torch.tensor(2.0), "class": torch.tensor(float("nan"))}
    >>> nonfinite(losses, model)
    ['loss class is nan']
    """
    if not isinstance(losses, Mapping):
        raise ValueError(f"nonfinite: losses is a {type(losses).__name__}; allowed is a dict of losses by their names")
    parts = {} if model is None else dict(unwrapped(model).named_parameters())
    gradients = {name: _dense(part.grad) for name, part in parts.items() if part.grad is not None}
    if bool(dist.all_reduce_mean(largest([*losses.values(), *gradients.values()])).isfinite()):
        return []
    named = [f"loss {name} is {value.tolist()}" for name, value in losses.items() if not value.isfinite().all()]
    named += [
        f"the gradient of {name} holds {count} of {gradient.numel()} values"
        for name, gradient in gradients.items()
        if (count := int((~gradient.isfinite()).sum()))
    ]
    everywhere = dist.gather_objects(named)
    if len(everywhere) == 1:
        return named
    return [f"{name} in process {rank}" for rank, own in enumerate(everywhere) for name in own]


def _dense(gradient: Tensor) -> Tensor:
    """The values that a gradient holds: those of an embedding's can be sparse."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def largest(values: Iterable[Tensor]) -> Tensor:
    """The largest magnitude of all floating values: not finite if one of them is not, NaN if one is; 0 of none.

    >>> largest([torch.tensor([1.0, -3.0]), torch.tensor([7])])
    tensor(3., dtype=torch.float64)
    """
    numbers = [torch.view_as_real(value) if value.is_complex() else value for value in values if value.numel()]
    numbers = [value.detach() for value in numbers if value.is_floating_point()]
    if any(value.device.type != "cpu" for value in numbers):
        return nn.utils.get_total_norm(numbers, norm_type=math.inf)  # few kernels, but on the CPU twelve times slower
    extremes = [extreme.double() for value in numbers for extreme in value.aminmax()]
    return torch.stack([torch.zeros((), dtype=torch.float64), *extremes]).abs().amax()
