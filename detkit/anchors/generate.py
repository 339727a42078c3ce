"""Anchor generators: boxes of several shapes at every cell of every feature level."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from detkit._constants import Constants
from detkit._door import door
from detkit._ranges import Positive, Range, Rule, Whole, check, rule_of
from detkit.structures import Anchors, Images

Ratio = Literal["w/h", "h/w"]
Shapes = Sequence[tuple[Positive, Positive]] | Tensor
_SHAPES = rule_of(Sequence[tuple[Positive, Positive]]) or Rule()


class _ShapesOnGrids(Constants):
    """A generator of boxes with given shapes (S, 2), as (width, height), on each level."""

    def __init__(
        self, shapes: Sequence[Shapes], *, strides: Sequence[float] | None, clip: bool, start: float = 0.5
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if strides is not None and len(strides) != len(shapes):
            raise ValueError(f"{name}: {len(strides)} strides for {len(shapes)} sizes; each level needs its own")
        self.clip, self.start, self.levels = clip, start, len(shapes)
        self.strides = None if strides is None else tuple(float(stride) for stride in strides)
        for level, rows in enumerate(shapes):
            self.register_constant(f"shapes_{level}", rows, dtype=torch.float32)

    @property
    def per_cell(self) -> tuple[int, ...]:
        """Number of boxes per cell of each level: what the heads need to know."""
        return tuple(len(self._shapes(level)) for level in range(self.levels))

    def forward(self, features: Sequence[Float[Tensor, "B _ _ _"]], images: Images) -> Anchors:
        """Anchors on the grids of ``features``, boxes xyxy in pixels of the padded frame; N sums cells * boxes per
        cell.

        Only the shapes of the tensors are read, so the anchors are the same for every image of the batch.
        """
        boxes, strides, counts = [], [], []
        for level, (grid, step) in enumerate(zip(*self._grids(features, images), strict=True)):
            shapes = self._shapes(level)
            boxes.append(lay_on_grid(shapes, grid, step, start=self.start))
            counts.append(grid[0] * grid[1] * len(shapes))
            cell = torch.stack([boxes[-1].new_ones(()) * side for side in (step[1], step[0])])
            strides.append(cell.expand(counts[-1], 2))
        return Anchors(self._clipped(torch.cat(boxes), images), torch.cat(strides), tuple(counts))

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"per_cell={self.per_cell}, strides={self.strides}, clip={self.clip}"

    def _shapes(self, level: int) -> Tensor:
        return self.get_buffer(f"shapes_{level}")

    def _grids(
        self, features: Sequence[Tensor], images: Images
    ) -> tuple[Sequence[Sequence[int]], Sequence[Sequence[float]]]:
        """(height, width) of each level's grid, and its stride in both directions."""
        if len(features) != self.levels:
            name = type(self).__name__
            raise ValueError(f"{name}: got {len(features)} feature levels, was built for {self.levels}")
        grids, frame = [rows.shape[-2:] for rows in features], images.tensors.shape[-2:]
        if self.strides is not None:
            if not torch.compiler.is_compiling():
                _check_strides(type(self).__name__, self.strides, grids, frame)
            return grids, [[stride, stride] for stride in self.strides]
        return grids, [[self._step(frame[d], grid[d]) for d in (0, 1)] for grid in grids]

    def _step(self, pixels: int, cells: int) -> float:
        return pixels / _at_least_one(cells)

    def _clipped(self, boxes: Float[Tensor, "N 4"], images: Images) -> Float[Tensor, "N 4"]:
        if not self.clip:
            return boxes
        frame = images.tensors.shape[-2:]
        return torch.stack([boxes[:, i].clamp(0, frame[1 - i % 2]) for i in range(4)], dim=1)


class DefaultBoxes(_ShapesOnGrids):
    """SSD's default boxes: squares of two sizes and rectangles of the first, centered on every cell.

    ``sizes`` holds (size, next size) in pixels for each level; ``aspect_ratios`` the w/h of each level's rectangles,
    each used with its inverse too. The order within a cell is: square of ``size``, square of sqrt(size * next size),
    then r and 1/r for each ratio; cells run row by row, levels from fine to coarse. ``strides`` are the distances
    between centers in pixels; without them they are image size over feature size. Boxes may extend beyond the image
    unless ``clip``; ``max_side`` cuts widths and heights, as torchvision does at the sides of the image. Source: Liu et
    al. 2016, section 2.2, in the order of the authors' released code.

    Raises ValueError if ``sizes``, ``aspect_ratios`` and ``strides`` differ in their number of levels, for sizes,
    ratios, strides or a ``max_side`` that are not positive, and for ``strides`` that do not lay the cells of a level
    over the image, to less than one cell.

    >>> anchors = DefaultBoxes([(30, 60), (60, 111)], aspect_ratios=[(2,), (2, 3)], strides=(8, 16))
    >>> anchors.per_cell
    (4, 6)
    >>> features = [torch.zeros(1, 8, 38, 38), torch.zeros(1, 8, 19, 19)]
    >>> images = Images(torch.zeros(1, 3, 300, 300), torch.tensor([[300, 300]]))
    >>> anchors(features, images).counts
    (5776, 2166)
    """

    @door
    def __init__(
        self,
        sizes: Sequence[tuple[Positive, Positive]],
        *,
        aspect_ratios: Sequence[Sequence[Positive]],
        strides: Sequence[Positive] | None = None,
        clip: bool = False,
        max_side: Annotated[float, Range(0, open=True, infinite=True)] = math.inf,
    ) -> None:
        if len(aspect_ratios) != len(sizes):
            raise ValueError(
                f"DefaultBoxes: {len(aspect_ratios)} aspect_ratios for {len(sizes)} sizes; each level needs its own"
            )
        shapes = [
            [(min(width, max_side), min(height, max_side)) for width, height in _default_shapes(pair, ratios)]
            for pair, ratios in zip(sizes, aspect_ratios, strict=True)
        ]
        super().__init__(shapes, strides=strides, clip=clip)


class GridAnchors(_ShapesOnGrids):
    """Anchors of RPN, RetinaNet, YOLO and the hourglass RPN: every size in every aspect ratio, at every cell.

    ``sizes`` holds the sizes of each level in pixels; an anchor of size s has the area s * s. ``aspect_ratios`` is one
    list for all levels, or a list for each; w/h, unless ``ratio_is="h/w"``. The order within a cell is: every size in
    the first ratio, then every size in the second, and so on; cells run row by row, levels as given. ``shapes`` gives
    (width, height) in pixels instead, a list or a tensor (S, 2) for each level, as YOLO does and
    :func:`~detkit.anchors.cluster_anchors` returns. ``strides`` are the distances between centers in pixels; without
    them they are image size over feature size. Anchors are centered on (i + .5) * stride, or with ``centered=False`` on
    i * stride. ``whole_pixels`` rounds corners, relative to the center, to whole numbers, and strides that are not
    given down to whole numbers. Boxes may extend beyond the image unless ``clip``.

    ``GridAnchors(sizes, aspect_ratios=..., ratio_is="h/w", centered=False, whole_pixels=True)`` are torchvision's
    anchors to the last bit. Source: Ren et al. 2015, section 3.1; Redmon and Farhadi 2017, section 2.

    Raises ValueError if arguments differ in their number of levels or a level has no shape, for numbers that are not
    positive, unless exactly one of ``sizes`` and ``shapes`` is given, and for ``strides`` as :class:`DefaultBoxes`.

    >>> anchors = GridAnchors([(32,), (64,)], aspect_ratios=(0.5, 1, 2), strides=(8, 16))
    >>> anchors.per_cell
    (3, 3)
    >>> features = [torch.zeros(1, 8, 4, 6), torch.zeros(1, 8, 2, 3)]
    >>> images = Images(torch.zeros(1, 3, 32, 48), torch.tensor([[32, 48]]))
    >>> anchors(features, images).boxes[1]
    tensor([-12., -12.,  20.,  20.])
    >>> GridAnchors(shapes=[[(10, 13), (16, 30), (33, 23)]], strides=(8,)).per_cell
    (3,)
    """

    @door
    def __init__(
        self,
        sizes: Sequence[Sequence[Positive]] | None = None,
        *,
        aspect_ratios: Sequence[Positive] | Sequence[Sequence[Positive]] = (0.5, 1.0, 2.0),
        shapes: Sequence[Shapes] | None = None,
        strides: Sequence[Positive] | None = None,
        ratio_is: Ratio = "w/h",
        centered: bool = True,
        whole_pixels: bool = False,
        clip: bool = False,
    ) -> None:
        if (sizes is None) == (shapes is None):
            raise ValueError("GridAnchors: give sizes or shapes, and not both")
        if ratio_is not in ("w/h", "h/w"):
            raise ValueError(f"GridAnchors: ratio_is={ratio_is!r}; allowed is 'w/h' or 'h/w'")
        if sizes is not None:
            rows = _sized_shapes(sizes, aspect_ratios, ratio_is)
        else:
            rows = [_given_shapes(level, i) for i, level in enumerate(shapes or ())]
        if whole_pixels:
            rows = [(level / 2).round() * 2 for level in rows]
        super().__init__(rows, strides=strides, clip=clip, start=0.5 if centered else 0.0)
        self.whole_pixels = whole_pixels

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"{super().extra_repr()}, centered={self.start > 0}, whole_pixels={self.whole_pixels}"

    def _step(self, pixels: int, cells: int) -> float:
        return pixels // _at_least_one(cells) if self.whole_pixels else super()._step(pixels, cells)


@door
def multibox_anchors(
    height: Whole,
    width: Whole,
    sizes: Sequence[Positive],
    ratios: Sequence[Positive],
    *,
    device: torch.device | None = None,
) -> Float[Tensor, "N 4"]:
    """Anchors at every pixel of a map, for n + m - 1 of the n * m pairs of n sizes and m ratios, as fractions of it.

    Returns xyxy (height * width * (n + m - 1), 4) in fractions of width and height, row by row. Within a cell: every
    size with the first ratio, then the first size with every other ratio. ``sizes`` are relative to the height and
    ``ratios`` are w/h in pixels: on a map twice as wide as high, a square has half the fraction in x. Nothing is
    clipped. Raises ValueError for a height or width below 0, no sizes or no ratios, or numbers that are not positive.

    Source: Zhang et al., Dive into Deep Learning, section 14.4, as its code computes.

    >>> multibox_anchors(2, 3, sizes=[0.5, 0.25], ratios=[1, 2])[0]
    tensor([0.0000, 0.0000, 0.3333, 0.5000])
    """
    for name, values in (("sizes", sizes), ("ratios", ratios)):
        if len(values) == 0:
            raise ValueError(f"multibox_anchors: got no {name}; at least one is needed")
    pairs = [*((size, ratios[0]) for size in sizes), *((sizes[0], ratio) for ratio in ratios[1:])]
    down, across = 1 / _at_least_one(height), 1 / _at_least_one(width)
    shapes = [(size * math.sqrt(ratio) * height * across, size / math.sqrt(ratio)) for size, ratio in pairs]
    return lay_on_grid(torch.tensor(shapes, dtype=torch.float32, device=device), (height, width), (down, across))


def lay_on_grid(
    shapes: Float[Tensor, "S 2"], grid: Sequence[int], steps: Sequence[float], *, start: float = 0.5
) -> Float[Tensor, "N 4"]:
    """Boxes xyxy (H * W * S, 4) float32 of every shape (width, height) at every cell of a grid (H, W), row by row.

    Centers are at ((column + start) * steps[1], (row + start) * steps[0]).

    >>> lay_on_grid(torch.tensor([[4.0, 2.0]]), (1, 2), (8, 8))
    tensor([[ 2.,  3.,  6.,  5.],
            [10.,  3., 14.,  5.]])
    """
    halves = shapes.float() / 2  # positions need float32: half precision holds integers only up to 2048
    ys, xs = ((torch.arange(grid[d], device=shapes.device).float() + start) * steps[d] for d in (0, 1))
    centers = torch.stack(torch.meshgrid(ys, xs, indexing="ij")[::-1] * 2, dim=-1)
    return (centers.reshape(-1, 1, 4) + torch.cat((-halves, halves), dim=-1)).reshape(-1, 4)


def _check_strides(
    function: str, strides: Sequence[float], grids: Sequence[Sequence[int]], frame: Sequence[int]
) -> None:
    """Raise ValueError for a level whose cells cover the frame by a whole cell, or more, too little or too much.

    Trunks round their cells up or down, so less than one is left to them; symbols and maps without cells are not
    looked at.
    """
    for level, (stride, grid) in enumerate(zip(strides, grids, strict=True)):
        sides = [(cells, pixels) for cells, pixels in zip(grid, frame, strict=True) if isinstance(cells, int) and cells]
        if any(isinstance(pixels, int) and abs(cells * stride - pixels) >= stride for cells, pixels in sides):
            raise ValueError(
                f"{function}: strides[{level}]={stride:g} lays {grid[0]} x {grid[1]} cells on images of {frame[0]} x "
                f"{frame[1]} pixels (height x width); allowed is what covers them to less than one cell, or "
                "strides=None, which takes image size over feature size"
            )


def _at_least_one(cells: int) -> Any:
    """A feature map without cells must not cause a division by zero; in export symbols cannot be compared."""
    return torch.sym_max(cells, 1) if isinstance(cells, torch.SymInt) else max(cells, 1)


def _default_shapes(sizes: tuple[float, float], ratios: Sequence[float]) -> list[tuple[float, float]]:
    """(width, height) of the boxes of a cell."""
    size, between = sizes[0], math.sqrt(sizes[0] * sizes[1])
    stretched = [(size * math.sqrt(r), size / math.sqrt(r)) for ratio in ratios for r in (ratio, 1 / ratio)]
    return [(size, size), (between, between), *stretched]


def _sized_shapes(
    sizes: Sequence[Sequence[float]], ratios: Sequence[float] | Sequence[Sequence[float]], ratio_is: Ratio
) -> list[Tensor]:
    """(S, 2) of each level, ratio-major, in float32 like torchvision, so that rounding agrees to the last bit."""
    shared = not any(isinstance(ratio, Sequence) for ratio in ratios)
    per_level = [ratios] * len(sizes) if shared else ratios
    if len(per_level) != len(sizes):
        raise ValueError(f"GridAnchors: {len(per_level)} aspect_ratios for {len(sizes)} sizes; each level needs one")
    shapes = []
    for i, (level, own) in enumerate(zip(sizes, per_level, strict=True)):
        size, ratio = (torch.tensor(values, dtype=torch.float32, device="cpu") for values in (level, own))
        stretched = ratio.sqrt()
        long, short = ((side[:, None] * size).flatten() for side in (stretched, 1 / stretched))
        shapes.append(torch.stack((long, short) if ratio_is == "w/h" else (short, long), dim=1))
        _check_some(shapes[-1], i)
    return shapes


def _given_shapes(shapes: Shapes, level: int) -> Tensor:
    rows = torch.as_tensor(shapes, dtype=torch.float32, device="cpu")
    if rows.ndim != 2 or rows.shape[1] != 2:
        raise ValueError(f"GridAnchors: shapes[{level}] has shape {tuple(rows.shape)}; allowed is (S, 2), width first")
    check(rows.tolist(), _SHAPES, f"GridAnchors: shapes[{level}]")
    _check_some(rows, level)
    return rows


def _check_some(shapes: Tensor, level: int) -> None:
    if len(shapes) == 0:
        raise ValueError(f"GridAnchors: level {level} has no shapes; each needs at least one")
