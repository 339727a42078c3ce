"""Batch normalization over the batches of all processes, on the CPU (gloo) and on accelerators (NCCL) alike."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from detkit import dist
from detkit._door import door
from detkit._inputs import looked_at
from detkit._ranges import Count, Fraction, Positive

Norm = TypeVar("Norm", bound=_BatchNorm)
_PLAIN = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm
"""What can be converted: classes that normalize and do nothing else."""


class SyncBatchNorm(_BatchNorm):
    """Batch normalization whose statistics, in training, are those of the batches of all processes together.

    Processes with batches of any sizes, none included, then train as one with all of them: outputs, gradients and
    running statistics are those of one ``nn.BatchNorm2d`` on the concatenation, up to rounding. As with any sum over
    processes, the gradients of weight and bias are each process' own share, which DistributedDataParallel averages.
    Every process must make the same calls in the same order, backwards too. Two messages are sent for each call: the
    counts, means and squared deviations (merged as Chan et al. 1983 do, which does not cancel), and two sums for the
    gradient. Half precision is summed in float32. There is no second derivative.

    With one process, and in eval mode, this is ``nn.BatchNorm2d`` itself, bit for bit; arguments, ``momentum=None`` (a
    cumulative average) and the keys of the ``state_dict`` are the same, so weights go both ways. :meth:`convert` puts
    it in place of all batch norms of a model, :meth:`revert` puts them back, for export say. torch's own refuses
    tensors on the CPU. Raises ValueError for a single value per channel in all processes, which has no variance (on
    accelerators with several processes only with ``DETKIT_CHECKS=full``: its output is then the bias).

    >>> norm = SyncBatchNorm(2)
    >>> norm(torch.tensor([[0.0, 1.0], [2.0, 5.0]]))
    tensor([[-1.0000, -1.0000],
            [ 1.0000,  1.0000]], grad_fn=<NativeBatchNormBackward0>)
    """

    @door
    def __init__(
        self,
        num_features: Count,
        eps: Positive = 1e-5,
        *,
        momentum: Fraction | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        self._replaced: type[_BatchNorm] = nn.BatchNorm2d

    @classmethod
    @door
    def convert(cls, module: nn.Module) -> nn.Module:
        """Replace every batch norm in ``module``, in place, by one that holds the same parameters and buffers.

        Returns the module, or its replacement where it is a batch norm itself. Optimizers and averages made before stay
        good; hooks on a batch norm do not. Call it before DistributedDataParallel; as often as you like. Raises
        ValueError for a class of batch norm that may do more than normalize (timm's hold an activation).

        >>> model = SyncBatchNorm.convert(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
        >>> model[1]
        SyncBatchNorm(4, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
        """
        return _replaced_norms(module, cls._of, {})

    @classmethod
    @door
    def revert(cls, module: nn.Module) -> nn.Module:
        """Put back, in place, the batch norms that :meth:`convert` replaced; ``nn.BatchNorm2d`` for others.

        >>> type(SyncBatchNorm.revert(SyncBatchNorm.convert(nn.BatchNorm1d(4)))).__name__
        'BatchNorm1d'
        """
        return _replaced_norms(module, cls._plain, {})

    @door
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, features: Float[Tensor, "B D *space"]
    ) -> Float[Tensor, "B D *space"]:
        """The normalized features, (B, D, ...), in their own type and memory layout.

        Raises ValueError for fewer than 2 dimensions, and another number of channels than ``num_features``.
        """
        self._check_input_dim(features)
        if not self.training or dist.world_size() == 1:
            return super().forward(features)
        count, mean, squares = _merged(dist.stack(_statistics(features)))
        if looked_at(count) and count == 1:
            raise ValueError(
                "SyncBatchNorm: features hold 1 value per channel in all processes together; a variance needs 2"
            )
        self._remember(count, mean, squares)
        return _Normalized.apply(features, self.weight, self.bias, count, mean, squares / count.clamp(min=1), self.eps)

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        names = "eps", "momentum", "affine", "track_running_stats"
        return ", ".join([str(self.num_features), *(f"{name}={getattr(self, name)}" for name in names)])

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2 or input.shape[1] != self.num_features:
            raise ValueError(
                f"SyncBatchNorm: features have shape {tuple(input.shape)}; allowed is (B, {self.num_features}, ...)"
            )

    @torch.no_grad()
    def _remember(self, count: Tensor, mean: Tensor, squares: Tensor) -> None:
        """Move the running statistics; a batch without values moves nothing."""
        if not self.track_running_stats:
            return
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        for running, batch in ((self.running_mean, mean), (self.running_var, squares / (count - 1).clamp(min=1))):
            running.lerp_(torch.where(count > 0, batch, running).to(running), share)

    @classmethod
    def _of(cls, norm: nn.Module) -> nn.Module | None:
        """What replaces a batch norm; None for what is none, or is replaced already."""
        if not isinstance(norm, _BatchNorm) or type(norm) is cls:
            return None
        if type(norm) not in _PLAIN:
            allowed = ", ".join(f"nn.{kind.__name__}" for kind in _PLAIN)
            raise ValueError(
                f"SyncBatchNorm.convert: cannot replace a {type(norm).__name__}, which may do more than normalize; "
                f"allowed are {allowed}"
            )
        new = cls(norm.num_features, norm.eps, momentum=norm.momentum, affine=False, track_running_stats=False)
        new._replaced = nn.BatchNorm2d if type(norm) is nn.SyncBatchNorm else type(norm)
        return _with_values_of(norm, new)

    @classmethod
    def _plain(cls, norm: nn.Module) -> nn.Module | None:
        if not isinstance(norm, cls):
            return None
        new = norm._replaced(norm.num_features, norm.eps, norm.momentum, affine=False, track_running_stats=False)
        return _with_values_of(norm, new)


class _Normalized(torch.autograd.Function):
    """Normalization by given statistics of all processes, and the gradient that reaches through them."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        count: Tensor,
        mean: Tensor,
        variance: Tensor,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(features, weight, bias, count, mean, (variance + eps).rsqrt())
        if features.numel() == 0:
            return features.clone()
        weight, bias = (None if part is None else part.to(mean.dtype) for part in (weight, bias))
        return F.batch_norm(features, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        features, weight, bias, count, mean, scale = ctx.saved_tensors
        like = 1, -1, *[1] * (features.ndim - 2)
        others = [dim for dim in range(features.ndim) if dim != 1]
        wide = gradient.to(mean.dtype)
        unit = (features - mean.view(like)) * scale.view(like)
        sums = torch.stack([wide.sum(others), (wide * unit).sum(others)])
        by_weight, by_bias = (_like(total, part) for total, part in zip(sums.flip(0), (weight, bias), strict=True))
        if not ctx.needs_input_grad[0]:
            return None, by_weight, by_bias, None, None, None, None
        first, second = dist.all_reduce_mean(sums) * dist.world_size() / count.clamp(min=1)
        scale = scale if weight is None else scale * weight.to(scale.dtype)
        slope = (wide - first.view(like) - unit * second.view(like)) * scale.view(like)
        return slope.to(features.dtype), by_weight, by_bias, None, None, None, None


def _statistics(features: Tensor) -> Tensor:
    """(2 D + 1,): the number of values per channel, their means and sums of squared deviations; all 0 for none."""
    dtype, channels = torch.promote_types(features.dtype, torch.float32), features.shape[1]
    others = [dim for dim in range(features.ndim) if dim != 1]
    values = features.numel() // channels
    if values == 0:
        return features.new_zeros(2 * channels + 1, dtype=dtype)
    variance, mean = torch.var_mean(features.detach().to(dtype), others, correction=0)
    return torch.cat([mean.new_full((1,), values), mean, variance * values])


def _merged(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count (), means (D,) and sums of squared deviations (D,) of all processes, from those of each, (world, 2 D + 1).

    >>> _merged(torch.tensor([[1.0, 4.0, 0.0], [3.0, 0.0, 2.0]]))  # 4, and three around 0
    (tensor(4.), tensor([1.]), tensor([14.]))
    """
    counts, means, squares = rows[:, :1], *rows[:, 1:].chunk(2, dim=1)
    count = counts.sum()
    mean = (counts * means).sum(0) / count.clamp(min=1)
    return count, mean, (squares + counts * (means - mean) ** 2).sum(0)


def _like(total: Tensor, parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else total.to(parameter.dtype)


def _replaced_norms(
    module: nn.Module, of: Callable[[nn.Module], nn.Module | None], known: dict[nn.Module, nn.Module]
) -> nn.Module:
    """``module`` with each part that ``of`` has a replacement for replaced, shared parts by shared ones."""
    if module not in known:
        known[module] = of(module) or module
        for name, child in list(known[module]._modules.items()):
            if child is not None:
                known[module]._modules[name] = _replaced_norms(child, of, known)
    return known[module]


def _with_values_of(norm: _BatchNorm, new: Norm) -> Norm:
    """``new`` with the very parameters and buffers of ``norm``."""
    new.affine, new.track_running_stats = norm.affine, norm.track_running_stats
    for name, parameter in norm._parameters.items():
        new.register_parameter(name, parameter)
    for name, buffer in norm._buffers.items():
        new.register_buffer(name, buffer)
    return new.train(norm.training)
