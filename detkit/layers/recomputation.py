"""Computing again in the backward pass what the forward pass would otherwise have to keep."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from detkit._inputs import is_transformed

Result = TypeVar("Result")
_Norm = nn.modules.batchnorm._BatchNorm
_STEADY = (nn.Sequential, nn.Conv2d, _Norm, nn.GroupNorm, nn.ReLU, nn.LeakyReLU, nn.SiLU, nn.GELU)  # nothing is drawn


def recomputed(
    step: Callable[..., Result], *inputs: Tensor, parts: Iterable[nn.Module] = (), draws: bool = True
) -> Result:
    """``step(*inputs)``, of which only the inputs are kept: the backward pass computes again what it needs.

    Losses and gradients are the same. ``parts`` are the modules in ``step``, whose batch norms count each batch once;
    where ``torch.func.functional_call`` gave them other parameters, which are gone in the backward pass, everything is
    kept. ``draws`` says that it draws random numbers, as dropout does.

    >>> features = torch.ones(1, 1, 2, 2, requires_grad=True)
    >>> recomputed(lambda values: values.square().square(), features).sum().backward()
    >>> features.grad.unique()
    tensor([4.])
    """
    if not torch.is_grad_enabled():
        return step(*inputs)
    if torch.compiler.is_compiling():  # a compiler repeats no update of a buffer
        return checkpoint(step, *inputs, use_reentrant=False)  # pyright: ignore[reportReturnType]
    parts = list(parts)
    if is_transformed() or _lent(parts):
        return step(*inputs)
    norms = [part for part in parts if isinstance(part, _Norm)]
    settings = {
        "use_reentrant": False,
        "preserve_rng_state": draws,
        "context_fn": lambda: (nullcontext(), _Resting(norms)),
    }
    return checkpoint(step, *inputs, **settings)  # pyright: ignore[reportReturnType]


def is_hooked(module: nn.Module) -> bool:
    """Whether hooks see, or change, what the module itself computes: then it must be called.

    >>> is_hooked(nn.ReLU())
    False
    """
    hooks = module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks
    return any(hooks)


def lean_tower(tower: nn.Module, features: Tensor) -> Tensor:
    """``tower(features)``, of which only the outputs of the convolutions are kept, not those of norms and activations.

    To have these again costs next to nothing: each convolution is run with what is before it as one step, and of a step
    no more is computed again than what its last part reads. Only for chains of modules; a compiler does so by itself.

    >>> tower = nn.Sequential(nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 4, 1))
    >>> lean_tower(tower, torch.ones(1, 4, 2, 2)).shape
    torch.Size([1, 4, 2, 2])
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or not isinstance(tower, nn.Sequential):
        return tower(features)
    for step in _steps(tower):
        run, parts = _chain(step), [inner for part in step for inner in part.modules()]
        lean = any(isinstance(part, (_Norm, nn.GroupNorm)) for part in step)
        if lean and not getattr(step[0], "inplace", False):  # which would overwrite what is kept
            draws = not all(isinstance(part, _STEADY) for part in parts)
            features = recomputed(run, features, parts=parts, draws=draws)
        else:
            features = run(features)
    return features


def _lent(parts: list[nn.Module]) -> bool:
    """Whether some parameters are other tensors for the moment."""
    given = (value for part in parts for value in part._parameters.values() if value is not None)
    return not all(isinstance(value, nn.Parameter) for value in given)


def _steps(tower: nn.Module) -> list[list[nn.Module]]:
    """The modules of a chain, each step up to and with a convolution."""
    steps: list[list[nn.Module]] = [[]]
    for part in _leaves(tower):
        steps[-1].append(part)
        if isinstance(part, nn.Conv2d):
            steps.append([])
    return steps


def _leaves(part: nn.Module) -> Iterator[nn.Module]:
    if type(part).forward is nn.Sequential.forward and not is_hooked(part):
        for child in part.children():
            yield from _leaves(child)
    else:
        yield part


def _chain(step: list[nn.Module]) -> Callable[[Tensor], Tensor]:
    def run(features: Tensor) -> Tensor:
        for part in step:
            features = part(features)
        return features

    return run


class _Resting:
    """Running statistics stay as they are, while values are normalized by those of the batch; entered once a pass."""

    def __init__(self, norms: list[_Norm]) -> None:
        self.norms = norms

    def __enter__(self) -> None:
        self.before = [(norm.momentum, norm.num_batches_tracked) for norm in self.norms]
        for norm in self.norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None

    def __exit__(self, *error: object) -> None:
        for norm, (momentum, count) in zip(self.norms, self.before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
