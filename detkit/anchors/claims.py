"""Objects that claim the same anchor: pairs as integers in the order of their values, and the highest claim."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from detkit._ranking import from_rising_bits, rising_bits
from detkit.structures import NEGATIVE

SMALLEST_CLAIM = 1e-6
"""A claim needs an IoU above this."""
_NOBODY = torch.iinfo(torch.int64).min
_LAST = 0xFFFFFFFF


def pair_keys(values: Float[Tensor, "*#P"], indices: Int[Tensor, "*#P"]) -> Int[Tensor, "*P"]:
    """Integers in the order of ``values`` in float32; of equal values the one with the lower index is higher.

    >>> pair_keys(torch.tensor([0.5, 0.5, 0.7]), torch.tensor([0, 1, 2])).argsort(descending=True)
    tensor([2, 0, 1])
    """
    return (rising_bits(values) << 32) + (_LAST - indices)


def pairs_of(keys: Int[Tensor, "*P"]) -> tuple[Float[Tensor, "*P"], Int[Tensor, "*P"]]:
    """The values and indices that :func:`pair_keys` packed into these integers.

    >>> pairs_of(pair_keys(torch.tensor([0.5, -2.0]), torch.tensor([7, 0])))
    (tensor([ 0.5000, -2.0000]), tensor([7, 0]))
    """
    return from_rising_bits(keys >> 32), _LAST - (keys & _LAST)


def highest_claim(
    places: Int[Tensor, "B T K"], values: Float[Tensor, "B T K"], claimed: Bool[Tensor, "B T K"], count: int
) -> tuple[Int[Tensor, "B N"], Float[Tensor, "B N"]]:
    """For each of ``count`` anchors the object that claims it with the highest value, and the value.

    Object t of an image claims anchor ``places[..., t, k]`` with ``values[..., t, k]``, compared in float32, where
    ``claimed``. Ties go to the lower object. An anchor that nobody claims is NEGATIVE, with value 0.

    >>> places, claimed = torch.tensor([[[0, 1], [1, 2]]]), torch.tensor([[[True, True], [True, False]]])
    >>> highest_claim(places, torch.tensor([[[0.5, 0.5], [0.7, 0.9]]]), claimed, 3)
    (tensor([[ 0,  1, -1]]), tensor([[0.5000, 0.7000, 0.0000]]))
    """
    objects = torch.arange(places.shape[1], device=places.device)[:, None]
    keys = torch.where(claimed, pair_keys(values, objects), _NOBODY)
    best = keys.new_full((places.shape[0], count), _NOBODY)
    best = best.scatter_reduce(1, places.flatten(1), keys.flatten(1), "amax")
    value, winner = pairs_of(best)
    won = best > _NOBODY
    return torch.where(won, winner, NEGATIVE), torch.where(won, value, 0)
