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
from detkit._ranges import Count, Positive
from detkit.kernels.switch import serves, takes_over

Shapes = Sequence[tuple[int, int]]


def deformable_attention(
    values: Float[Tensor, "B K heads depth"],
    shapes: Shapes,
    locations: Float[Tensor, "B Q heads points 2"],
    weights: Float[Tensor, "B Q heads points"],
    *,
    counts: Sequence[int] | None = None,
    discrete: bool = False,
) -> Float[Tensor, "B Q channels"]:
    """Sample the values bilinearly at the points of every query and head, and sum them with ``weights``.

    ``values`` are the cells of all levels, concatenated row by row; ``shapes`` are the (rows, columns) of the levels;
    ``locations`` are x, y as fractions of the image, whose borders are 0 and 1: first those on the first level.
    ``counts`` is the number of points on each level (default: all the same). Values outside the map are 0, and so is
    the sample at a location that is not finite. ``values``, ``locations`` and ``weights`` get gradients (first order
    only); weights and locations are used at least in float32.

    With ``discrete`` a sample is the value of one cell, in the map's border for a point outside, and ``locations`` get
    no gradient: column floor(x * columns + 1/2), as published, which is half a cell farther than the nearest one.
    Raises ValueError where shapes disagree. Sources: Zhu et al. 2021, equation 3; Lv et al. 2024, "RT-DETRv2",
    section 3.1, and its release.

    >>> values = torch.tensor([1.0, 3.0]).reshape(1, 2, 1, 1)  # one row of two cells, centers at 1/4 and 3/4
    >>> locations = torch.tensor([[0.25, 0.5], [0.5, 0.5]]).reshape(1, 2, 1, 1, 2)
    >>> deformable_attention(values, [(1, 2)], locations, torch.ones(1, 2, 1, 1)).flatten()
    tensor([1., 2.])
    """
    counts = [weights.shape[-1] // len(shapes)] * len(shapes) if counts is None else list(counts)
    _check_shapes(values, shapes, locations, weights, counts)
    if not discrete and _on_a_kernel(values):
        return _sampled(values, [side for shape in shapes for side in shape], counts, locations, weights)
    if torch.compiler.is_exporting() and not discrete:
        return _sampled_maps(values, shapes, counts, locations, weights)
    return _plain(values, shapes, counts, locations, weights, discrete=discrete)


def _on_a_kernel(values: Tensor) -> bool:
    """Not in an export, which other runtimes shall read, nor where the transforms of ``torch.func`` see operations."""
    if not serves(values):
        return False
    return not (torch.compiler.is_exporting() if torch.compiler.is_compiling() else is_transformed())


def _sampled_maps(values: Tensor, shapes: Shapes, counts: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    """The same for other runtimes, few of which have embedding bags: each level is sampled as a map."""
    images, _, heads, depth = values.shape
    dtype = torch.promote_types(torch.promote_types(locations.dtype, values.dtype), torch.float32)
    cells = [rows * columns for rows, columns in shapes]
    grids = (2 * locations.to(dtype).nan_to_num(nan=-2.0) - 1).clamp(-5, 5)
    grids = grids.transpose(1, 2).flatten(0, 1).split(list(counts), 2)
    shares = weights.to(dtype).transpose(1, 2).flatten(0, 1)[:, None].split(list(counts), 3)
    total = None
    for level, shape, grid, share in zip(values.to(dtype).split(cells, 1), shapes, grids, shares, strict=True):
        maps = level.permute(0, 2, 3, 1).reshape(images * heads, depth, *shape)
        found = F.grid_sample(maps, grid, padding_mode="zeros", align_corners=False)
        summed = (found * share).sum(-1)  # (B heads, depth, Q)
        total = summed if total is None else total + summed
    assert total is not None
    return total.unflatten(0, (images, heads)).permute(0, 3, 1, 2).flatten(2).to(values.dtype)


def _plain(
    values: Tensor,
    shapes: Shapes,
    counts: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    *,
    discrete: bool = False,
) -> Tensor:
    """The definition, as an embedding bag."""
    images, cells, heads, depth = values.shape
    queries = locations.shape[1]
    dtype = torch.promote_types(torch.promote_types(locations.dtype, weights.dtype), torch.float32)
    locations, weights = locations.to(dtype), weights.to(dtype)
    around = _border_cell if discrete else _corners
    places, shares, first = [], [], 0
    for (rows, columns), points, weight in zip(
        shapes, locations.split(list(counts), 3), weights.split(list(counts), 3), strict=True
    ):
        place, share = around(points, rows, columns)
        places.append((place + first).flatten(3))
        shares.append((share * weight[..., None]).flatten(3))
        first = first + rows * columns
    # One row of the table for each cell and head; every query and head is one bag of rows: (B, Q, heads, rows).
    image = torch.arange(images, device=values.device)[:, None, None, None] * cells
    head = torch.arange(heads, device=values.device)[:, None]
    bags = (torch.cat(places, 3) + image) * heads + head
    table, share = values.to(dtype).reshape(-1, depth), torch.cat(shares, 3)
    found = F.embedding_bag(bags.flatten(0, 2), table, mode="sum", per_sample_weights=share.flatten(0, 2))
    return found.reshape(images, queries, heads * depth).to(values.dtype)


def _plain_of_sizes(
    values: Tensor, sizes: Sequence[int], counts: Sequence[int], locations: Tensor, weights: Tensor
) -> Tensor:
    return _plain(values, list(zip(sizes[::2], sizes[1::2], strict=True)), counts, locations, weights)


def _plain_backward(
    upstream: Tensor,
    values: Tensor,
    sizes: Sequence[int],
    counts: Sequence[int],
    locations: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    def of(values: Tensor, *points: Tensor) -> Tensor:
        return _plain_of_sizes(values, sizes, counts, *points)

    return torch.func.vjp(of, values, locations, weights)[1](upstream)


_sampled = torch.library.custom_op("detkit::deformable_attention", _plain_of_sizes, mutates_args=())
_sampled_backward = torch.library.custom_op("detkit::deformable_attention_backward", _plain_backward, mutates_args=())
takes_over(_sampled, _plain_of_sizes, lambda: import_module("detkit.kernels.deformable").sampled)
takes_over(_sampled_backward, _plain_backward, lambda: import_module("detkit.kernels.deformable").sampled_backward)


@_sampled.register_fake
def _(values: Tensor, sizes: Sequence[int], counts: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    images, queries, heads = weights.shape[:3]
    return values.new_empty(images, queries, heads * values.shape[3])


@_sampled_backward.register_fake
def _(
    upstream: Tensor,
    values: Tensor,
    sizes: Sequence[int],
    counts: Sequence[int],
    locations: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    by_values, by_locations, by_weights = (rows.new_empty(rows.shape) for rows in (values, locations, weights))
    return by_values, by_locations, by_weights


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, ctx.sizes, ctx.counts, locations, weights = inputs
    ctx.save_for_backward(values, locations, weights)


def _pull_back(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, Tensor, Tensor]:
    values, *points = ctx.saved_tensors
    by_values, by_locations, by_weights = _sampled_backward(upstream, values, ctx.sizes, ctx.counts, *points)
    return by_values, None, None, by_locations, by_weights


_sampled.register_autograd(_pull_back, setup_context=_keep)


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention: every query and head attends to ``points`` on each of ``levels``.

    ``points`` is one number, or one for each level. Offsets and weights are linear in the query; so are values in the
    memory, and the output in what is found, unless ``projected`` is False. At initialization the weights are equal, and
    the p-th point of head h lies p cells away in the direction of angle 2 pi h / heads. An offset of as many as there
    are points on a level moves a point by ``offset_scale`` times the sides of the query's box. ``discrete`` is as in
    :func:`~detkit.layers.deformable.deformable_attention`. Raises ValueError unless ``heads`` divides ``channels``, and
    if ``points`` are not of ``levels``. Sources: Zhu et al. 2021, section 4.1 and appendix A.4; Lv et al. 2024,
    "RT-DETRv2", section 3.1; without projections: the release of Peng et al. 2024, "D-FINE".

    >>> attention = DeformableAttention(8, 2, levels=2)
    >>> memory, references = torch.zeros(1, 20, 8), torch.full((1, 5, 2, 2), 0.5)
    >>> attention(torch.zeros(1, 5, 8), references, memory, [(4, 4), (2, 2)]).shape
    torch.Size([1, 5, 8])
    """

    @door
    def __init__(
        self,
        channels: Count,
        heads: Count,
        *,
        levels: Count,
        points: Count | Sequence[Count] = 4,
        offset_scale: Positive = 0.5,
        discrete: bool = False,
        projected: bool = True,
    ) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"DeformableAttention: heads={heads} must divide channels={channels}")
        self.points = (points,) * levels if isinstance(points, int) else tuple(points)
        if len(self.points) != levels:
            raise ValueError(
                f"DeformableAttention: points={self.points} must be one number for each of {levels} levels"
            )
        self.heads, self.levels, self.offset_scale, self.discrete = heads, levels, offset_scale, discrete
        self.offsets = nn.Linear(channels, heads * sum(self.points) * 2)
        self.weights = nn.Linear(channels, heads * sum(self.points))
        self.value, self.output = (nn.Linear(channels, channels) if projected else nn.Identity() for _ in range(2))
        for part in (self.offsets, self.weights):
            nn.init.zeros_(part.weight)
        for part in (self.value, self.output):
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
                nn.init.zeros_(part.bias)
        nn.init.zeros_(self.weights.bias)
        with torch.no_grad():
            self.offsets.bias.copy_(_rays(heads, self.points).flatten())

    @door
    def forward(
        self,
        queries: Float[Tensor, "B Q D"],
        references: Float[Tensor, "B Q #levels _"],
        memory: Float[Tensor, "B K D"],
        shapes: Shapes,
        *,
        inside: Bool[Tensor, "B K"] | None = None,
    ) -> Float[Tensor, "B Q D"]:
        """The output of each query, sampled around its ``references``; the caller adds positions to ``queries``.

        References are points (B, Q, levels, 2), with offsets in cells of each level, or boxes (B, Q, levels, 4) as cx,
        cy, w, h, with offsets in box sides; all are fractions of the padded image, and one may do for all levels.
        ``memory`` holds the cells of all levels, ``shapes`` the (rows, columns) of each; cells not ``inside`` (B, K) an
        image count as 0.
        """
        locations, weights = self.look(queries, references, shapes)
        values = self.value(memory)
        if inside is not None:
            values = torch.where(inside[..., None], values, 0)
        values = values.unflatten(2, (self.heads, -1))
        return self.output(
            deformable_attention(values, shapes, locations, weights, counts=self.points, discrete=self.discrete)
        )

    @door
    def look(
        self, queries: Float[Tensor, "B Q D"], references: Float[Tensor, "B Q #levels _"], shapes: Shapes
    ) -> tuple[Float[Tensor, "B Q heads points 2"], Float[Tensor, "B Q heads points"]]:
        """The sampling locations of each query, x and y as fractions of the padded image, and the weight of each point.

        Points are those of the first level, then those of the second, and so on. The weights of a query and head sum to
        1 over all of them. Arguments as for :meth:`forward`.

        >>> attention = DeformableAttention(8, 2, levels=1, points=1)
        >>> locations, weights = attention.look(torch.zeros(1, 1, 8), torch.full((1, 1, 1, 2), 0.5), [(4, 4)])
        >>> locations.flatten().round(decimals=3), weights.flatten()  # a cell to the right, a cell to the left
        (tensor([0.7500, 0.5000, 0.2500, 0.5000]...), tensor([1., 1.]...))
        """
        fits = references.ndim == 4 and references.shape[2] in (1, self.levels) and references.shape[3] in (2, 4)
        if not fits or len(shapes) != self.levels:
            raise ValueError(
                f"DeformableAttention: references have shape {tuple(references.shape)} and shapes are {list(shapes)}; "
                f"allowed is (B, Q, {self.levels}, 2) or (B, Q, {self.levels}, 4), with 1 in place of {self.levels}, "
                f"and {self.levels} shapes"
            )
        weights = self.weights(queries).unflatten(2, (self.heads, -1)).softmax(-1)
        offsets = self.offsets(queries).unflatten(2, (self.heads, -1, 2)).split(self.points, 3)
        around = references[:, :, None, :, None].expand(-1, -1, -1, self.levels, -1, -1).unbind(3)
        located = [
            own[..., :2] + offset * self._unit(own, shape, offset.shape[3])
            for own, offset, shape in zip(around, offsets, shapes, strict=True)
        ]
        return torch.cat(located, 3), weights

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        said = f"heads={self.heads}, levels={self.levels}, points={self.points}, offset_scale={self.offset_scale}"
        return f"{said}, discrete={self.discrete}"

    def _unit(self, references: Tensor, shape: tuple[int, int], points: int) -> Float[Tensor, "... 2"]:
        """What an offset of 1 is on a level of ``shape``, as a fraction of the image."""
        if references.shape[-1] == 4:
            return references[..., 2:] * (self.offset_scale / points)
        return torch.stack([references.new_ones(()) / side for side in reversed(shape)])


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


def _border_cell(
    locations: Float[Tensor, "B Q heads points 2"], rows: int, columns: int
) -> tuple[Tensor, Float[Tensor, "B Q heads points 1"]]:
    """One cell for every point, in the border for points outside; its share is 0 where the location is not finite."""
    good = torch.isfinite(locations).all(-1)
    points = torch.where(good[..., None], locations.detach(), 0)
    # Clamped before they are whole numbers: what is far away has none.
    column, row = (
        (points[..., i] * side + 0.5).floor().clamp(min=0, max=side - 1).long() for i, side in ((0, columns), (1, rows))
    )
    return (row * columns + column)[..., None], good[..., None].to(locations.dtype)


def _rays(heads: int, points: Sequence[int]) -> Float[Tensor, "heads points 2"]:
    """Offsets at the start: a direction for each head, on the border of a square, farther by one for each point."""
    angles = torch.arange(heads) * (2 * math.pi / heads)
    rays = torch.stack((angles.cos(), angles.sin()), -1)
    rays = rays / rays.abs().amax(-1, keepdim=True)
    steps = torch.cat([torch.arange(1, count + 1) for count in points])
    return rays[:, None] * steps[:, None]


def _check_shapes(values: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor, counts: Sequence[int]) -> None:
    cells = sum(rows * columns for rows, columns in shapes)
    fits = values.ndim == 4 and locations.ndim == 5 and locations.shape[:-1] == weights.shape
    if not fits or values.shape[1] != cells or locations.shape[4] != 2:
        raise ValueError(
            f"deformable_attention: values {tuple(values.shape)}, shapes {list(shapes)}, locations "
            f"{tuple(locations.shape)}, weights {tuple(weights.shape)}; allowed is (B, K, heads, depth), K cells in "
            "all levels, (B, Q, heads, points, 2), (B, Q, heads, points)"
        )
    if values.shape[0] != locations.shape[0] or values.shape[2] != locations.shape[2]:
        raise ValueError(
            f"deformable_attention: values {tuple(values.shape)} and locations {tuple(locations.shape)} differ in "
            "images or heads"
        )
    if len(counts) != len(shapes) or sum(counts) != weights.shape[3]:
        raise ValueError(
            f"deformable_attention: counts={list(counts)} for {len(shapes)} levels and {weights.shape[3]} points; give "
            "one for each level, which add up to the points"
        )
