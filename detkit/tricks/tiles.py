"""Detection in large images, tile by tile: objects keep their size, and memory does not grow with the image."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from numbers import Integral
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from detkit._door import door
from detkit._inputs import promote
from detkit._ranges import Count, Whole
from detkit.structures import FIELDS, Detection
from detkit.tricks.augmented import check_list, check_results
from detkit.tricks.fused import Fused, Fusion, check_fusion, decided
from detkit.tricks.fusion import taken
from detkit.tricks.pieces import resized
from detkit.tricks.views import View, joined, read_view, resized_back, shifted

_NAME = "TiledInference"


class Tile(NamedTuple):
    """A part of an image, in pixels; ``bottom`` and ``right`` are those after its last."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.bottom - self.top, self.right - self.left


@door
def image_tiles(
    size: tuple[Count, Count], tile: Count | tuple[Count, Count], *, overlap: Whole, multiple_of: Count = 1
) -> list[Tile]:
    """The tiles that cover an image of ``size`` (height, width), row by row, as :class:`TiledInference` cuts them.

    ``tile`` is a side or (height, width); a tile is as large as the image where that is smaller. Neighbors overlap by
    at least ``overlap`` pixels, so every object of up to that many pixels in height and width lies wholly in a tile.
    Tiles begin at multiples of ``multiple_of``. The last row and column end with the image: they overlap more, and are
    smaller by up to ``multiple_of`` - 1 pixels. Raises ValueError where a tile and the next would not begin apart.

    >>> image_tiles((10, 22), 10, overlap=2)
    [Tile(top=0, left=0, bottom=10, right=10), Tile(top=0, left=8, bottom=10, right=18),
     Tile(top=0, left=12, bottom=10, right=22)]
    """
    rows, columns = (
        _spans(length, side, overlap, multiple_of) for length, side in zip(size, _sides(tile), strict=True)
    )
    return [Tile(top, left, bottom, right) for top, bottom in rows for left, right in columns]


class TiledInference(nn.Module):
    """A detector for large images: it sees overlapping tiles, and what it finds in them is put together.

    ``detector``: a module in eval mode that maps a list of images (D, H, W) to a list of Detections. ``tile``,
    ``overlap`` and ``multiple_of`` as in :func:`image_tiles`; ``batch_size`` tiles at a time. An image that fits into
    one tile is handed to the detector as it is.

    What a tile cuts is seen whole by its neighbor, so of each axis along which a box is not longer than ``overlap``: a
    tile's detection is dropped if it lies nearer to a border inside the image than a quarter of ``overlap`` minus its
    length. What several tiles see is then left to ``merge``, a fusion (:mod:`detkit.tricks.fusion`) of all detections
    as if of one view: ``NMSFusion``, say. Longer boxes are kept wherever they are found, whole or cut. With
    ``whole_image`` the detector also sees the image shrunk into a tile: tiles then give only boxes of up to ``overlap``
    in both sides, the whole image those of more than half of it in one, ``merge`` joins what both see.

    This equals the detector on the whole image where what it finds depends on no pixel farther than r from the box,
    tiles begin at multiples of its stride, every box has sides of up to ``overlap`` - 4 r, and ``merge`` suppresses no
    more than the detector does: NMS at its own threshold.

    Boxes, keypoints, masks and segmentations come back in the image's pixels, other entries of an object as they are.
    Masks are held as large as tiles until the end, and then drawn in the image: at most ``mask_memory`` bytes, one for
    each pixel of each object, are allowed; None leaves masks out. Records no gradient. Raises ValueError for an overlap
    that is not below the tile's sides, more memory for masks, and entries that belong to a whole image (image_scores),
    which no tile sees; TypeError for images that are one tensor.

    >>> from detkit.tricks import NMSFusion
    >>> class Bright(nn.Module):
    ...     def forward(self, images):
    ...         found = [(image[0] > 0).nonzero()[:, [1, 0, 1, 0]] + torch.tensor([0, 0, 1, 1]) for image in images]
    ...         return [{"boxes": b.float(), "scores": b[:, 0] * 0 + 0.5, "labels": b[:, 0] * 0} for b in found]
    >>> image = torch.zeros(1, 100, 100)
    >>> image[0, 30, 60] = 1
    >>> TiledInference(Bright(), tile=40, overlap=8, merge=NMSFusion(0.5))([image])[0]["boxes"]
    tensor([[60., 30., 61., 31.]])
    """

    @door
    def __init__(
        self,
        detector: nn.Module,
        *,
        tile: Count | tuple[Count, Count],
        overlap: Whole,
        merge: Fusion,
        batch_size: Count = 1,
        multiple_of: Count = 1,
        whole_image: bool = False,
        mask_memory: Count | None = 2**30,
    ) -> None:
        super().__init__()
        if not isinstance(detector, nn.Module):
            raise ValueError(
                f"{_NAME}: detector is a {type(detector).__name__}; allowed is a module that maps a list of images to "
                "a list of detections"
            )
        for side in _sides(tile):
            _check_step(side, overlap, multiple_of, function=_NAME)
        check_fusion(merge, where=f"{_NAME}: merge")
        self.detector, self.merge = detector, merge
        self.tile, self.overlap, self.multiple_of = _sides(tile), overlap, multiple_of
        self.batch_size, self.whole_image, self.mask_memory = batch_size, whole_image, mask_memory

    @door
    def forward(self, images: Sequence[Shaped[Tensor, "D _ _"]]) -> list[Detection]:
        """The detections of every image, in its own pixels, best first."""
        check_list(images, function=_NAME)
        with torch.no_grad():
            return [self._found(image) for image in images]

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"tile={self.tile}, overlap={self.overlap}, batch_size={self.batch_size}, whole_image={self.whole_image}"

    def _found(self, image: Tensor) -> Detection:
        size = (image.shape[-2], image.shape[-1])
        tiles = image_tiles(size, self.tile, overlap=self.overlap, multiple_of=self.multiple_of)
        if len(tiles) == 1:
            (view,) = self._looks([image])
            if self.mask_memory is None:
                view.objects.pop("masks", None)
            return cast(Detection, {**view.objects, **view.others})
        places, views, drawn, maps = [], [], [], _Maps(size, tiles)
        for place, view in self._views(image, tiles):
            kept = self._kept(view, place, size)
            drawn.append(kept.objects.pop("masks", None))
            if place in tiles:
                maps.draw(view.others, place)
            places.append(place)
            views.append(View(kept.objects, {}))
        return self._merged(places, views, drawn, size) | maps.canvases

    def _views(self, image: Tensor, tiles: Sequence[Tile]) -> Iterator[tuple[Tile, View]]:
        """Every tile with what was found in it, boxes and points in the image; last the whole image, if wanted."""
        for start in range(0, len(tiles), self.batch_size):
            batch = tiles[start : start + self.batch_size]
            found = self._looks([image[..., t.top : t.bottom, t.left : t.right] for t in batch])
            for tile, view in zip(batch, found, strict=True):
                yield tile, _moved(view, tile.size, tile)
        if self.whole_image:
            height, width = image.shape[-2:]
            factor = min(self.tile[0] / height, self.tile[1] / width)  # below 1: there are several tiles
            small = resized(image, (max(1, int(height * factor)), max(1, int(width * factor))))
            (view,) = self._looks([small])
            yield Tile(0, 0, height, width), _moved(view, small.shape[-2:], Tile(0, 0, height, width))

    def _looks(self, images: list[Tensor]) -> list[View]:
        found = self.detector(images)
        check_results(found, len(images), function=_NAME)
        where = f"{_NAME}: detections"
        return [
            read_view(result, where=where, size=image.shape[-2:]) for result, image in zip(found, images, strict=True)
        ]

    def _kept(self, view: View, place: Tile, size: tuple[int, int]) -> View:
        """Without what another tile sees whole, or the whole image better."""
        _check_of_the_image(view)
        if self.mask_memory is None:
            view.objects.pop("masks", None)
        boxes = promote(view.objects["boxes"])
        sides = boxes[:, 2:] - boxes[:, :2]
        if place == (0, 0, *size):
            keep = (2 * sides > self.overlap).any(1)
        else:
            low, high = _gaps(boxes, place, size)
            needed = (self.overlap - sides) / 4
            keep = ~((sides <= self.overlap) & (torch.minimum(low, high) < needed)).any(1)  # NaN is for merge to name
            if self.whole_image:
                keep &= (sides <= self.overlap).all(1)
        return View({key: values[keep] for key, values in view.objects.items()}, view.others)

    def _merged(self, places: list[Tile], views: list[View], drawn: list[Any], size: tuple[int, int]) -> Any:
        """One detection of all views, their masks at the end."""
        objects = joined(views, where=f"{_NAME}: views")
        kept = decided(self.merge, [objects["boxes"]], [objects["scores"]], [objects["labels"]])
        found = taken(objects, kept)
        if any(masks is not None for masks in drawn):
            found["masks"] = self._drawn(places, drawn, [len(view) for view in views], kept, size)
        return found

    def _drawn(
        self, places: list[Tile], drawn: list[Any], counts: list[int], kept: Fused, size: tuple[int, int]
    ) -> Tensor:
        """The masks of what was kept, in the image."""
        like = next(masks for masks in drawn if masks is not None)
        needed = len(kept.rows) * size[0] * size[1] * like.element_size()
        assert self.mask_memory is not None
        if needed > self.mask_memory:
            raise ValueError(
                f"{_NAME}: masks of {len(kept.rows)} objects in {size[0]} x {size[1]} pixels take {needed} bytes; "
                f"allowed are mask_memory={self.mask_memory}: allow more, None for no masks, or fewer detections"
            )
        canvas = like.new_zeros((len(kept.rows), *size))
        sources = [(view, row) for view, count in enumerate(counts) for row in range(count)]
        for target, source in zip(canvas, kept.rows.tolist(), strict=True):
            view, row = sources[source]
            if drawn[view] is None:
                raise ValueError(f"{_NAME}: views[{view}] has boxes without masks; each of the others has its own")
            place = places[view]
            part = resized_back(drawn[view][row], "masks", drawn[view].shape[-2:], place.size)
            target[place.top : place.bottom, place.left : place.right] = part
        return canvas


class _Maps:
    """Entries with a value for each pixel, put together: each pixel is that of the tile in whose middle it lies."""

    def __init__(self, size: tuple[int, int], tiles: Sequence[Tile]) -> None:
        self.size, self.canvases = size, cast(dict[str, Tensor], {})
        self.rows = _middles(sorted({(tile.top, tile.bottom) for tile in tiles}))
        self.columns = _middles(sorted({(tile.left, tile.right) for tile in tiles}))

    def draw(self, entries: dict[str, Any], tile: Tile) -> None:
        """Put what one tile says where it is in the middle."""
        (top, bottom), (left, right) = self.rows[tile.top], self.columns[tile.left]
        for key, values in entries.items():
            canvas = self.canvases.setdefault(key, values.new_zeros((*values.shape[:-2], *self.size)))
            part = values[..., top - tile.top : bottom - tile.top, left - tile.left : right - tile.left]
            canvas[..., top:bottom, left:right] = part


def _sides(tile: Any) -> tuple[int, int]:
    return (int(tile), int(tile)) if isinstance(tile, Integral) else (int(tile[0]), int(tile[1]))


def _check_step(side: int, overlap: int, multiple_of: int, *, function: str) -> None:
    if side - overlap < multiple_of:
        raise ValueError(
            f"{function}: overlap={overlap} of tiles of {side} pixels; allowed is at most {side - multiple_of}, the "
            f"side minus multiple_of={multiple_of}, so that the next tile begins farther on"
        )


def _spans(length: int, side: int, overlap: int, multiple_of: int) -> list[tuple[int, int]]:
    """(start, end) of the tiles along one axis."""
    _check_step(side, overlap, multiple_of, function="image_tiles")
    if length <= side:
        return [(0, length)]
    step = (side - overlap) // multiple_of * multiple_of
    last = -(-(length - side) // multiple_of) * multiple_of
    starts = [*range(0, last, step), last]
    return [(start, min(start + side, length)) for start in starts]


def _middles(spans: Sequence[tuple[int, int]]) -> dict[int, tuple[int, int]]:
    """By the start of each span, the part of it that is nearer to its middle than to that of the next."""
    cuts = [(end + start) // 2 for (_, end), (start, _) in pairwise(spans)]
    edges = [spans[0][0], *cuts, spans[-1][1]]
    return {start: (edges[i], edges[i + 1]) for i, (start, _) in enumerate(spans)}


def _gaps(boxes: Tensor, tile: Tile, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(K, 2) free pixels to the left and top, and to the right and bottom; infinite where the tile ends the image."""
    height, width = size
    start = [edge if edge > 0 else -torch.inf for edge in (tile.left, tile.top)]
    end = [edge if edge < length else torch.inf for edge, length in ((tile.right, width), (tile.bottom, height))]
    return boxes[:, :2] - boxes.new_tensor(start), boxes.new_tensor(end) - boxes[:, 2:]


def _moved(view: View, seen: Sequence[int], place: Tile) -> View:
    """Boxes and points found in a part of the image, which was seen at the size ``seen``, in the image's pixels."""

    def moved(key: str, values: Tensor) -> Tensor:
        moves = FIELDS[key].moves
        if moves not in ("boxes", "points"):
            return values
        return shifted(resized_back(values, moves, seen, place.size), moves, place.top, place.left)

    return View({key: moved(key, values) for key, values in view.objects.items()}, view.others)


def _check_of_the_image(view: View) -> None:
    if of_image := [key for key in view.others if FIELDS[key].of == "image"]:
        raise ValueError(
            f"{_NAME}: detections hold {of_image[0]!r} of a whole image, which no tile sees; allowed are entries of "
            "objects and of pixels"
        )
