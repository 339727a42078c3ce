"""The learning rate schedule: linear warm-up, then half a cosine, as a torch scheduler."""

import math
from dataclasses import dataclass

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from detkit._door import door
from detkit._ranges import Count, Fraction, Whole


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
    start of 0 the first step changes nothing; ``start_factor=1 / warmup_steps`` does not waste it. Each rate is
    computed from the step number alone, so a resumed schedule is bit-identical: build optimizer and schedule as in the
    first run, then load both states (which also restores the arguments given here).

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
    return LambdaLR(optimizer, _WarmupCosine(warmup_steps, total_steps, start_factor, final_factor))


@dataclass
class _WarmupCosine:
    """The fraction of the base rate at a step. A class, not a lambda, so that LambdaLR saves its fields and it
    pickles."""

    warmup_steps: int
    total_steps: int
    start_factor: float
    final_factor: float

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.start_factor + (1.0 - self.start_factor) * step / self.warmup_steps
        done = min(1.0, (step - self.warmup_steps) / (self.total_steps - self.warmup_steps))
        return self.final_factor + (1.0 - self.final_factor) * 0.5 * (1.0 + math.cos(math.pi * done))
