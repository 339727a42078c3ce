"""The exponential moving average of a model in training, usually the better model to evaluate and to ship."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from detkit._door import door
from detkit._inputs import full_checks
from detkit._ranges import Fraction
from detkit._wrappers import unwrapped
from detkit.tricks.finite import largest


class ExponentialMovingAverage(AveragedModel):
    """A running average of a model's values: ``average = decay_t * average + (1 - decay_t) * model``.

    Calling it calls the averaged model, ``.module``: a copy in eval mode, without gradients. Call
    :meth:`update_parameters` after every optimizer step. With ``warmup``, decay_t = min(decay, (1 + t) / (10 + t))
    after t updates, so that the first steps are quickly forgotten; the first update copies the model.

    Floating-point buffers (BatchNorm's running statistics) are averaged like parameters; integer and boolean ones
    (BatchNorm's count of batches) are copied, and so are values that are not finite, such as a mask of -inf.
    ``state_dict`` holds the averaged values under ``module.`` and the count ``n_averaged``: a loaded average continues
    bit for bit. ``decay`` and ``warmup`` are arguments, not state. Move the model to its device before wrapping it: the
    count then stays on the CPU, and an update never waits for an accelerator. Keep parameters in float32: bfloat16 is
    too coarse for steps of 0.0002 of the difference.

    **One bad step does not spoil the average.** A model with a parameter that is not finite, or a NaN in a buffer (a
    NaN image reaches BatchNorm's statistics), is left out: no value and no count changes, and a warning names the
    first bad value. On accelerators no update waits to say so: the values stay, the count goes on without a warning
    unless ``DETKIT_CHECKS=full``.

    Wrappers (DistributedDataParallel, DataParallel, torch.compile) are looked through, here and in the updates. The
    averages of all ranks are equal if their buffers are equal too. Raises ValueError for a decay outside [0, 1].
    Source: Polyak and Juditsky 1992; the warm-up is that of TensorFlow's ExponentialMovingAverage.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> average = ExponentialMovingAverage(model, decay=0.5, warmup=False)
    >>> for value in (0.0, 4.0, 4.0):
    ...     _ = nn.init.constant_(model.weight, value)
    ...     average.update_parameters(model)
    >>> average(torch.ones(1, 1)), int(average.n_averaged)
    (tensor([[3.]]), 3)
    """

    @door
    def __init__(self, model: nn.Module, decay: Fraction = 0.9998, *, warmup: bool = True) -> None:
        super().__init__(unwrapped(model), multi_avg_fn=self._average, use_buffers=True)
        self.decay = decay
        self.warmup = warmup
        self._taken: Tensor | None = None
        self.module.requires_grad_(False)
        self.eval()

    def decay_at(self, updates: int) -> float:
        """The decay of the update after ``updates`` earlier ones; the very first update copies regardless.

        >>> average = ExponentialMovingAverage(nn.Linear(1, 1))
        >>> average.decay_at(2), average.decay_at(10**6)
        (0.25, 0.9998)
        """
        return min(self.decay, (1 + updates) / (10 + updates)) if self.warmup else self.decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Update the average with the model's current values.

        Raises ValueError for a model whose parameters and buffers differ in shape from those of the averaged model.

        >>> model = nn.BatchNorm1d(2)
        >>> average = ExponentialMovingAverage(model)
        >>> _ = model(torch.randn(4, 2))
        >>> average.update_parameters(model)
        >>> int(average.module.num_batches_tracked)
        1
        """
        model = unwrapped(model)
        own, other = _shapes(self.module), _shapes(model)
        if own != other:
            key = next(key for key in [*own, *other] if own.get(key) != other.get(key))
            raise ValueError(
                f"ExponentialMovingAverage.update_parameters: {key} has shape {other.get(key)} in the model and "
                f"{own.get(key)} in the average; allowed is the model that was averaged from the start"
            )
        self._taken = self._is_finite(model)
        waits = self._taken.device.type != "cpu" and self.n_averaged > 0 and not full_checks()
        if not waits and not self._taken:
            warnings.warn(f"ExponentialMovingAverage: an update was left out: {_first_bad(model)}", stacklevel=3)
            return
        super().update_parameters(model)
        for averaged, current in zip(self.module.buffers(), model.buffers(), strict=True):
            if averaged.is_floating_point():  # the average of two infinities is NaN
                averaged.copy_(torch.where(averaged.isfinite(), averaged, current.to(averaged.device)))

    def _is_finite(self, model: nn.Module) -> Tensor:
        """Whether a model may be taken: in buffers, infinities are masks, and so is a NaN that the average has, too."""
        buffers = largest(model.buffers()).isnan() & ~largest(self.module.buffers()).isnan()
        parameters = largest(model.parameters())
        return parameters.isfinite() & ~buffers.to(parameters.device)

    def _average(self, averaged: Any, current: Any, _: Tensor | int) -> None:
        """Called by AveragedModel once for each device and dtype."""
        if self._taken is not None and self._taken.device.type != "cpu":
            taken = self._taken.to(averaged[0].device)
            current = [torch.where(taken, other, own) for own, other in zip(averaged, current, strict=True)]
        if averaged[0].is_floating_point() or averaged[0].is_complex():
            get_ema_multi_avg_fn(self.decay_at(int(self.n_averaged)))(averaged, current, self.n_averaged)
        else:
            for own, other in zip(averaged, current, strict=True):
                own.copy_(other)


def _first_bad(model: nn.Module) -> str:
    """What keeps a model out of the average, in words."""
    bad = {name: ~value.isfinite() for name, value in model.named_parameters()}
    bad |= {name: value.isnan() for name, value in model.named_buffers()}
    name, where = next((name, where) for name, where in bad.items() if where.any())
    return f"{name} holds {int(where.sum())} of {where.numel()} values that are not finite"


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    named = [*model.named_parameters(), *model.named_buffers()]
    return {key: tuple(value.shape) for key, value in named}
