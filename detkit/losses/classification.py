"""Losses on class logits, elementwise or by row. Unreduced: masking, counting and summing stay with the caller."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn.functional import logsigmoid

from detkit._door import door
from detkit._gradient import with_gradient
from detkit._inputs import first_bad, full_checks, looked_at, promote
from detkit.losses.fused import classification as fused
from detkit.structures import IGNORED, NEGATIVE
from detkit.structures.labels import check_labels, check_weights
from detkit.structures.smoothing import smoothed_levels


def focal(x: Tensor, y: Tensor, *, alpha: float | None, gamma: float) -> Tensor:
    """Equation 5 of Lin et al. 2017: alpha_t (1 - p_t)**gamma times the cross-entropy."""
    wrong = y * torch.sigmoid(-x) + (1 - y) * torch.sigmoid(x)  # 1 - p_t
    balance = 1 if alpha is None else alpha * y + (1 - alpha) * (1 - y)  # alpha_t
    return balance * _power(wrong, gamma) * _cross_entropy(x, y)


def focal_of_labels(x: Tensor, labels: Tensor, *, alpha: float | None, gamma: float) -> Tensor:
    """:func:`focal` of logits (n, C) and classes (n): 1 for the true one, 0 for the others, nothing where IGNORED."""
    kept = (labels != IGNORED)[:, None]
    y = (labels[:, None] == torch.arange(x.shape[1], device=x.device)).to(x.dtype)
    return torch.where(kept, focal(torch.where(kept, x, 0), y, alpha=alpha, gamma=gamma), 0)


def varifocal(x: Tensor, q: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """Equation 2 of Zhang et al. 2021: the cross-entropy to the quality q, weighted by q, or alpha p**gamma at 0."""
    return torch.where(q > 0, q, alpha * _power(torch.sigmoid(x), gamma)) * _cross_entropy(x, q)


def quality_focal(x: Tensor, y: Tensor, *, beta: float) -> Tensor:
    """Equation 5 of Li et al. 2020: |y - p|**beta times the cross-entropy."""
    return _power((y - torch.sigmoid(x)).abs(), beta) * _cross_entropy(x, y)


def _cross_entropy(x: Tensor, y: Tensor) -> Tensor:
    return -(y * logsigmoid(x) + (1 - y) * logsigmoid(-x))


def _power(base: Tensor, exponent: float) -> Tensor:
    """The slope of a power below 1 has no end at 0."""
    return base.clamp(min=torch.finfo(base.dtype).tiny) ** exponent


@door
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
    settings = {"alpha": alpha, "gamma": gamma}
    if _are_labels(targets):
        labels = _labels(targets, logits, lowest=NEGATIVE, function="sigmoid_focal_loss").reshape(-1)
        rows = logits.reshape(labels.numel(), logits.shape[-1]).contiguous()  # strided ones are rounded otherwise
        losses = with_gradient(focal_of_labels, fused.focal_of_labels, rows, labels, **settings).reshape(logits.shape)
    else:
        rows, numbers = _numbers(logits, targets, function="sigmoid_focal_loss")
        losses = with_gradient(focal, fused.focal, rows, numbers, **settings).reshape(logits.shape)
    return _weighted(losses, weights, function="sigmoid_focal_loss")


@door
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
    rows, numbers = _numbers(logits, targets, function="varifocal_loss")
    losses = with_gradient(varifocal, fused.varifocal, rows, numbers, alpha=alpha, gamma=gamma)
    return _weighted(losses.reshape(logits.shape), weights, function="varifocal_loss")


@door
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
    labels = _labels(targets, logits, lowest=NEGATIVE, function=function) if _are_labels(targets) else None
    if labels is not None:
        logits = torch.where(labels[..., None] == IGNORED, 0, logits)  # before the formula: a NaN there has a gradient
        targets = _qualities(labels, quality, logits, function)
    elif quality is not None:
        raise ValueError(f"{function}: quality goes with integer targets; these are {targets.dtype}")
    rows, numbers = _numbers(logits, targets, function=function)
    losses = with_gradient(quality_focal, fused.quality_focal, rows, numbers, beta=beta).reshape(logits.shape)
    if labels is not None:
        losses = torch.where(labels[..., None] == IGNORED, 0, losses)
    return _weighted(losses, weights, function=function)


@door
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


@door
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
        if not looked_at(targets) or (targets == IGNORED).any():
            logits = torch.where(targets[..., None] == IGNORED, 0, logits)  # before the logarithm: NaN has a gradient
        scores = _log_softmax(promote(logits))
        hit = scores.gather(-1, targets.clamp(0, logits.shape[-1] - 1)[..., None]).squeeze(-1)
    else:
        _check_dense(targets, logits, function=function)
        scores = _log_softmax(promote(logits))
        hit = (scores * targets.to(scores.dtype)).sum(-1)
    on, off = smoothed_levels(smoothing, logits.shape[-1])
    losses = hit * (off - on)
    if smoothing:
        losses = losses - scores.sum(-1) * off
    if _are_labels(targets):
        losses = torch.where(targets == IGNORED, 0, losses)
    return _weighted(losses, weights, function=function)


def _qualities(labels: Tensor, quality: Tensor | None, logits: Tensor, function: str) -> Tensor:
    """Targets (..., C): the quality, or 1, of the class of each label and 0 for the others."""
    if quality is not None and quality.shape != labels.shape:
        raise ValueError(
            f"{function}: quality has shape {tuple(quality.shape)}; allowed is that of targets, {tuple(labels.shape)}"
        )
    hit = labels[..., None] == torch.arange(logits.shape[-1], device=logits.device)
    return hit if quality is None else torch.where(hit, quality[..., None], 0)


def _numbers(logits: Tensor, targets: Tensor, *, function: str) -> tuple[Tensor, Tensor]:
    """Logits (n) and checked targets (n)."""
    _check_dense(targets, logits, function=function)
    if targets.requires_grad:
        raise ValueError(f"{function}: targets require a gradient but take none; pass targets.detach()")
    targets = targets.float() if targets.dtype == torch.bool else targets
    return logits.reshape(-1), targets.reshape(-1)


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
    check_weights(weights, function=function)
    return losses * promote(weights)


def _log_softmax(logits: Tensor) -> Tensor:
    """Bounded so that neither a difference nor a sum of logits overflows; where the host looks, only if one could."""
    limit = torch.finfo(logits.dtype).max / (4 * max(logits.shape[-1], 1))
    if not looked_at(logits) or not _within(logits.detach(), limit):
        logits = logits.clamp(-limit, limit)
    return logits.log_softmax(-1)


def _within(values: Tensor, limit: float) -> bool:
    """Whether all values lie in -limit..limit; False with a NaN among them."""
    if values.numel() == 0:
        return True
    low, high = values.aminmax()
    return bool(low >= -limit) and bool(high <= limit)


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
