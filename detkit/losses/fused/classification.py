"""Fused forms of the losses on logits, under the names of their definitions in :mod:`detkit.losses.classification`.

p = sigmoid(x) and q = 1 - p are each computed where they are small, so that nothing cancels; in-place operations reuse
the few intermediates. Inputs are promoted here, piece by piece.
"""

from typing import Any

import torch
from torch import Tensor

from detkit._gradient import Derivatives
from detkit._inputs import promote
from detkit.kernels.switch import launched, serves
from detkit.structures import IGNORED


def focal(
    x: Tensor, y: Tensor, needs: tuple[bool, ...], *, alpha: float | None, gamma: float
) -> tuple[Tensor, Derivatives]:
    """Focal loss of targets in [0, 1]."""
    if (found := _by_a_kernel(x, y, needs, alpha, gamma)) is not NotImplemented:
        return found
    (x, y, p, q, cost, above, below), scales = _terms(x, y), _scales(alpha)
    wrong = above + below
    weight = (y * (scales[1] - scales[0])).add_(scales[0]).mul_(wrong.pow(gamma))
    losses = weight * cost
    if not needs[0]:
        return losses, (None, None)
    steepness = p.mul_(q).div_(wrong.clamp_(min=torch.finfo(x.dtype).tiny))  # of log(1 - p_t), for 1 - 2 y = 1
    slope = steepness.mul_(cost).mul_(1 - 2 * y).mul_(gamma).add_(above).sub_(below).mul_(weight)
    return losses, (slope, None)


def focal_of_labels(
    x: Tensor, labels: Tensor, needs: tuple[bool, ...], *, alpha: float | None, gamma: float
) -> tuple[Tensor, Derivatives]:
    """Focal loss of classes: a target of 0 everywhere but in the few places that ``labels`` name."""
    if (found := _by_a_kernel(x, labels, needs, alpha, gamma)) is not NotImplemented:
        return found
    x, scales = promote(x), _scales(alpha)
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        return _focal_without_indices(x, labels, scales=scales, gamma=gamma)
    losses, slopes = _of_zero(x, scale=scales[0], gamma=gamma)
    rows = (labels >= 0).nonzero().squeeze(1)
    columns = labels[rows].to(torch.int64)
    cost, slope = _of_zero(-x[rows, columns], scale=scales[1], gamma=gamma)
    losses[rows, columns], slopes[rows, columns] = cost, slope.neg_()
    ignored = (labels == IGNORED).nonzero().squeeze(1)
    losses[ignored], slopes[ignored] = 0, 0
    return losses, (slopes if needs[0] else None, None)


def varifocal(
    x: Tensor, y: Tensor, needs: tuple[bool, ...], *, alpha: float, gamma: float
) -> tuple[Tensor, Derivatives]:
    """Varifocal loss of qualities in [0, 1]."""
    x, y, p, q, cost, above, below = _terms(x, y)
    weight = torch.where(y > 0, y, p.pow(gamma) * alpha)
    growth = torch.where(y > 0, 0, q * cost * gamma)
    return weight * cost, (growth.add_(above).sub_(below).mul_(weight) if needs[0] else None, None)


def quality_focal(x: Tensor, y: Tensor, needs: tuple[bool, ...], *, beta: float) -> tuple[Tensor, Derivatives]:
    """Quality focal loss of targets in [0, 1]."""
    x, y, p, q, cost, above, below = _terms(x, y)
    excess = above - below
    distance = excess.abs()
    weight = distance.pow(beta)
    if not needs[0]:
        return weight * cost, (None, None)
    steepness = (p * q).div_(distance.clamp(min=torch.finfo(x.dtype).tiny)).mul_(cost).mul_(excess.sign()).mul_(beta)
    return weight * cost, (steepness.add_(excess).mul_(weight), None)


def _terms(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """Promoted x and y; p, q, cross-entropy; (1 - y) p and y q, whose difference is p - y and whose sum is 1 - p_t."""
    x = promote(x)
    y = y.to(x.dtype)
    p, q = torch.sigmoid(x), torch.sigmoid(-x)
    cost = torch.addcmul(torch.relu(x), x, y, value=-1)  # with the next line softplus(x) - x y, nothing cancelled
    cost = cost.sub_(torch.minimum(p, q).neg_().log1p_())
    return x, y, p, q, cost, (1 - y).mul_(p), y * q


def _of_zero(x: Tensor, *, scale: float, gamma: float) -> tuple[Tensor, Tensor]:
    """scale p**gamma softplus(x) and its derivative: what a target of 0 costs; one of 1 costs the same at -x."""
    p = torch.sigmoid(x)
    minus_q = p - 1
    cost = torch.relu(x).sub_(torch.maximum(minus_q, -p).log1p_())
    weight = p.pow(gamma).mul_(scale)
    slope = torch.addcmul(p, minus_q, cost, value=-gamma)
    return cost.mul_(weight), slope.mul_(weight)


def _focal_without_indices(
    x: Tensor, labels: Tensor, *, scales: tuple[float, float], gamma: float
) -> tuple[Tensor, Derivatives]:
    """The same without indices: nothing waits for the host, and one kernel does it all."""
    hit = labels[:, None] == torch.arange(x.shape[1], device=x.device)
    kept = labels[:, None] != IGNORED
    losses, slopes = _of_zero(torch.where(hit, -x, x), scale=1, gamma=gamma)
    losses = torch.where(kept, torch.where(hit, losses * scales[1], losses * scales[0]), 0)
    return losses, (torch.where(kept, torch.where(hit, slopes * -scales[1], slopes * scales[0]), 0), None)


def _by_a_kernel(x: Tensor, y: Tensor, needs: tuple[bool, ...], alpha: float | None, gamma: float) -> Any:
    """NotImplemented where there is none, and for compilers, which fuse the torch form themselves."""
    if torch.compiler.is_compiling() or not serves(x):
        return NotImplemented
    from detkit.kernels import focal

    return launched(focal.focal, x, y, needs, scales=_scales(alpha), gamma=gamma)


def _scales(alpha: float | None) -> tuple[float, float]:
    """What alpha_t is for targets of 0 and of 1."""
    return (1.0, 1.0) if alpha is None else (1 - alpha, alpha)
