"""Computing again in the backward pass what the forward pass would otherwise have to keep."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.checkpoint import checkpoint

from detkit._inputs import is_transformed

Result = TypeVar("Result")
_Norm = nn.modules.batchnorm._BatchNorm
_ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.SiLU, nn.GELU)
_LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.GroupNorm, nn.Identity, *_ACTIVATIONS)


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


def in_pieces(step: Callable[..., Tensor], size: int, *inputs: Tensor, parts: Iterable[nn.Module] = ()) -> Tensor:
    """``step(*inputs)``, whose rows are each of its own: :func:`recomputed`, on a CPU ``size`` rows at a time.

    So neither pass holds more than one piece of what happens inside. ``step`` draws nothing; ``parts`` are the modules
    in it: with hooks, norms of batches, or kinds that nothing is known of, it runs once, on all rows.

    >>> in_pieces(lambda values: values.square(), 2, torch.arange(3.0))
    tensor([0., 1., 4.])
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return step(*inputs)
    parts = [inner for part in parts for inner in part.modules()]
    if not _are_plain(parts):
        return step(*inputs)
    on_cpu = inputs[0].device.type == "cpu"
    pieces = zip(*(rows.split(size) for rows in inputs), strict=True) if on_cpu else [inputs]
    with _own_casts():
        return torch.cat([recomputed(step, *piece, parts=parts, draws=False) for piece in pieces])


def lean_tower(tower: nn.Module, features: Tensor, *heads: nn.Module) -> list[Tensor]:
    """``[head(tower(features)) for head in heads]``, of which the outputs of the convolutions are kept, not those of
    norms and activations.

    To have these again costs next to nothing: each convolution is run with what is before it as one step, and of a step
    no more is computed again than what its last part reads. On a CPU image after image, as the gradients of the last
    step are the peak of memory. Only for chains of modules; a compiler does so by itself.

    >>> tower = nn.Sequential(nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4), nn.ReLU())
    >>> [found.shape for found in lean_tower(tower, torch.ones(1, 4, 2, 2), nn.Conv2d(4, 3, 1))]
    [torch.Size([1, 3, 2, 2])]
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or not isinstance(tower, nn.Sequential):
        described = tower(features)
        return [head(described) for head in heads]
    if not _are_plain(inner for head in heads for inner in head.modules()):  # they might count how often they run
        (described,) = lean_tower(tower, features, nn.Identity())
        return [head(described) for head in heads]
    steps = _steps(tower)
    apart = features.device.type == "cpu" and any(map(_is_lean, steps)) and not _writes(steps[0])
    if not apart or not _are_plain(inner for step in steps for part in step for inner in part.modules()):
        return _lean(steps, heads, features)
    with _own_casts():
        found = [_lean(steps, heads, image) for image in features.split(1)]
    return [torch.cat(results) for results in zip(*found, strict=True)]


def _lean(steps: list[list[nn.Module]], heads: Sequence[nn.Module], features: Tensor) -> list[Tensor]:
    *before, last = steps
    for step in before:
        (features,) = _run(step, [nn.Identity()], features)
    return _run(last, heads, features)


def _run(step: list[nn.Module], heads: Sequence[nn.Module], features: Tensor) -> list[Tensor]:
    """What the heads make of the results of a step."""

    def run(features: Tensor) -> list[Tensor]:
        for part in step:
            features = part(features)
        return [head(features) for head in heads]

    if not _is_lean(step):
        return run(features)
    parts = [inner for part in (*step, *heads) for inner in part.modules()]
    return recomputed(run, features, parts=parts, draws=not all(map(_is_steady, parts)))


def _is_lean(step: list[nn.Module]) -> bool:
    """Whether less is kept of a step that is recomputed, and it does not overwrite the little that is."""
    return any(isinstance(part, (_Norm, nn.GroupNorm)) for part in step) and not _writes(step)


def _writes(step: list[nn.Module]) -> bool:
    """Whether a step overwrites what it is given."""
    return bool(step) and getattr(step[0], "inplace", False)


def _is_steady(part: nn.Module) -> bool:
    """Whether a module is known to draw nothing and to keep nothing; a subclass of a layer may."""
    return type(part) in _LAYERS or type(part).forward is nn.Sequential.forward


def _are_plain(parts: Iterable[nn.Module]) -> bool:
    """Whether rows may be computed one by one, and twice."""
    return all(_is_steady(part) and not isinstance(part, _Norm) and not is_hooked(part) for part in parts)


@contextmanager
def _own_casts() -> Iterator[None]:
    """Autocast casts weights for each piece anew: their gradients are then added in the type of the weights."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


def _lent(parts: list[nn.Module]) -> bool:
    """Whether some parameters are other tensors for the moment, or made anew at each pass, which may count passes."""
    given = (value for part in parts for value in part._parameters.values() if value is not None)
    return not all(isinstance(value, nn.Parameter) for value in given) or any(map(is_parametrized, parts))


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
