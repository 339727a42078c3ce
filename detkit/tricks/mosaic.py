"""Mosaic: four images around a random point of one canvas, so that a batch shows more objects, and smaller ones."""

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from detkit._door import door
from detkit._inputs import white_of
from detkit._ranges import Ascending, Count, Fraction, NotNegative, Positive
from detkit.structures import FIELDS, VOID
from detkit.structures.rows import join_rows
from detkit.tricks.pieces import Piece, View, draw_piece, place_target
from detkit.tricks.samples import Batch, BatchAugmentation, between, others

_GRAY = 114 / 255


class Mosaic(BatchAugmentation):
    """Each image and three others of the batch around a random point of a canvas of ``size`` (height, width).

    The point lies in the part ``center_range`` of height and width. Image i is at the upper left of it; the others are
    drawn, none twice. In a batch below four, images repeat: a single one fills all quarters. Each is resized, its
    aspect kept, by a factor in ``scale_range`` relative to fitting the canvas. One that is larger than its quarter
    shows a random part, a smaller one touches the point; what stays uncovered is ``fill`` between black and white.

    An object stays if ``min_visible`` of the area of its box is in view, with sides of at least ``min_size`` pixels,
    and a pixel of its mask, where there are masks; a crowd as long as any of its box is in view. A cut box is the part
    of the box that is in view, also where the mask in view would have a smaller one. Keypoints out of view become
    0, 0, 0. Areas are those of the masks, without masks as much smaller or larger as the boxes in view are. All else,
    and the errors, as in :class:`BatchAugmentation`.

    Source: Bochkovskiy, Wang and Liao 2020 (YOLOv4), section 3.3, which gives no numbers.

    >>> images = [torch.zeros(3, 40, 60), torch.zeros(3, 80, 50)]
    >>> targets = [{"boxes": torch.tensor([[5.0, 5, 35, 35]]), "labels": torch.tensor([i])} for i in range(2)]
    >>> mosaic = Mosaic((64, 96), scale_range=(0.5, 0.5))
    >>> images, targets = mosaic(images, targets, generator=torch.Generator().manual_seed(0))
    >>> images[0].shape, targets[0]["labels"]
    (torch.Size([3, 64, 96]), tensor([0, 1, 0, 1]))
    """

    draws = 2 + 3 + 4 * 3  # the point, the partners, and of each image the factor and which part of it

    @door
    def __init__(
        self,
        size: tuple[Count, Count],
        *,
        scale_range: Annotated[tuple[Positive, Positive], Ascending()] = (0.5, 1.5),
        center_range: Annotated[tuple[Fraction, Fraction], Ascending()] = (0.25, 0.75),
        min_visible: Fraction = 0.1,
        min_size: NotNegative = 1.0,
        fill: Fraction = _GRAY,
        probability: Fraction = 1.0,
    ) -> None:
        super().__init__(probability=probability)
        self.size = int(size[0]), int(size[1])
        self.scale_range, self.center_range = tuple(scale_range), tuple(center_range)
        self.view, self.fill = View(min_visible, min_size), fill

    def _augmented(self, batch: Batch, index: int, numbers: list[float]) -> tuple[Tensor, dict[str, Any]]:
        """The mosaic that begins with the image ``index``."""
        members = [index, *others(index, numbers[2:5], len(batch.images))]
        canvas, placed = self._canvas(batch.images[index]), []
        center = [round(side * between(self.center_range, at)) for side, at in zip(self.size, numbers[:2], strict=True)]
        for i in range(4):
            member = members[i % len(members)]
            image, target = batch.images[member], batch.targets[member]
            piece = self._piece(image.shape[-2:], center, i, numbers[5 + 3 * i : 8 + 3 * i])
            if piece is not None:
                draw_piece(canvas, image, piece)
                placed.append(place_target(target, piece, self.size, keys=batch.keys, view=self.view))
        return canvas, _joined(batch.targets[index], placed, batch.keys)

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"size={self.size}, scale_range={self.scale_range}, probability={self.probability}"

    def _canvas(self, image: Tensor) -> Tensor:
        value = self.fill * white_of(image.dtype, where="Mosaic: images")
        fill = value if image.dtype.is_floating_point else round(value)
        return image.new_full((image.shape[0], *self.size), fill)

    def _piece(
        self, size: Sequence[int], center: Sequence[int], quarter: int, numbers: Sequence[float]
    ) -> Piece | None:
        """What an image of ``size`` shows in a quarter (0 to 3, row by row); None of a quarter without pixels."""
        factor = min(whole / side for whole, side in zip(self.size, size, strict=True))
        factor *= between(self.scale_range, numbers[0])
        rows = _side(size[0], factor, center[0], self.size[0], after=quarter >= 2, at=numbers[1])
        columns = _side(size[1], factor, center[1], self.size[1], after=quarter % 2 == 1, at=numbers[2])
        if rows is None or columns is None:
            return None
        return Piece((rows[0], columns[0], rows[1], columns[1]), (rows[2], columns[2], rows[3], columns[3]))


def _side(
    length: int, factor: float, point: int, whole: int, *, after: bool, at: float
) -> tuple[int, int, int, int] | None:
    """Start and stop in an image of ``length`` pixels, and on the canvas, before or ``after`` the point."""
    room, wanted = whole - point if after else point, max(1, round(length * factor))
    if not room:
        return None
    shown = min(wanted, room)
    taken = length if wanted <= room else min(length, max(1, round(length * room / wanted)))
    start = int(at * (length - taken + 1))
    place = point if after else point - shown
    return start, start + taken, place, place + shown


def _joined(first: dict[str, Any], placed: Sequence[dict[str, Any]], keys: Sequence[str]) -> dict[str, Any]:
    """One target of the quarters, with what the ``first`` image has."""
    rows = join_rows(placed, keys)
    joined = first | {key: rows[key] for key in keys}
    for key in (key for key in joined if key in FIELDS and FIELDS[key].moves == "map"):
        joined[key] = placed[0][key]
        for part in placed[1:]:
            joined[key] = torch.where(part[key] != VOID, part[key], joined[key])
    return joined
