"""Learning rate schedules: linear warm-up, then half a cosine or steps down, as torch schedulers."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from detkit._door import door
from detkit._ranges import Ascending, Count, Fraction, Whole


@door
def warmup_cosine(
    optimizer: Optimizer,
    *,
    warmup_steps: Whole,
    total_steps: Count,
    start_factor: Fraction = 0.0,
    final_factor: Fraction = 0.0,
) -> LRScheduler:
    """Linear warm-up to the optimizer's learning rate, then a cosine down; call ``step()`` after each optimizer step.

    With learning rate eta, m ``warmup_steps`` and T = total_steps - m: step i < m runs at eta * i / m (raised to start
    at ``start_factor`` * eta), step m + t at eta / 2 * (1 + cos(pi * t / T)) (raised to end at ``final_factor`` * eta).
    After ``total_steps`` the rate stays at its final value. Each parameter group scales its own rate. With the default
    start of 0 the first step changes nothing; ``start_factor=1 / warmup_steps`` does not waste it.

    Each rate is computed from the step number alone, so a resumed schedule is bit-identical: build optimizer and
    schedule as in the first run, then load both states (which also restores the arguments given here). Its state alone
    is enough for the rates: loading it sets those of the optimizer, which torch's own schedulers leave at the start.
    Loading raises ValueError for a state of another kind, or of another number of parameter groups.

    Raises ValueError unless 0 <= warmup_steps < total_steps and both factors lie in [0, 1].
    Source: SGDR (Loshchilov and Hutter 2017), section 3, one period; warm-up as in Goyal et al. 2017, section 2.2.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    >>> schedule = warmup_cosine(optimizer, warmup_steps=2, total_steps=6)
    >>> rates = []
    >>> for _ in range(7):
    ...     rates.append(round(schedule.get_last_lr()[0], 4))
    ...     optimizer.step(); schedule.step()
    >>> rates
    [0.0, 0.05, 0.1, 0.0854, 0.05, 0.0146, 0.0]
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"warmup_cosine: warmup_steps={warmup_steps} and total_steps={total_steps} must satisfy "
            "0 <= warmup_steps < total_steps: total_steps counts the warm-up too"
        )
    return _Schedule(optimizer, _WarmupCosine(warmup_steps, start_factor, total_steps, final_factor))


@door
def warmup_steps_down(
    optimizer: Optimizer,
    *,
    milestones: Annotated[Sequence[Count], Ascending(strictly=True)],
    factor: Fraction = 0.1,
    warmup_steps: Whole = 0,
    start_factor: Fraction = 0.0,
) -> LRScheduler:
    """Linear warm-up to the optimizer's learning rate, which every one of ``milestones`` multiplies by ``factor``.

    Milestones are numbers of steps: step i runs at eta * factor ** (the number of milestones that are at most i), and
    below ``warmup_steps`` at that times i / warmup_steps, raised to start at ``start_factor``. Two hundred thousand
    steps halved every 7,000 are ``milestones=range(7000, 200_000, 7000), factor=0.5``; DETR's drop after 200 of 300
    epochs is ``milestones=[200 * batches]``. Groups, states and resuming are those of :func:`warmup_cosine`. Raises
    ValueError for milestones that do not ascend, and factors outside [0, 1].

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.8)
    >>> schedule = warmup_steps_down(optimizer, milestones=[3, 5], factor=0.5, warmup_steps=2)
    >>> rates = []
    >>> for _ in range(7):
    ...     rates.append(schedule.get_last_lr()[0])
    ...     optimizer.step(); schedule.step()
    >>> rates
    [0.0, 0.4, 0.8, 0.4, 0.4, 0.2, 0.2]
    """
    return _Schedule(optimizer, _WarmupStepsDown(warmup_steps, start_factor, list(milestones), factor))


class _Schedule(LambdaLR):
    """Rates by the step number, which its state alone restores: torch's leaves the optimizer's until the next step."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, and set the rates that were in force then."""
        groups, saved = self.optimizer.param_groups, state_dict.get("lr_lambdas", [])
        if len(saved) != len(groups):
            raise ValueError(
                f"load_state_dict: the state is of a schedule of {len(saved)} parameter groups; this optimizer has "
                f"{len(groups)}; allowed is the state of a schedule of the same kind and groups"
            )
        own = self.lr_lambdas[0].__dict__
        if any(not isinstance(fields, dict) or fields.keys() != own.keys() for fields in saved):
            raise ValueError(
                f"load_state_dict: the state holds {saved[0]!r:.80}, not {', '.join(own)}: it is of a schedule of "
                "another kind; build the one that was saved"
            )
        super().load_state_dict(state_dict)
        for group, rate in zip(groups, self.get_last_lr(), strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


@dataclass
class _Warmup:
    """The fraction of the base rate at a step. A class, not a lambda, so that LambdaLR saves its fields and it
    pickles."""

    warmup_steps: int
    start_factor: float

    def __call__(self, step: int) -> float:
        if step >= self.warmup_steps:
            return self.after(step)
        return (self.start_factor + (1.0 - self.start_factor) * step / self.warmup_steps) * self.after(step)

    def after(self, step: int) -> float:
        """The fraction without the warm-up."""
        raise NotImplementedError


@dataclass
class _WarmupCosine(_Warmup):
    total_steps: int
    final_factor: float

    def after(self, step: int) -> float:
        done = min(1.0, max(0, step - self.warmup_steps) / (self.total_steps - self.warmup_steps))
        return self.final_factor + (1.0 - self.final_factor) * 0.5 * (1.0 + math.cos(math.pi * done))


@dataclass
class _WarmupStepsDown(_Warmup):
    milestones: list[int]
    factor: float

    def after(self, step: int) -> float:
        return self.factor ** bisect_right(self.milestones, step)
