"""Computing again in the backward pass what the forward pass would otherwise have to keep."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from detkit._inputs import is_transformed

Result = TypeVar("Result")
_Norm = nn.modules.batchnorm._BatchNorm


def recomputed(
    step: Callable[..., Result], *inputs: Tensor, parts: Iterable[nn.Module] = (), draws: bool = True
) -> Result:
    """``step(*inputs)``, of which only the inputs are kept: the backward pass computes again what it needs.

    Losses and gradients are the same. ``parts`` are the modules in ``step``, whose batch norms count each batch once;
    ``draws`` says that it draws random numbers, as dropout does.

    >>> features = torch.ones(1, 1, 2, 2, requires_grad=True)
    >>> recomputed(lambda values: values.square().square(), features).sum().backward()
    >>> features.grad.unique()
    tensor([4.])
    """
    if not torch.is_grad_enabled() or (not torch.compiler.is_compiling() and is_transformed()):
        return step(*inputs)
    if torch.compiler.is_compiling():  # a compiler repeats no update of a buffer
        return checkpoint(step, *inputs, use_reentrant=False)  # pyright: ignore[reportReturnType]
    contexts = partial(_contexts, [part for part in parts if isinstance(part, _Norm)])
    settings = {"use_reentrant": False, "preserve_rng_state": draws, "context_fn": contexts}
    return checkpoint(step, *inputs, **settings)  # pyright: ignore[reportReturnType]


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
        normed = any(isinstance(part, (_Norm, nn.GroupNorm)) for part in step)
        features = recomputed(_chain(step), features, parts=step, draws=False) if normed else _chain(step)(features)
    return features


def _steps(tower: nn.Module) -> list[list[nn.Module]]:
    """The modules of a chain, each step up to and with a convolution."""
    steps: list[list[nn.Module]] = [[]]
    for part in _leaves(tower):
        steps[-1].append(part)
        if isinstance(part, nn.Conv2d):
            steps.append([])
    return steps


def _leaves(part: nn.Module) -> Iterator[nn.Module]:
    if isinstance(part, nn.Sequential) and not (part._forward_hooks or part._forward_pre_hooks):
        for child in part:
            yield from _leaves(child)
    else:
        yield part


def _chain(step: list[nn.Module]) -> Callable[[Tensor], Tensor]:
    def run(features: Tensor) -> Tensor:
        for part in step:
            features = part(features)
        return features

    return run


def _contexts(norms: list[_Norm]) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _resting(norms)


@contextmanager
def _resting(norms: list[_Norm]) -> Iterator[None]:
    """Running statistics stay as they are, while values are normalized by those of the batch."""
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
