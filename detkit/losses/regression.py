"""Losses on numbers: deltas of boxes. Unreduced: masking, weighting and summing stay with the caller."""

import torch
from jaxtyping import Float
from torch import Tensor


def smooth_l1_loss(
    predictions: Float[Tensor, "*shape"], targets: Float[Tensor, "*shape"], *, beta: float = 1.0
) -> Float[Tensor, "*shape"]:
    """``d**2 / (2 beta)`` where ``|d| < beta``, else ``|d| - beta / 2``, for each d = predictions - targets.

    Both tensors have one shape and so has the result. ``beta=0`` is the absolute difference. Raises ValueError for
    differing shapes and for a negative or NaN beta. Source: Girshick 2015, equation 3 (beta = 1).

    >>> smooth_l1_loss(torch.tensor([0.5, 3.0]), torch.zeros(2))
    tensor([0.1250, 2.5000])
    """
    if predictions.shape != targets.shape:
        raise ValueError(
            f"smooth_l1_loss: predictions have shape {tuple(predictions.shape)} and targets {tuple(targets.shape)}; "
            "they must be equal"
        )
    if not beta >= 0:
        raise ValueError(f"smooth_l1_loss: beta={beta} must be at least 0")
    distance = (predictions - targets).abs()
    if beta == 0:
        return distance
    return torch.where(distance < beta, distance.clamp(max=beta) ** 2 * (0.5 / beta), distance - 0.5 * beta)
