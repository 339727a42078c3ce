"""Where a detector looks: boxes laid over the image, several shapes at every cell of every feature level."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detkit.structures import Images


class DefaultBoxes(nn.Module):
    """SSD's default boxes: squares of two sizes and rectangles of the first, centred on every cell.

    ``sizes`` holds (size, next size) in pixels for each level; ``aspect_ratios`` the w/h of each level's rectangles,
    each used with its inverse too. The order within a cell is: square of ``size``, square of sqrt(size * next size),
    then r and 1/r for each ratio; cells run row by row, levels from fine to coarse. ``strides`` are the distances
    between centres in pixels; without them they are image size over feature size. Boxes reach beyond the border unless
    ``clip``. Source: Liu et al. 2016, section 2.2, in the order of the authors' released code.

    Raises ValueError where the levels of ``sizes``, ``aspect_ratios`` and ``strides`` differ in number, and for sizes
    or ratios that are not positive.

    >>> anchors = DefaultBoxes([(30, 60), (60, 111)], aspect_ratios=[(2,), (2, 3)], strides=(8, 16))
    >>> anchors.per_cell
    (4, 6)
    >>> features = [torch.zeros(1, 8, 38, 38), torch.zeros(1, 8, 19, 19)]
    >>> images = Images(torch.zeros(1, 3, 300, 300), torch.tensor([[300, 300]]))
    >>> anchors(features, images).shape
    torch.Size([7942, 4])
    """

    def __init__(
        self,
        sizes: Sequence[tuple[float, float]],
        *,
        aspect_ratios: Sequence[Sequence[float]],
        strides: Sequence[float] | None = None,
        clip: bool = False,
    ) -> None:
        super().__init__()
        for name, values in (("aspect_ratios", aspect_ratios), ("strides", strides)):
            if values is not None and len(values) != len(sizes):
                raise ValueError(f"DefaultBoxes: {len(values)} {name} for {len(sizes)} sizes; each level needs its own")
        numbers = [*(side for pair in sizes for side in pair), *(r for level in aspect_ratios for r in level)]
        if not all(0 < number < math.inf for number in [*numbers, *(strides or ())]):
            raise ValueError(f"DefaultBoxes: sizes {sizes}, aspect_ratios and strides must be positive numbers")
        self.clip = clip
        self.strides = None if strides is None else tuple(float(stride) for stride in strides)
        self.levels = len(sizes)
        for level, (pair, ratios) in enumerate(zip(sizes, aspect_ratios, strict=True)):
            shapes = torch.tensor(_default_shapes(pair, ratios), dtype=torch.float32)
            self.register_buffer(f"shapes_{level}", shapes, persistent=False)

    @property
    def per_cell(self) -> tuple[int, ...]:
        """Number of boxes at each cell, level by level: what the heads need to know."""
        return tuple(len(self._shapes(level)) for level in range(self.levels))

    def forward(self, features: Sequence[Float[Tensor, "B _ _ _"]], images: Images) -> Float[Tensor, "N 4"]:
        """Boxes xyxy in pixels of the padded frame, for the grids of ``features``; N sums cells times boxes per cell.

        Only shapes are read, so the result is the same for every image of the batch.
        """
        if len(features) != self.levels:
            raise ValueError(f"DefaultBoxes: got {len(features)} feature levels, was built for {self.levels}")
        frame = images.tensors.shape[-2:]
        boxes = torch.cat([self._level(level, rows.shape[-2:], frame) for level, rows in enumerate(features)])
        if self.clip:
            boxes = torch.stack([boxes[:, i].clamp(0, frame[1 - i % 2]) for i in range(4)], dim=1)
        return boxes.float()

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"per_cell={self.per_cell}, strides={self.strides}, clip={self.clip}"

    def _shapes(self, level: int) -> Tensor:
        return self.get_buffer(f"shapes_{level}")

    def _level(self, level: int, grid: Sequence[int], frame: Sequence[int]) -> Tensor:
        shapes = self._shapes(level)
        steps = [frame[d] / grid[d] if self.strides is None else self.strides[level] for d in (0, 1)]
        ys, xs = ((torch.arange(grid[d], device=shapes.device).to(shapes) + 0.5) * steps[d] for d in (0, 1))
        centres = torch.stack(torch.meshgrid(ys, xs, indexing="ij")[::-1], dim=-1).reshape(-1, 1, 2)
        return torch.cat((centres - shapes / 2, centres + shapes / 2), dim=-1).reshape(-1, 4)


def _default_shapes(sizes: tuple[float, float], ratios: Sequence[float]) -> list[tuple[float, float]]:
    """(width, height) of one cell's boxes."""
    size, between = sizes[0], math.sqrt(sizes[0] * sizes[1])
    stretched = [(size * math.sqrt(r), size / math.sqrt(r)) for ratio in ratios for r in (ratio, 1 / ratio)]
    return [(size, size), (between, between), *stretched]
