"""Fused forms of the metric losses' parts: values and derivatives of pairs, in few passes over their matrix.

What they compute stands in :mod:`detkit.retrieval.losses` and :mod:`detkit.retrieval.proxies`, as plainly as possible;
tests/retrieval/test_fused.py holds every form to autograd of that. Choosing by a product is ten times as fast as
``torch.where``, hence the ones and zeros.
"""

import torch
from torch import Tensor

from detkit._gradient import Derivatives

_NEVER = 1e38  # taken from an exponent it leaves nothing of it, and stays finite
_LEAST = -80.0  # exp of it is next to nothing beside 1, and exp of what underflows takes ten times as long


def root(squares: Tensor, needs: tuple[bool, ...], *, least: float) -> tuple[Tensor, Derivatives]:
    """Square roots less ``least``, and slopes of 0 where that is all."""
    roots = squares.clamp(min=least**2).sqrt_()
    slopes = (roots > least).to(roots.dtype).div_(roots).mul_(0.5) if needs[0] else None
    return roots.sub_(least), (slopes,)


def contrasted(
    distances: Tensor, same: Tensor, needs: tuple[bool, ...], *, margin: float, squared: bool
) -> tuple[Tensor, Derivatives]:
    """Distances of equal pairs, and by how much those of different ones are below the margin."""
    own = ones(same, distances.dtype)
    lacks = (margin - distances).clamp_(min=0)
    costs = torch.lerp(lacks, distances, own)
    slopes = None
    if needs[0] and squared:
        slopes = own.mul_(2).sub_(1).mul_(costs)
    elif needs[0]:
        slopes = own.sub_(lacks.sign_().mul_(1 - own))
    return costs.square_().mul_(0.5) if squared else costs, (slopes, None)


def mean_entropies(
    cosines: Tensor, positives: Tensor, negatives: Tensor, needs: tuple[bool, ...], *, temperature: float
) -> tuple[Tensor, Derivatives]:
    """The log of the sum of exp over all pairs of a row, less the mean logit of its positives."""
    logits, equal = cosines / temperature, ones(positives, cosines.dtype)
    equal /= equal.sum(1, keepdim=True).clamp(min=1)
    near = (logits * equal).sum(1)
    logs, shares = _log_sum_(logits, ones(positives | negatives, cosines.dtype))
    return logs - near, (shares.sub_(equal).div_(temperature) if needs[0] else None, None, None)


def soft_extremes(
    cosines: Tensor, chosen: Tensor, needs: tuple[bool, ...], *, steepness: float, base: float
) -> tuple[Tensor, Derivatives]:
    """The soft maximum, for a negative steepness the minimum, of 0 and what the chosen are above the base."""
    logs, shares = _log_sum_((cosines - base).mul_(steepness), ones(chosen, cosines.dtype), plus=1.0)
    return logs.div_(steepness), (shares if needs[0] else None, None)


def ones(chosen: Tensor, dtype: torch.dtype) -> Tensor:
    """1 where chosen, else 0: read as bytes, truth values are converted eight times as fast.

    >>> ones(torch.tensor([True, False]), torch.float32)
    tensor([1., 0.])
    """
    return chosen.view(torch.uint8).to(dtype)


def _log_sum_(values: Tensor, chosen: Tensor, *, plus: float = 0.0) -> tuple[Tensor, Tensor]:
    """The log of ``plus`` and the sum of exp over each row's chosen, and their shares in it; overwrites the values."""
    highest = values.new_zeros(len(values), 1)
    if values.shape[1]:
        lowered = torch.add(values, 1 - chosen, alpha=-_NEVER)
        highest = lowered.amax(1, keepdim=True).clamp_(min=0 if plus else None, max=_NEVER)
        highest.mul_(chosen.amax(1, keepdim=True))
    values.sub_(highest).clamp_(_LEAST, 0).exp_().mul_(chosen)
    sums = values.sum(1, keepdim=True).add_(highest.neg().exp_(), alpha=plus)
    sums += sums == 0  # the log of nothing is 0
    return sums.log().add_(highest).squeeze(1), values.div_(sums)
