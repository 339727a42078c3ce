"""Deformable attention: each query attends to a few points of the feature maps that it predicts, not to all cells."""

import math
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from detkit._door import door
from detkit._inputs import is_transformed
from detkit._ranges import Count
from detkit.kernels.switch import serves, takes_over

Shapes = Sequence[tuple[int, int]]


def deformable_attention(
    values: Float[Tensor, "B K heads depth"],
    shapes: Shapes,
    locations: Float[Tensor, "B Q heads levels points 2"],
    weights: Float[Tensor, "B Q heads levels points"],
) -> Float[Tensor, "B Q channels"]:
    """Sample the values bilinearly at the points of every query and head, and sum them with ``weights``.

    ``values`` are the cells of all levels, concatenated row by row; ``shapes`` are the (rows, columns) of the levels;
    ``locations`` are x, y as fractions of the image, whose borders are 0 and 1. Values outside the map are 0, and so is
    the sample at a location that is not finite. ``values``, ``locations`` and ``weights`` get gradients (first order
    only); weights and locations are used at least in float32.
    Raises ValueError where shapes disagree. Source: Zhu et al. 2021, equation 3.

    >>> values = torch.tensor([1.0, 3.0]).reshape(1, 2, 1, 1)  # one row of two cells, centers at 1/4 and 3/4
    >>> locations = torch.tensor([[0.25, 0.5], [0.5, 0.5]]).reshape(1, 2, 1, 1, 1, 2)
    >>> deformable_attention(values, [(1, 2)], locations, torch.ones(1, 2, 1, 1, 1)).flatten()
    tensor([1., 2.])
    """
    _check_shapes(values, shapes, locations, weights)
    if _on_a_kernel(values):
        return _sampled(values, [side for shape in shapes for side in shape], locations, weights)
    return _plain(values, shapes, locations, weights)


def _on_a_kernel(values: Tensor) -> bool:
    """Not in an export, which other runtimes shall read, nor where the transforms of ``torch.func`` see operations."""
    if not serves(values):
        return False
    return not (torch.compiler.is_exporting() if torch.compiler.is_compiling() else is_transformed())


def _plain(values: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """The definition, as an embedding bag."""
    images, cells, heads, depth = values.shape
    queries = locations.shape[1]
    dtype = torch.promote_types(torch.promote_types(locations.dtype, weights.dtype), torch.float32)
    locations, weights = locations.to(dtype), weights.to(dtype)
    places, shares, first = [], [], 0
    for level, (rows, columns) in enumerate(shapes):
        place, share = _corners(locations[:, :, :, level], rows, columns)
        places.append(place + first)
        shares.append(share * weights[:, :, :, level, :, None])
        first = first + rows * columns
    # One row of the table for each cell and head; every query and head is one bag of rows: (B, Q, heads, L P 4).
    image = torch.arange(images, device=values.device)[:, None, None, None] * cells
    head = torch.arange(heads, device=values.device)[:, None]
    bags = (torch.cat(places, 3).flatten(3) + image) * heads + head
    table, share = values.to(dtype).reshape(-1, depth), torch.cat(shares, 3).flatten(3)
    found = F.embedding_bag(bags.flatten(0, 2), table, mode="sum", per_sample_weights=share.flatten(0, 2))
    return found.reshape(images, queries, heads * depth).to(values.dtype)


def _plain_of_sizes(values: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    return _plain(values, list(zip(sizes[::2], sizes[1::2], strict=True)), locations, weights)


def _plain_backward(
    upstream: Tensor, values: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    pull = torch.func.vjp(lambda *given: _plain_of_sizes(given[0], sizes, *given[1:]), values, locations, weights)[1]
    return pull(upstream)


_sampled = torch.library.custom_op("detkit::deformable_attention", _plain_of_sizes, mutates_args=())
_sampled_backward = torch.library.custom_op("detkit::deformable_attention_backward", _plain_backward, mutates_args=())
takes_over(_sampled, _plain_of_sizes, lambda: import_module("detkit.kernels.deformable").sampled)
takes_over(_sampled_backward, _plain_backward, lambda: import_module("detkit.kernels.deformable").sampled_backward)


@_sampled.register_fake
def _(values: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    images, queries, heads = weights.shape[:3]
    return values.new_empty(images, queries, heads * values.shape[3])


@_sampled_backward.register_fake
def _(
    upstream: Tensor, values: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    by_values, by_locations, by_weights = (rows.new_empty(rows.shape) for rows in (values, locations, weights))
    return by_values, by_locations, by_weights


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, ctx.sizes, locations, weights = inputs
    ctx.save_for_backward(values, locations, weights)


def _pull_back(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
    values, locations, weights = ctx.saved_tensors
    by_values, by_locations, by_weights = _sampled_backward(upstream, values, ctx.sizes, locations, weights)
    return by_values, None, by_locations, by_weights


_sampled.register_autograd(_pull_back, setup_context=_keep)


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention: ``points`` on each of ``levels`` for every query and head.

    Offsets and weights are linear in the query. At initialization the weights are equal, and the p-th point of head h
    lies p cells away in the direction of angle 2 pi h / heads. Raises ValueError unless ``heads`` divides
    ``channels``. Source: Zhu et al. 2021, section 4.1 and appendix A.4.

    >>> attention = DeformableAttention(8, 2, levels=2)
    >>> memory, references = torch.zeros(1, 20, 8), torch.full((1, 5, 2, 2), 0.5)
    >>> attention(torch.zeros(1, 5, 8), references, memory, [(4, 4), (2, 2)]).shape
    torch.Size([1, 5, 8])
    """

    @door
    def __init__(self, channels: Count, heads: Count, *, levels: Count, points: Count = 4) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"DeformableAttention: heads={heads} must divide channels={channels}")
        self.heads, self.levels, self.points = heads, levels, points
        self.offsets = nn.Linear(channels, heads * levels * points * 2)
        self.weights = nn.Linear(channels, heads * levels * points)
        self.value, self.output = nn.Linear(channels, channels), nn.Linear(channels, channels)
        for part in (self.offsets, self.weights):
            nn.init.zeros_(part.weight)
        for part in (self.value, self.output):
            nn.init.xavier_uniform_(part.weight)
        for part in (self.weights, self.value, self.output):
            nn.init.zeros_(part.bias)
        with torch.no_grad():
            self.offsets.bias.copy_(_rays(heads, levels, points).flatten())

    @door
    def forward(
        self,
        queries: Float[Tensor, "B Q D"],
        references: Float[Tensor, "B Q levels _"],
        memory: Float[Tensor, "B K D"],
        shapes: Shapes,
        *,
        inside: Bool[Tensor, "B K"] | None = None,
    ) -> Float[Tensor, "B Q D"]:
        """The output of each query, sampled around its ``references``; the caller adds positions to ``queries``.

        References are points (B, Q, levels, 2), with offsets in cells of each level, or boxes (B, Q, levels, 4) as cx,
        cy, w, h, with offsets in box sides; all are fractions of the padded image. ``memory`` holds the cells of all
        levels, ``shapes`` the (rows, columns) of each; cells not ``inside`` (B, K) an image count as 0.
        """
        locations, weights = self.look(queries, references, shapes)
        values = self.value(memory)
        if inside is not None:
            values = torch.where(inside[..., None], values, 0)
        found = deformable_attention(values.unflatten(2, (self.heads, -1)), shapes, locations, weights)
        return self.output(found)

    @door
    def look(
        self, queries: Float[Tensor, "B Q D"], references: Float[Tensor, "B Q levels _"], shapes: Shapes
    ) -> tuple[Float[Tensor, "B Q heads levels points 2"], Float[Tensor, "B Q heads levels points"]]:
        """The sampling locations of each query, x and y as fractions of the padded image, and the weight of each point.

        The weights of a query and head sum to 1 over all levels and points. Arguments as for :meth:`forward`.

        >>> attention = DeformableAttention(8, 2, levels=1, points=1)
        >>> locations, weights = attention.look(torch.zeros(1, 1, 8), torch.full((1, 1, 1, 2), 0.5), [(4, 4)])
        >>> locations.flatten().round(decimals=3), weights.flatten()  # a cell to the right, a cell to the left
        (tensor([0.7500, 0.5000, 0.2500, 0.5000]...), tensor([1., 1.]...))
        """
        if references.ndim != 4 or references.shape[2] != self.levels or references.shape[3] not in (2, 4):
            raise ValueError(
                f"DeformableAttention: references have shape {tuple(references.shape)}; allowed is "
                f"(B, Q, {self.levels}, 2) or (B, Q, {self.levels}, 4)"
            )
        grid = (self.heads, self.levels, self.points)
        weights = self.weights(queries).unflatten(2, (self.heads, -1)).softmax(-1).unflatten(3, grid[1:])
        offsets = self.offsets(queries).unflatten(2, (*grid, 2))
        return references[:, :, None, :, None, :2] + offsets * self._unit(references, shapes), weights

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"heads={self.heads}, levels={self.levels}, points={self.points}"

    def _unit(self, references: Tensor, shapes: Shapes) -> Float[Tensor, "... 2"]:
        """What an offset of 1 is, as a fraction of the image."""
        if references.shape[3] == 4:
            return references[:, :, None, :, None, 2:] * (0.5 / self.points)
        sides = [torch.stack([references.new_ones(()) / side for side in (columns, rows)]) for rows, columns in shapes]
        return torch.stack(sides)[:, None]


def _corners(
    locations: Float[Tensor, "B Q heads points 2"], rows: int, columns: int
) -> tuple[Tensor, Float[Tensor, "B Q heads points 4"]]:
    """The four cells around every point: which they are, and the share of each: 0 for cells outside the map."""
    sizes = torch.stack([locations.new_ones(()) * side for side in (columns, rows)])
    # Farther than one cell from the map nothing is found: the clamp keeps indices small, and has no gradient there.
    points = torch.minimum((locations * sizes - 0.5).nan_to_num(nan=-2.0).clamp(min=-2.0), sizes + 1)
    low = points.detach().floor()
    part = points - low
    (x, y), (right, down) = low.long().unbind(-1), part.unbind(-1)
    places, shares = [], []
    for dy, vertical in ((0, 1 - down), (1, down)):
        for dx, horizontal in ((0, 1 - right), (1, right)):
            column, row = x + dx, y + dy
            good = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
            places.append(torch.where(good, row * columns + column, 0))
            shares.append(torch.where(good, vertical * horizontal, 0))
    return torch.stack(places, -1), torch.stack(shares, -1)


def _rays(heads: int, levels: int, points: int) -> Float[Tensor, "heads levels points 2"]:
    """Offsets at the start: a direction for each head, on the border of a square, farther by one for each point."""
    angles = torch.arange(heads) * (2 * math.pi / heads)
    rays = torch.stack((angles.cos(), angles.sin()), -1)
    rays = rays / rays.abs().amax(-1, keepdim=True)
    steps = torch.arange(1, points + 1)[:, None]
    return (rays[:, None, None] * steps).expand(-1, levels, -1, -1)


def _check_shapes(values: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> None:
    cells = sum(rows * columns for rows, columns in shapes)
    fits = values.ndim == 4 and locations.ndim == 6 and locations.shape[:-1] == weights.shape
    if not fits or values.shape[1] != cells or locations.shape[3] != len(shapes) or locations.shape[5] != 2:
        raise ValueError(
            f"deformable_attention: values {tuple(values.shape)}, shapes {list(shapes)}, locations "
            f"{tuple(locations.shape)}, weights {tuple(weights.shape)}; allowed is (B, K, heads, depth), K cells in "
            "all levels, (B, Q, heads, levels, points, 2), (B, Q, heads, levels, points)"
        )
    if values.shape[0] != locations.shape[0] or values.shape[2] != locations.shape[2]:
        raise ValueError(
            f"deformable_attention: values {tuple(values.shape)} and locations {tuple(locations.shape)} differ in "
            "images or heads"
        )
