"""The best few of many, with ties to the lower index on every device: what plain ``topk`` does not promise."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.types import IntLikeType


def stable_topk(values: Float[Tensor, "*B N"], count: IntLikeType) -> Int[Tensor, "*B K"]:
    """Indices of the ``count`` largest values of each row, best first, equal ones by rising index.

    values (..., N) are at least 0 and compared in float32; ``count`` is at most N. The bits of a value and its index
    are packed into one integer, which has no ties: about twice as fast as plain ``topk``, a dozen times as a stable
    sort. Compiles and exports.

    >>> stable_topk(torch.tensor([0.5, 0.9, 0.5, 0.5]), 3)
    tensor([1, 0, 2])
    """
    last = values.shape[-1] - 1
    places = torch.arange(values.shape[-1], device=values.device).flip(0)
    positive_zero = values.float().contiguous() + 0.0  # the bits of -0.0 would sort below everything
    keys = (positive_zero.view(torch.int32).to(torch.int64) << 32) + places
    return last - (keys.topk(count, dim=-1).values & 0xFFFFFFFF)
