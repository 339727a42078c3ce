"""YOLO's format: a text file for each picture, one line for each object, numbers as fractions of the picture."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision import tv_tensors

from detkit._coco.columns import read_numbers
from detkit._door import door
from detkit._faults import Degenerate, Faults, check_degenerate, shown
from detkit._rle import draw_mask
from detkit.data.files import picture_size
from detkit.data.named_objects import NamedDataset, NamedObjects
from detkit.data.truth import Transforms
from detkit.data.yolo_layout import find_layout, read_lines
from detkit.structures import Target

_MOST = 2.0  # from here on numbers are pixels, or the visibility of keypoints, and no fractions

_CLASS = re.compile(r"[0-9]{1,9}(\.0*)?")  # also as NumPy's savetxt writes it
"""The number of a class."""


class YoloDataset(NamedDataset):
    """Images and targets in the text format of Darknet, Ultralytics, Roboflow and labelImg, checked when it is built.

    A line is ``class cx cy w h``, or ``class x1 y1 x2 y2 x3 y3 ...`` for a polygon, whose box is its hull; classes
    count from 0, numbers are fractions of the picture. Names come from ``data.yaml`` (needs pyyaml), ``classes.txt`` or
    ``obj.names``, or are ``classes``. ``split`` is an entry of the yaml file, else the folder ``images/SPLIT``,
    ``SPLIT/images`` or ``SPLIT`` or the list ``SPLIT.txt``; None takes all pictures below the root. The label file
    stands in ``labels`` where the picture is in ``images`` (or ``Labels`` and ``Images``), or beside it. A picture
    without one has no objects. An item is (image, target) as in :class:`~detkit.data.CocoDataset`; image_id is the
    position; ``masks=True`` draws polygons, and leaves out objects that have only a box.

    Objects that are none (not finite, without width or height, outside the picture) are dropped with one warning
    (``degenerate="drop"``) or refused (``"raise"``). Raises ValueError telling every kind of fault with its first file
    and line: a class that is no number or has no name, a line of another length, numbers of pixels instead of
    fractions, labels with keypoints, no label file for any picture; file names and images as for
    :class:`~detkit.data.CocoDataset`; FileNotFoundError saying what was looked for.

    >>> import os, tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for folder in ("images/train", "labels/train"):
    ...         os.makedirs(f"{root}/{folder}")
    ...     Image.new("RGB", (20, 10)).save(f"{root}/images/train/one.png")
    ...     written = Path(root, "labels/train/one.txt").write_text("1 0.5 0.5 0.2 0.4")
    ...     dataset = YoloDataset(root, "train", classes=["cat", "dog"])
    >>> dataset.target(0)["boxes"].tolist(), dataset.target(0)["labels"].tolist()
    ([[8.0, 3.0, 12.0, 7.0]], [1])
    """

    @door
    def __init__(
        self,
        root: str | Path,
        split: str | None,
        *,
        transforms: Transforms | None = None,
        classes: Sequence[str] | None = None,
        masks: bool = False,
        degenerate: Degenerate = "drop",
    ) -> None:
        check_degenerate(degenerate, owner="YoloDataset")
        root, faults = Path(root), Faults("YoloDataset", policy=degenerate)
        layout = find_layout(root, split, classes)
        if all(label is None for label in layout.labels):
            raise FileNotFoundError(
                f"YoloDataset: none of {len(layout.pictures)} pictures of {root} has a label file; looked for that of "
                f"{layout.pictures[0]}, with the extension .txt, in labels/ and beside it"
            )
        self.masks = masks
        places = [label or picture for label, picture in zip(layout.labels, layout.pictures, strict=True)]
        records = [
            _record(root, picture, label, layout.categories, masks, faults)
            for picture, label in zip(layout.pictures, layout.labels, strict=True)
        ]
        super().__init__(
            root,
            layout.pictures,
            records,
            places,
            classes=layout.categories,
            transforms=transforms,
            faults=faults,
        )

    def target(self, index: int) -> Target:
        """The target of an image, before transforms; the image is not opened."""
        target, size = super().target(index), self.image_size(index)
        if self.masks:
            drawn = [draw_mask([polygon], size) for polygon in self._records[index].polygons]
            stacked = np.stack(drawn) if drawn else np.zeros((0, *size), np.uint8)
            target["masks"] = tv_tensors.Mask(torch.from_numpy(stacked))
        return target


class _Line(NamedTuple):
    """An object: its class, box xyxy in pixels, polygon (x, y, x, y ...) in pixels or nothing, and what is wrong."""

    name: str
    box: NDArray[np.float64]
    polygon: NDArray[np.float64]
    fault: tuple[str, str] | None = None


def _record(
    root: Path, picture: str, label: str | None, categories: Sequence[str], masks: bool, faults: Faults
) -> NamedObjects:
    size = picture_size(root, picture, owner="YoloDataset")
    lines, refused = [], []
    for number, text in enumerate(read_lines(root, label) if label else [], 1):
        words = text.split()
        problem = _problem(words, categories) if words else ""
        if problem:
            refused.append(f"{label}: line {number}: {problem}")
        elif words:
            lines.append(_line(words, size, categories, masks))
    faults.refuse([True] * len(refused), refused.__getitem__)
    return NamedObjects(
        size=size,
        names=[line.name for line in lines],
        boxes=np.array([line.box for line in lines], np.float32).reshape(-1, 4),
        difficult=np.zeros(len(lines), np.int64),
        unread={row: line.fault for row, line in enumerate(lines) if line.fault},
        polygons=[line.polygon for line in lines],
    )


def _problem(words: list[str], categories: Sequence[str]) -> str:
    """Why a line is of another format, or ""."""
    if not _CLASS.fullmatch(words[0]) or _number(words[0]) >= len(categories):
        return f"class {shown(words[0])}; allowed are 0 to {len(categories) - 1}, the numbers of the names"
    if len(words) != 5 and (len(words) < 7 or len(words) % 2 == 0):
        return f"{len(words)} words; allowed are class cx cy w h, or class and three or more points x y"
    numbers = read_numbers(words[1:])
    if (np.abs(numbers[np.isfinite(numbers)]) >= _MOST).any():
        return f"{shown(' '.join(words[:5]))} has numbers from 2 on, as pixels and keypoints; allowed are fractions"
    return ""


def _number(word: str) -> int:
    return int(word.partition(".")[0])


def _line(words: list[str], size: tuple[int, int], categories: Sequence[str], masks: bool) -> _Line:
    numbers, sides = read_numbers(words[1:]), np.array([size[1], size[0]], np.float64)
    polygon = np.zeros(0)
    if len(numbers) == 4:
        low, high = numbers[:2] - numbers[2:] / 2, numbers[:2] + numbers[2:] / 2
    else:
        points = numbers.reshape(-1, 2)
        low, high, polygon = points.min(0), points.max(0), (points.clip(0, 1) * sides).ravel()
    fault = None
    if not np.isfinite(numbers).all():
        fault = ("no number", f"{shown(' '.join(words[:5]))}; allowed are finite numbers")
    elif masks and not len(polygon):
        fault = ("no polygon", "has a box and no polygon, which masks=True needs")
    return _Line(categories[_number(words[0])], np.concatenate((low * sides, high * sides)), polygon, fault)
