"""Top-k with ties to the lower index on every device, which plain ``topk`` does not guarantee."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def stable_topk(values: Float[Tensor, "*B N"], count: int) -> Int[Tensor, "*B K"]:
    """Indices of the ``count`` largest values of each row (all if fewer), best first, equal ones by rising index.

    values (..., N) without NaN are compared in float32. Returns (..., K) with K = min(count, N). The bits of a value
    and its index are packed into one integer, which has no ties: about twice as fast as plain ``topk``, a dozen times
    as fast as a stable sort. Compiles and exports.

    >>> stable_topk(torch.tensor([0.5, 0.9, 0.5, 0.5]), 3)
    tensor([1, 0, 2])
    """
    length = values.shape[-1]
    # Export traces with symbols, which min() would compare once and for all; torch 2.11's compiler knows only min().
    kept = torch.sym_min(count, length) if isinstance(length, torch.SymInt) else min(count, length)
    if torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export():
        # ONNX has no way to read the bits of a float, but its TopK promises ties to the lower index.
        return values.float().topk(kept, dim=-1).indices
    places = torch.arange(length, device=values.device).flip(0)
    keys = (rising_bits(values) << 32) + places
    return length - 1 - (keys.topk(kept, dim=-1).values & 0xFFFFFFFF)


def falling_order(values: Float[Tensor, "*B N"]) -> Int[Tensor, "*B N"]:
    """Indices that sort each row by falling value, equal ones by rising index: for float32 without NaN on a CPU.

    NumPy sorts integers with vectors, which takes half as long as a stable sort of 30,000 floats.

    >>> falling_order(torch.tensor([0.5, 0.9, 0.5]))
    tensor([1, 0, 2])
    """
    keys = (~rising_bits(values) << 32) + torch.arange(values.shape[-1])
    keys.numpy().sort(axis=-1)
    return keys & 0xFFFFFFFF


def rising_bits(values: Float[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """32-bit integers, stored as int64, that sort as ``values`` in float32, to be packed with an index. 0.0 ties -0.0.

    >>> rising_bits(torch.tensor([-2.0, -1.0, -0.0, 0.0, 3.0])).diff().sign()
    tensor([1, 1, 0, 1])
    """
    values = values.float().contiguous()
    bits = torch.where(values == 0, 0.0, values).view(
        torch.int32
    )  # the bits of -0.0 would be those of the lowest number
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(torch.int64)  # those of a negative number count downwards


def from_rising_bits(bits: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The float32 values that :func:`rising_bits` encoded.

    >>> from_rising_bits(rising_bits(torch.tensor([-2.5, 3.0])))
    tensor([-2.5000,  3.0000])
    """
    bits = bits.to(torch.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32)
