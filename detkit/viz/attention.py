"""Attention maps: the weights of every attention layer of a model, recorded while it runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from detkit.layers.transformer import Attention, KeyValues


@contextmanager
def attention_maps(model: nn.Module) -> Iterator[dict[str, list[Float[Tensor, "B heads Q K"]]]]:
    """Record the weights of every :class:`~detkit.layers.Attention` in ``model`` inside the block, by the layer's name.

    Each name has a list with one detached tensor (B, heads, Q, K) per call: the weights of K keys for Q queries, before
    dropout. The model's results do not change. If a layer attends to a feature map, its keys are the cells, row by row.
    Deformable attention attends to points, not cells, and is not recorded.

    >>> import torch
    >>> from detkit.layers.transformer import EncoderLayer
    >>> layer = EncoderLayer(8, 2, hidden=16)
    >>> with attention_maps(layer) as maps:
    ...     _ = layer(torch.rand(1, 5, 8))
    >>> {name: [tuple(weights.shape) for weights in calls] for name, calls in maps.items()}
    {'attention': [(1, 2, 5, 5)]}
    """
    parts = {name: part for name, part in model.named_modules() if isinstance(part, Attention)}
    maps: dict[str, list[Tensor]] = {name: [] for name in parts}
    outer = {name: vars(part)["attend"] for name, part in parts.items() if "attend" in vars(part)}  # of a block around
    for name, part in parts.items():
        part.attend = partial(_recorded, part, part.attend, maps[name])
    try:
        yield maps
    finally:
        for name, part in parts.items():
            del part.attend  # the class's own again
            if name in outer:
                part.attend = outer[name]


def _recorded(
    part: Attention, attend: Any, calls: list[Tensor], queries: Tensor, among: KeyValues, **rules: Any
) -> Tensor:
    """``attend`` of these arguments, with the weights of ``part`` appended to ``calls``."""
    calls.append(part.attention_weights(queries, among, **rules).detach())
    return attend(queries, among, **rules)
