"""Losses on class logits, elementwise or by row. Unreduced: masking, counting and summing stay with the caller."""

from functools import partial

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from detkit._inputs import first_bad, full_checks, promote
from detkit.losses.analytic import Derivatives, with_gradient
from detkit.losses.labels import check_labels
from detkit.structures import IGNORED, NEGATIVE


def sigmoid_focal_loss(
    logits: Float[Tensor, "... C"],
    targets: Shaped[Tensor, "..."],
    *,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    weights: Shaped[Tensor, "..."] | None = None,
) -> Float[Tensor, "... C"]:
    """``alpha_t * (1 - p_t)**gamma * BCE`` of each logit: binary cross-entropy that looks away from easy examples.

    logits (..., C), background has no column; ``targets`` either integers (...): class 0..C-1, NEGATIVE (all C are 0)
    or IGNORED (no loss, no gradient), which is faster; or numbers (..., C) in [0, 1], soft ones too, which take no
    gradient. With y the target and p = sigmoid(logit), p_t = p y + (1 - p)(1 - y), and alpha_t = alpha y +
    (1 - alpha)(1 - y), or 1 for ``alpha=None``. ``weights``, broadcast to (..., C), multiply the result. Half precision
    is promoted. Raises ValueError for wrong shapes, alpha outside [0, 1], gamma < 0, targets that require a gradient,
    and labels out of range (on accelerators with ``DETKIT_CHECKS=full``). Source: Lin et al. 2017, equation 5.

    >>> sigmoid_focal_loss(torch.zeros(3, 2), torch.tensor([1, -1, -2]))
    tensor([[0.1300, 0.0433],
            [0.1300, 0.1300],
            [0.0000, 0.0000]])
    """
    if alpha is not None and not 0 <= alpha <= 1:
        raise ValueError(f"sigmoid_focal_loss: alpha={alpha} must lie in [0, 1], or be None for no balance")
    _check_exponent(gamma, name="gamma", function="sigmoid_focal_loss")
    scales = (1.0, 1.0) if alpha is None else (1 - alpha, alpha)
    if _are_labels(targets):
        targets = _labels(targets, logits, lowest=NEGATIVE, function="sigmoid_focal_loss")
        formula = partial(_focal_of_labels, scales=scales, gamma=gamma)
        rows = logits.reshape(targets.numel(), logits.shape[-1]).contiguous()  # strided ones are rounded otherwise
        losses = with_gradient(formula, rows, targets.reshape(-1)).reshape(logits.shape)
    else:
        formula = partial(_focal, scales=scales, gamma=gamma)
        losses = _elementwise(formula, logits, targets, function="sigmoid_focal_loss")
    return _weighted(losses, weights, function="sigmoid_focal_loss")


def varifocal_loss(
    logits: Float[Tensor, "*shape"],
    targets: Shaped[Tensor, "*shape"],
    *,
    alpha: float = 0.75,
    gamma: float = 2.0,
    weights: Shaped[Tensor, "..."] | None = None,
) -> Float[Tensor, "*shape"]:
    """``q * BCE`` where the target q is positive, ``alpha * p**gamma * BCE`` where it is 0: ranks by quality.

    logits and targets of one shape; q in [0, 1], the IoU of a positive say, takes no gradient. p = sigmoid(logit).
    ``weights``, broadcast, multiply the result; half precision is promoted. Raises ValueError for wrong shapes, alpha
    or gamma below 0, targets that require a gradient. Source: Zhang et al. 2021 (VarifocalNet), equation 2.

    >>> varifocal_loss(torch.zeros(2), torch.tensor([0.0, 0.8]))
    tensor([0.1300, 0.5545])
    """
    _check_exponent(alpha, name="alpha", function="varifocal_loss")
    _check_exponent(gamma, name="gamma", function="varifocal_loss")
    formula = partial(_varifocal, alpha=alpha, gamma=gamma)
    return _weighted(
        _elementwise(formula, logits, targets, function="varifocal_loss"), weights, function="varifocal_loss"
    )


def quality_focal_loss(
    logits: Float[Tensor, "... C"],
    targets: Shaped[Tensor, "..."],
    *,
    beta: float = 2.0,
    quality: Shaped[Tensor, "..."] | None = None,
    weights: Shaped[Tensor, "..."] | None = None,
) -> Float[Tensor, "... C"]:
    """``|y - p|**beta * BCE`` of each logit: focal loss for soft targets y, p = sigmoid(logit).

    logits (..., C); ``targets`` numbers (..., C) in [0, 1]; or integers (...): class 0..C-1, NEGATIVE or IGNORED, and
    then ``quality`` (...) is the target of that class, 1 if left out. Neither takes a gradient. ``weights``, broadcast
    to (..., C), multiply the result; half precision is promoted. Raises ValueError as :func:`sigmoid_focal_loss`, and
    for a quality without integer targets. Source: Li et al. 2020 (Generalized Focal Loss), equation 5.

    >>> quality_focal_loss(torch.zeros(2, 2), torch.tensor([1, -2]), quality=torch.tensor([0.5, 1.0]))
    tensor([[0.1733, 0.0000],
            [0.0000, 0.0000]])
    """
    function = "quality_focal_loss"
    _check_exponent(beta, name="beta", function=function)
    formula = partial(_quality_focal, beta=beta)
    if not _are_labels(targets):
        if quality is not None:
            raise ValueError(f"{function}: quality goes with integer targets; these are {targets.dtype}")
        return _weighted(_elementwise(formula, logits, targets, function=function), weights, function=function)
    targets = _labels(targets, logits, lowest=NEGATIVE, function=function)
    if quality is not None and quality.shape != targets.shape:
        raise ValueError(
            f"{function}: quality has shape {tuple(quality.shape)}; allowed is that of targets, {tuple(targets.shape)}"
        )
    logits = torch.where(targets[..., None] == IGNORED, 0, logits)  # before the formula: a NaN there has a gradient
    hit = targets[..., None] == torch.arange(logits.shape[-1], device=logits.device)
    soft = hit if quality is None else torch.where(hit, quality[..., None], 0)
    losses = _elementwise(formula, logits, soft, function=function)
    return _weighted(torch.where(targets[..., None] == IGNORED, 0, losses), weights, function=function)


def distribution_focal_loss(
    logits: Float[Tensor, "... bins"], targets: Shaped[Tensor, "..."], *, weights: Shaped[Tensor, "..."] | None = None
) -> Float[Tensor, "..."]:
    """Cross-entropy of the two bins around a continuous target, each by its nearness: (..., n + 1) to (...).

    Bin i of the n + 1 stands for the number i; ``targets`` (...) lie in [0, n], those outside are moved to the ends.
    Both take a gradient. ``weights``, broadcast to (...), multiply the result; half precision is promoted. Raises
    ValueError for wrong shapes. Source: Li et al. 2020 (Generalized Focal Loss), equation 6.

    >>> distribution_focal_loss(torch.tensor([[0.0, 0.0, 2.0]]), torch.tensor([1.25]))
    tensor([1.7395])
    """
    if logits.ndim == 0 or logits.shape[:-1] != targets.shape or logits.shape[-1] < 2:
        raise ValueError(
            f"distribution_focal_loss: logits have shape {tuple(logits.shape)} and targets {tuple(targets.shape)}; "
            "allowed is (..., n + 1) and (...), with n of at least 1"
        )
    logits, bins = promote(logits), logits.shape[-1] - 1
    targets = targets.to(logits.dtype).clamp(0, bins)
    left = targets.detach().nan_to_num(0).floor().clamp(max=bins - 1)  # a NaN must not index
    nearness = targets - left
    place = left.to(torch.int64)[..., None]
    scores = _log_softmax(logits)
    lower, upper = (scores.gather(-1, place + step).squeeze(-1) for step in (0, 1))
    return _weighted(-(lower * (1 - nearness) + upper * nearness), weights, function="distribution_focal_loss")


def label_smoothed_cross_entropy(
    logits: Float[Tensor, "... C"],
    targets: Shaped[Tensor, "..."],
    *,
    smoothing: float = 0.1,
    weights: Shaped[Tensor, "..."] | None = None,
) -> Float[Tensor, "..."]:
    """Softmax cross-entropy to ``1 - smoothing`` for the true class and ``smoothing / (C - 1)`` for each other.

    logits (..., C) give (...); ``targets`` integers (...): class 0..C-1 or IGNORED (no loss, no gradient); or
    distributions (..., C), each number y then taken as y (1 - smoothing) + (1 - y) smoothing / (C - 1). torch's
    ``label_smoothing`` spreads over all C classes: it is the same at smoothing * C / (C - 1). ``weights``, broadcast to
    (...), multiply the result; half precision is promoted. Raises ValueError for wrong shapes, labels out of range (on
    accelerators with ``DETKIT_CHECKS=full``), smoothing outside [0, 1] or above 0 with one class.

    >>> label_smoothed_cross_entropy(torch.linspace(-1, 1, 10)[None], torch.tensor([3]))
    tensor([2.7947])
    """
    function = "label_smoothed_cross_entropy"
    if not 0 <= smoothing <= 1 or (smoothing and logits.ndim and logits.shape[-1] < 2):
        raise ValueError(f"{function}: smoothing={smoothing} must lie in [0, 1], and be 0 for fewer than 2 classes")
    if _are_labels(targets):
        targets = _labels(targets, logits, lowest=0, function=function)
        logits = torch.where(targets[..., None] == IGNORED, 0, logits)  # before the logarithm: NaN has a gradient there
        scores = _log_softmax(promote(logits))
        hit = scores.gather(-1, targets.clamp(0, logits.shape[-1] - 1)[..., None]).squeeze(-1)
    else:
        _check_dense(targets, logits, function=function)
        scores = _log_softmax(promote(logits))
        hit = (scores * targets.to(scores.dtype)).sum(-1)
    rest = smoothing / max(logits.shape[-1] - 1, 1)
    losses = hit * (rest + smoothing - 1)
    if smoothing:
        losses = losses - scores.sum(-1) * rest
    if _are_labels(targets):
        losses = torch.where(targets == IGNORED, 0, losses)
    return _weighted(losses, weights, function=function)


def _elementwise(formula: partial, logits: Tensor, targets: Tensor, *, function: str) -> Tensor:
    _check_dense(targets, logits, function=function)
    if targets.requires_grad:
        raise ValueError(f"{function}: targets require a gradient but take none; pass targets.detach()")
    return with_gradient(formula, logits.reshape(-1), targets.reshape(-1)).reshape(logits.shape)


def _weighted(losses: Tensor, weights: Tensor | None, *, function: str) -> Tensor:
    if weights is None:
        return losses
    fits = weights.ndim <= losses.ndim and all(
        size in (1, wanted) for size, wanted in zip(reversed(weights.shape), reversed(losses.shape), strict=False)
    )
    if not fits:
        raise ValueError(
            f"{function}: weights have shape {tuple(weights.shape)}; allowed: what broadcasts to {tuple(losses.shape)}"
        )
    return losses * promote(weights)


# Formulas of detkit.losses.analytic. p = sigmoid(x) and q = 1 - p are each computed where they are small, and in-place
# operations reuse the few intermediates.


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


def _focal_of_labels(
    x: Tensor, labels: Tensor, needs: tuple[bool, ...], *, scales: tuple[float, float], gamma: float
) -> tuple[Tensor, Derivatives]:
    x = promote(x)
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        return _focal_of_labels_fused(x, labels, scales=scales, gamma=gamma)
    losses, slopes = _of_zero(x, scale=scales[0], gamma=gamma)
    rows = (labels >= 0).nonzero().squeeze(1)
    columns = labels[rows].to(torch.int64)
    cost, slope = _of_zero(-x[rows, columns], scale=scales[1], gamma=gamma)
    losses[rows, columns], slopes[rows, columns] = cost, slope.neg_()
    ignored = (labels == IGNORED).nonzero().squeeze(1)
    losses[ignored], slopes[ignored] = 0, 0
    return losses, (slopes if needs[0] else None, None)


def _focal_of_labels_fused(
    x: Tensor, labels: Tensor, *, scales: tuple[float, float], gamma: float
) -> tuple[Tensor, Derivatives]:
    """The same without indices: nothing waits for the host, and one kernel does it all."""
    hit = labels[:, None] == torch.arange(x.shape[1], device=x.device)
    kept = labels[:, None] != IGNORED
    losses, slopes = _of_zero(torch.where(hit, -x, x), scale=1, gamma=gamma)
    losses = torch.where(kept, torch.where(hit, losses * scales[1], losses * scales[0]), 0)
    return losses, (torch.where(kept, torch.where(hit, slopes * -scales[1], slopes * scales[0]), 0), None)


def _focal(
    x: Tensor, y: Tensor, needs: tuple[bool, ...], *, scales: tuple[float, float], gamma: float
) -> tuple[Tensor, Derivatives]:
    x, y, p, q, cost, above, below = _terms(x, y)
    wrong = above + below
    weight = (y * (scales[1] - scales[0])).add_(scales[0]).mul_(wrong.pow(gamma))
    losses = weight * cost
    if not needs[0]:
        return losses, (None, None)
    steepness = p.mul_(q).div_(wrong.clamp_(min=torch.finfo(x.dtype).tiny))  # of log(1 - p_t), for 1 - 2 y = 1
    slope = steepness.mul_(cost).mul_(1 - 2 * y).mul_(gamma).add_(above).sub_(below).mul_(weight)
    return losses, (slope, None)


def _varifocal(
    x: Tensor, y: Tensor, needs: tuple[bool, ...], *, alpha: float, gamma: float
) -> tuple[Tensor, Derivatives]:
    x, y, p, q, cost, above, below = _terms(x, y)
    weight = torch.where(y > 0, y, p.pow(gamma) * alpha)
    growth = torch.where(y > 0, 0, q * cost * gamma)
    return weight * cost, (growth.add_(above).sub_(below).mul_(weight) if needs[0] else None, None)


def _quality_focal(x: Tensor, y: Tensor, needs: tuple[bool, ...], *, beta: float) -> tuple[Tensor, Derivatives]:
    x, y, p, q, cost, above, below = _terms(x, y)
    excess = above - below
    distance = excess.abs()
    weight = distance.pow(beta)
    if not needs[0]:
        return weight * cost, (None, None)
    steepness = (p * q).div_(distance.clamp(min=torch.finfo(x.dtype).tiny)).mul_(cost).mul_(excess.sign()).mul_(beta)
    return weight * cost, (steepness.add_(excess).mul_(weight), None)


def _log_softmax(logits: Tensor) -> Tensor:
    """Bounded so that neither a difference nor a sum of logits overflows."""
    limit = torch.finfo(logits.dtype).max / (4 * max(logits.shape[-1], 1))
    return logits.clamp(-limit, limit).log_softmax(-1)


def _are_labels(targets: Tensor) -> bool:
    return not targets.is_floating_point() and targets.dtype != torch.bool


def _check_exponent(value: float, *, name: str, function: str) -> None:
    if not 0 <= value < float("inf"):
        raise ValueError(f"{function}: {name}={value} must be finite and at least 0")


def _check_dense(targets: Tensor, logits: Tensor, *, function: str) -> None:
    if targets.shape != logits.shape:
        raise ValueError(
            f"{function}: logits have shape {tuple(logits.shape)} and targets {tuple(targets.shape)} "
            f"({targets.dtype}); allowed are numbers of one shape, or integer classes of all but the last dimension"
        )
    if full_checks() and not ((targets >= 0) & (targets <= 1)).all():
        index, count = first_bad(~((targets >= 0) & (targets <= 1)))
        place = ", ".join(map(str, index))
        raise ValueError(
            f"{function}: targets[{place}]={targets[index].item():g} must lie in [0, 1]; "
            f"{count} of {targets.numel()} do not"
        )


def _labels(labels: Tensor, logits: Tensor, *, lowest: int, function: str) -> Tensor:
    """Checked labels in int64: bytes cannot hold the special ones."""
    if logits.ndim == 0 or labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"{function}: logits have shape {tuple(logits.shape)} and integer targets {tuple(labels.shape)}; "
            "allowed is (..., C) and (...)"
        )
    labels = labels.to(torch.int64)
    check_labels(labels, logits.shape[-1], lowest=lowest, function=function, name="targets")
    return labels
