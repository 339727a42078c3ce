"""Pictures of detections: boxes, masks and keypoints on images, ground truth beside prediction, and their PNG files.

Images are drawn with Pillow alone. Class colors are also distinct for color-blind readers (the palette of Okabe and Ito
2008).
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import Tensor

from detkit._door import door
from detkit._inputs import check_fraction, first_bad, read_tensor, white_of
from detkit._ranges import Count, Fraction, Whole
from detkit.structures import Detection, Target, read_target, read_truth
from detkit.viz.plates import Plates, Rectangle, check_plates, find_places, is_clear, text_size

if TYPE_CHECKING:
    import matplotlib.figure

Color = tuple[int, int, int]

PALETTE: tuple[Color, ...] = (
    (213, 94, 0),  # vermilion
    (86, 180, 233),  # sky blue
    (240, 228, 66),  # yellow
    (0, 158, 115),  # bluish green
    (204, 121, 167),  # reddish purple
    (0, 114, 178),  # blue
    (230, 159, 0),  # orange
)
"""Red, green, blue in 0..255 of the first seven classes."""
_DRAWN = ("boxes", "labels", "scores", "iscrowd", "masks", "keypoints")
_DARK: Color = (20, 20, 20)
_SMALLEST_SIDE = 480  # pixels of the longer side up to which a picture is enlarged: below, text hides the objects


@door
def class_color(label: Whole) -> Color:
    """Red, green, blue of a class in 0..255: seven colors, then the same lighter, then darker, then from the start.

    >>> class_color(0), class_color(7), class_color(21) == class_color(0)
    ((213, 94, 0), (234, 174, 127), True)
    """
    base, turn = PALETTE[label % len(PALETTE)], label // len(PALETTE) % 3
    share, toward = ((0.0, 0), (0.5, 255), (0.45, 0))[turn]
    red, green, blue = (int(value + share * (toward - value)) for value in base)
    return red, green, blue


@door
def draw_detections(
    image: Shaped[Tensor, "D H W"] | Image.Image,
    detections: Detection | Target,
    *,
    categories: Sequence[str] | None = None,
    score_threshold: Fraction = 0.3,
    mask_alpha: Fraction = 0.4,
    skeleton: Sequence[tuple[int, int]] = (),
    plates: Plates = "all",
    enlarge: Count | None = None,
) -> Image.Image:
    """The image as an RGB picture with boxes, categories and scores, and masks and keypoints if there are any.

    image: (1 or 3, H, W), uint8, uint16, bool or float in [0, 1], or a Pillow image. detections: one image's
    :class:`Detection`, or a :class:`Target`, which has no scores. boxes (K, 4) xyxy pixels of the image; labels (K,)
    index ``categories``; scores (K,): those below ``score_threshold`` are left out; masks (K, H, W) or (K, 1, H, W),
    bool or integers, or floats, foreground above 0.5; keypoints (K, P, 3): those with a third value of 0 are left out,
    ``skeleton`` lists the pairs to connect. Texts stand where they cover little of each other and of objects;
    ``plates="clear"`` leaves out those that still hide more than half of one, "none" all. ``enlarge`` multiplies the
    picture's size, turning every pixel into a square; by default a picture under 480 pixels is enlarged to at least
    that. Nothing else is resized.

    Raises ValueError for shapes that disagree (masks of another size than the image included, and BoundingBoxes on
    another canvas), values out of their range, boxes that are inverted or not finite, and labels without a category.

    >>> found = {"boxes": torch.tensor([[8.0, 8, 60, 40]]), "labels": torch.tensor([1]), "scores": torch.tensor([0.9])}
    >>> draw_detections(torch.zeros(3, 64, 96), found, categories=["cat", "dog"]).size
    (480, 320)
    """
    check_plates(plates, function="draw_detections")
    picture, factor = _picture(image, enlarge)
    objects = _objects(detections, score_threshold, (picture.height // factor, picture.width // factor))
    if objects.masks is not None:
        picture = _paint_masks(picture, objects.masks, objects.labels, mask_alpha, factor)
    _paint_boxes(picture, objects.boxes * factor, objects.labels, _texts(objects, categories), plates)
    if objects.keypoints is not None:
        _paint_keypoints(picture, objects.keypoints, objects.labels, skeleton, factor)
    return picture


@door
def draw_boxes(
    image: Shaped[Tensor, "D H W"] | Image.Image,
    boxes: Float[Tensor, "K 4"] | ArrayLike,
    *,
    labels: Int[Tensor, " K"] | ArrayLike | None = None,
    texts: Sequence[str] | None = None,
    enlarge: Count | None = None,
) -> Image.Image:
    """The image as an RGB picture with any boxes: anchors, proposals, crops.

    boxes: (K, 4) xyxy pixels; labels: (K,), which choose the colors; texts: K, one per box. Image, ``enlarge`` and
    errors as in :func:`draw_detections`.

    >>> draw_boxes(torch.zeros(1, 500, 400), torch.tensor([[8.0, 8, 60, 40]]), texts=["an anchor"]).size
    (400, 500)
    """
    picture, factor = _picture(image, enlarge)
    count = len(read_tensor(boxes, where="draw_boxes: boxes"))
    colors: Any = torch.zeros(count, dtype=torch.int64) if labels is None else labels
    if texts is not None and len(texts) != count:
        raise ValueError(f"draw_boxes: {len(texts)} texts for {count} boxes; each box needs its own")
    objects = _objects({"boxes": boxes, "labels": colors}, 0.0, (picture.height // factor, picture.width // factor))
    _paint_boxes(picture, objects.boxes * factor, objects.labels, texts or [""] * count)
    return picture


@door
def side_by_side(
    images: Sequence[Tensor | Image.Image],
    truths: Sequence[Target],
    detections: Sequence[Detection],
    *,
    categories: Sequence[str] | None = None,
    score_threshold: Fraction = 0.3,
    columns: Count = 1,
    plates: Plates = "all",
    enlarge: Count | None = None,
) -> Image.Image:
    """One picture of many images, each as "truth | prediction" with counts above it, ``columns`` pairs per row.

    Images may differ in size. Each is drawn by :func:`draw_detections`, with its arguments and errors. Raises
    ValueError if the three lengths differ or there is no image, and for detections without scores.

    >>> empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    >>> side_by_side([torch.zeros(3, 96, 96)], [empty], [{**empty, "scores": torch.zeros(0)}]).width
    984
    """
    if not len(images) == len(truths) == len(detections) or not images:
        raise ValueError(
            f"side_by_side: {len(images)} images, {len(truths)} truths, {len(detections)} detections; "
            "allowed are equal lengths of at least 1"
        )
    cells = []
    for image, truth, found in zip(images, truths, detections, strict=True):
        if "scores" not in found:
            raise ValueError(
                f"side_by_side: detections has no 'scores' among {sorted(found)}; draw_detections draws targets, too"
            )
        scores = read_tensor(found["scores"], where="side_by_side: detections['scores']")
        above = int((scores >= score_threshold).sum())
        count = len(read_truth(truth, where="side_by_side: truths").get("boxes", ()))
        titles = f"truth: {count}", f"prediction: {above} (score from {score_threshold:g})"
        for title, objects in zip(titles, (truth, found), strict=True):
            picture = draw_detections(
                image,
                objects,
                categories=categories,
                score_threshold=score_threshold,
                plates=plates,
                enlarge=enlarge,
            )
            cells.append(_titled(picture, title))
    return _grid(cells, 2 * columns)


def save_picture(path: str | os.PathLike[str], picture: "Image.Image | matplotlib.figure.Figure") -> None:
    """Write a picture or a figure of this module as one file: PNG, JPEG or PDF, by the suffix of its name.

    Raises ValueError for another suffix, FileNotFoundError for a missing folder.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "black.png"
    >>> save_picture(path, draw_boxes(torch.zeros(3, 96, 96), torch.zeros(0, 4)))
    >>> Image.open(path).size
    (480, 480)
    """
    kind = _KINDS.get(Path(path).suffix.lower())
    if kind is None:
        raise ValueError(f"save_picture: path {os.fspath(path)!r} must end in {', '.join(_KINDS)}")
    if isinstance(picture, Image.Image):
        picture.save(path, format=kind, **({"quality": 92} if kind == "JPEG" else {}))
    else:
        picture.savefig(path, format=kind.lower(), dpi=150)


_KINDS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".pdf": "PDF"}


class _Objects(NamedTuple):
    """The objects to draw, best first, on the host."""

    boxes: np.ndarray
    labels: list[int]
    scores: list[float] | None
    crowd: list[bool]
    masks: np.ndarray | None
    keypoints: np.ndarray | None


def _objects(entries: Mapping[str, Any], score_threshold: float, size: tuple[int, int]) -> _Objects:
    check_fraction(score_threshold, name="score_threshold", function="draw_detections")
    rows = _checked_rows(entries, size)
    scores = rows.get("scores", torch.ones(len(rows["boxes"])))
    order = scores.argsort(descending=True, stable=True)
    order = order[scores[order] >= score_threshold]
    kept = {key: value[order] for key, value in rows.items()}
    return _Objects(
        boxes=kept["boxes"].numpy(),
        labels=kept["labels"].tolist(),
        scores=kept["scores"].tolist() if "scores" in kept else None,
        crowd=kept["iscrowd"].bool().tolist() if "iscrowd" in kept else [False] * len(order),
        masks=(kept["masks"] > (0.5 if kept["masks"].is_floating_point() else 0)).numpy() if "masks" in kept else None,
        keypoints=kept["keypoints"].numpy() if "keypoints" in kept else None,
    )


def _checked_rows(entries: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Tensor]:
    """The entries to draw, on the host, checked to be finite and of the right shape."""
    where = "draw_detections: detections"
    given = read_truth(entries, where=where)
    drawn = {key: given[key] for key in _DRAWN if key in given}
    if getattr(drawn.get("masks"), "ndim", 3) == 4 and drawn["masks"].shape[1] == 1:
        drawn["masks"] = drawn["masks"][:, 0]
    read = cast(dict[str, Tensor], read_target(drawn, where=where, size=size))
    rows = {key: values.cpu() for key, values in read.items()}
    rows |= {key: rows[key].double() for key in ("boxes", "scores", "keypoints") if key in rows}
    if "keypoints" in rows:
        rows["keypoints"] = torch.where(rows["keypoints"][..., 2:] == 0, 0, rows["keypoints"])  # what is not labeled
    for key in ("boxes", "scores", "keypoints"):
        if key in rows:
            _check_values(key, rows[key])
    return rows


def _check_values(key: str, rows: Tensor) -> None:
    bad = ~rows.flatten(1).isfinite().all(1) if rows.ndim > 1 else ~rows.isfinite()
    if key == "boxes":
        bad |= (rows[:, 2:] < rows[:, :2]).any(1)
    if bad.any():
        (i,), count = first_bad(bad)
        allowed = "finite x1 <= x2, y1 <= y2" if key == "boxes" else "finite values"
        raise ValueError(f"draw_detections: {key}[{i}] = {rows[i].tolist()} ({count} such); allowed: {allowed}")


def _picture(image: Tensor | Image.Image, enlarge: int | None) -> tuple[Image.Image, int]:
    """A fresh RGB picture, and how many times larger than the image it is."""
    picture = image.convert("RGB") if isinstance(image, Image.Image) else _picture_of_tensor(image)
    factor = max(1, math.ceil(_SMALLEST_SIDE / max(picture.size))) if enlarge is None else enlarge
    if factor < 1:
        raise ValueError(f"draw_detections: enlarge={enlarge} must be an integer of at least 1, or None")
    size = picture.width * factor, picture.height * factor
    return (picture.resize(size, Image.Resampling.NEAREST) if factor > 1 else picture.copy()), factor


def _picture_of_tensor(image: Tensor) -> Image.Image:
    if image.ndim != 3 or image.shape[0] not in (1, 3) or image.numel() == 0:
        raise ValueError(
            f"draw_detections: image has shape {tuple(image.shape)}; allowed is (1 or 3, H, W) with pixels"
        )
    values = image.detach().cpu().as_subclass(Tensor)
    if values.is_floating_point():
        low, high = values.min().item(), values.max().item()
        if not (low >= -0.01 and high <= 1.01):  # resizing overshoots a little
            raise ValueError(
                f"draw_detections: image has values from {low:.4g} to {high:.4g}; allowed are floats in [0, 1] "
                "(undo the normalization first) or uint8"
            )
    white = white_of(values.dtype, where="draw_detections: image")
    if values.dtype != torch.uint8:
        values = ((values.to(torch.float32) / white).clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(values.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())


def _texts(objects: _Objects, categories: Sequence[str] | None) -> list[str]:
    bad = [label for label in objects.labels if label < 0 or (categories is not None and label >= len(categories))]
    if bad:
        allowed = f"0..{len(categories) - 1} (the categories)" if categories is not None else "0 and above"
        raise ValueError(f"draw_detections: label {bad[0]} ({len(bad)} such) is outside {allowed}")
    names = [str(label) if categories is None else categories[label] for label in objects.labels]
    scores = [""] * len(names) if objects.scores is None else [f" {score:.2f}" for score in objects.scores]
    crowds = [" (crowd)" if crowd else "" for crowd in objects.crowd]
    return ["".join(parts) for parts in zip(names, scores, crowds, strict=True)]


def _stroke(picture: Image.Image) -> int:
    return max(3, round(max(picture.size) / 200))


def _font(picture: Image.Image) -> Any:
    return ImageFont.load_default(max(14, round(max(picture.size) / 45)))


def _paint_masks(
    picture: Image.Image, masks: np.ndarray, labels: Sequence[int], alpha: float, factor: int
) -> Image.Image:
    """Worst first: tinted inside, with a border in full color, so that neighbors of one class stay distinct."""
    pixels = np.asarray(picture).astype(np.float32)
    reach = 2 * ((_stroke(picture) + 1) // 2) + 1
    for mask, label in reversed(list(zip(masks, labels, strict=True))):
        shape = Image.fromarray(mask.astype(np.uint8) * 255).resize(picture.size, Image.Resampling.NEAREST)
        inside = np.asarray(shape) > 0
        border = inside & (np.asarray(shape.filter(ImageFilter.MinFilter(reach))) == 0)
        color = np.array(class_color(label), dtype=np.float32)
        pixels[inside] += alpha * (color - pixels[inside])
        pixels[border] = color
    return Image.fromarray(pixels.round().astype(np.uint8))


def _paint_boxes(
    picture: Image.Image, boxes: np.ndarray, labels: Sequence[int], texts: Sequence[str], plates: Plates = "all"
) -> None:
    """Boxes with a dark outline, worst first; then their texts, so that no line crosses them."""
    draw, font, stroke = ImageDraw.Draw(picture), _font(picture), _stroke(picture)
    edges = [_pixels(box, picture) for box in boxes]
    for (x1, y1, x2, y2), label in reversed(list(zip(edges, labels, strict=True))):
        draw.rectangle((x1 - 1, y1 - 1, max(x1, x2) + 1, max(y1, y2) + 1), outline=_DARK, width=stroke + 2)
        draw.rectangle((x1, y1, x2, y2), outline=class_color(label), width=stroke)
    written = [(edge, label, text) for edge, label, text in zip(edges, labels, texts, strict=True) if text]
    written = [] if plates == "none" else written
    sizes = [text_size(font, text) for _, _, text in written]
    places = find_places([edge for edge, _, _ in written], sizes, picture.size, edges)
    drawn = is_clear(places, edges) if plates == "clear" else [True] * len(places)
    for place, (_, label, text), shown in reversed(list(zip(places, written, drawn, strict=True))):
        if not shown:
            continue
        color = class_color(label)
        draw.rectangle(place, fill=color)
        light = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 125
        draw.text((place[0] + 2, place[1] + 1), text, fill=_DARK if light else (255, 255, 255), font=font)


def _pixels(box: np.ndarray, picture: Image.Image) -> Rectangle:
    """The outermost pixels inside a continuous box, moved into the picture."""
    x1, y1, x2, y2 = (float(value) for value in box)
    right, bottom = picture.width - 1, picture.height - 1
    left, top = round(min(max(x1, 0), right)), round(min(max(y1, 0), bottom))
    return left, top, max(left, round(min(max(x2 - 1, 0), right))), max(top, round(min(max(y2 - 1, 0), bottom)))


def _paint_keypoints(
    picture: Image.Image,
    keypoints: np.ndarray,
    labels: Sequence[int],
    skeleton: Sequence[tuple[int, int]],
    factor: int,
) -> None:
    draw, stroke = ImageDraw.Draw(picture), _stroke(picture)
    for points, label in reversed(list(zip(keypoints, labels, strict=True))):
        shown = {i: (x * factor, y * factor) for i, (x, y, visible) in enumerate(points.tolist()) if visible > 0}
        bones = [(shown[a], shown[b]) for a, b in skeleton if a in shown and b in shown]
        for color, width in ((_DARK, stroke + 2), (class_color(label), stroke)):
            for bone in bones:
                draw.line(bone, fill=color, width=width)
        for x, y in shown.values():
            for color, radius in ((_DARK, stroke + 3), ((255, 255, 255), stroke + 2), (class_color(label), stroke)):
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)


def _titled(picture: Image.Image, title: str) -> Image.Image:
    font = _font(picture)
    width, height = text_size(font, title)
    framed = Image.new("RGB", (max(width, picture.width), picture.height + height + 4), "white")
    ImageDraw.Draw(framed).text((2, 2), title, fill=_DARK, font=font)
    framed.paste(picture, (0, height + 4))
    return framed


def _grid(cells: Sequence[Image.Image], columns: int, *, gap: int = 8) -> Image.Image:
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    widths = [max(row[i].width for row in rows if i < len(row)) for i in range(len(rows[0]))]
    heights = [max(cell.height for cell in row) for row in rows]
    sheet = Image.new("RGB", (sum(widths) + gap * (len(widths) + 1), sum(heights) + gap * (len(rows) + 1)), "white")
    y = gap
    for row, height in zip(rows, heights, strict=True):
        x = gap
        for cell, width in zip(row, widths, strict=False):
            sheet.paste(cell, (x, y))
            x += width + gap
        y += height + gap
    return sheet
