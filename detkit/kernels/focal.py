"""Sigmoid focal loss and its gradient on a GPU: each logit is read once, its loss and its slope are written once.

The formulas are those of the torch form (:mod:`detkit.losses.fused.classification`). Logits and targets of half
precision are read as they are; losses and slopes are float32.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from detkit.structures import IGNORED

LOGITS = 1024
"""Logits of a program."""
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


def focal(
    logits: Tensor, targets: Tensor, needs: tuple[bool, ...], *, scales: tuple[float, float], gamma: float
) -> Any:
    """Losses (n, C) of logits (n, C), and (slopes, None), None unless needed; NotImplemented in double precision.

    ``scales`` weigh targets of 0 and of 1.
    ``targets`` are classes (n): one below 0 is none of the C, and IGNORED costs nothing; or numbers in [0, 1] (n, C).
    """
    if torch.float64 in (logits.dtype, targets.dtype):
        return NotImplemented
    logits, targets = logits.contiguous(), targets.contiguous()
    losses = torch.empty_like(logits, dtype=torch.float32)
    slopes = torch.empty_like(losses) if needs[0] else None
    if count := logits.numel():
        labels = not targets.is_floating_point()
        constants = {"LABELS": labels, "CLASSES": logits.shape[-1], "GAMMA": float(gamma), "LOGITS": LOGITS}
        given = (logits, targets, losses, slopes, count, float(scales[0]), float(scales[1]))
        focal_kernel[(triton.cdiv(count, LOGITS),)](*given, **constants, **OPTIONS)
    return losses, (slopes, None)


UNJUDGED, TINY = tl.constexpr(IGNORED), tl.constexpr(torch.finfo(torch.float32).tiny)


@triton.jit
@no_type_check
def focal_kernel(
    logits,
    targets,
    losses,
    slopes,
    count,
    scale0,
    scale1,
    LABELS: tl.constexpr,
    CLASSES: tl.constexpr,
    GAMMA: tl.constexpr,
    LOGITS: tl.constexpr,
):
    """One program for LOGITS logits, of several rows; ``slopes`` of None are not asked for."""
    start, lanes = tl.program_id(0).to(tl.int64) * LOGITS, tl.arange(0, LOGITS)
    places = start + lanes
    inside = places < count
    x = tl.load(logits + places, mask=inside, other=0.0).to(tl.float32)
    if LABELS:
        column = (start % CLASSES).to(tl.int32) + lanes  # counted from the first row's start: a division of 32 bits
        label = tl.load(targets + start // CLASSES + column // CLASSES, mask=inside, other=UNJUDGED)
        hit, kept = label == column % CLASSES, label != UNJUDGED
        loss, slope = _of_zero(tl.where(hit, -x, x), GAMMA)
        scale = tl.where(hit, scale1, scale0)
        loss, slope = tl.where(kept, loss * scale, 0.0), tl.where(kept, slope * tl.where(hit, -scale, scale), 0.0)
    else:
        y = tl.load(targets + places, mask=inside, other=0.0).to(tl.float32)
        loss, slope = _between(x, y, scale0, scale1, GAMMA)
    tl.store(losses + places, loss, mask=inside)
    if slopes is not None:
        tl.store(slopes + places, slope, mask=inside)


@triton.jit
@no_type_check
def _of_zero(x, GAMMA: tl.constexpr):
    """p**gamma softplus(x) and its slope: what a target of 0 costs; one of 1 costs the same at -x."""
    p, q, rest = _sigmoids(x)
    cost = tl.where(x <= 0, 0.0, x) + rest
    weight = _power(p, GAMMA)
    return cost * weight, (p + GAMMA * (q * cost)) * weight


@triton.jit
@no_type_check
def _between(x, y, scale0, scale1, GAMMA: tl.constexpr):
    """The same for any target in [0, 1]."""
    p, q, rest = _sigmoids(x)
    cost = (tl.where(x <= 0, 0.0, x) - x * y) + rest
    above, below = (1 - y) * p, y * q
    wrong = above + below
    weight = (y * (scale1 - scale0) + scale0) * _power(wrong, GAMMA)
    slope = (p * q / tl.maximum(wrong, TINY)) * cost * (1 - 2 * y) * GAMMA + above - below
    return weight * cost, slope * weight


@triton.jit
@no_type_check
def _sigmoids(x):
    """p = sigmoid(x), q = 1 - p and log(1 + exp(-|x|)), each without cancellation."""
    small = tl.exp(-tl.abs(x))
    larger = 1 / (1 + small)
    smaller = small * larger
    # log(1 + e) = 2 artanh(e / (2 + e)): a series in at most 1/9, exact for small e, too.
    part = small / (2 + small)
    square = part * part
    series = square * (1 / 15) + 1 / 13
    series = series * square + 1 / 11
    series = series * square + 1 / 9
    series = series * square + 1 / 7
    series = series * square + 1 / 5
    series = series * square + 1 / 3
    rest = 2 * (part + part * square * series)
    return tl.where(x < 0, smaller, larger), tl.where(x < 0, larger, smaller), rest


@triton.jit
@no_type_check
def _power(base, EXPONENT: tl.constexpr):
    """base**EXPONENT of a base in [0, 1]."""
    if EXPONENT == 0:
        power = tl.full(base.shape, 1.0, tl.float32)
    elif EXPONENT == 1:
        power = base
    elif EXPONENT == 2:
        power = base * base
    else:
        power = tl.exp2(EXPONENT * tl.log2(tl.maximum(base, TINY)))
    return power
