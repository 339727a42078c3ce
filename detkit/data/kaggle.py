"""The table of Kaggle's ImageNet Object Localization Challenge: one row for each image, all its objects in one cell."""

import csv
import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

import numpy as np

from detkit._coco.columns import MAX_COORDINATE, read_lists
from detkit._faults import Degenerate, Faults, check_degenerate, shown
from detkit._regular_file import open_regular
from detkit.data.named_objects import NamedDataset, NamedObjects
from detkit.data.truth import Transforms

COLUMNS = ["ImageId", "PredictionString"]
"""The header of the table."""
MAX_CSV_BYTES = 1 << 30
"""Larger tables are refused before they are read; that of ImageNet's 544,546 training images has 30 MB."""
_LIMIT = Lock()
_EDGES = ("xmin", "ymin", "xmax", "ymax")


class CsvDataset(NamedDataset):
    """Images with the objects that a csv file in the form of Kaggle's localization challenge lists.

    The columns are ``ImageId,PredictionString``; a row is ``n02017213_7894,n02017213 115 49 448 294 n02017213 ...``:
    five words for each object, its class and xmin, ymin, xmax, ymax in pixels, taken as they are. An empty cell is an
    image without objects. The picture of ``one`` is the file one.jpg, one.JPEG, ... of the folder ``images``, or of its
    folder of that class, as in ImageNet's training set; sizes are read from the pictures' headers. An item is (image,
    target) as in :class:`~detkit.data.CocoDataset`; image_id is the position. ``classes`` fixes the labels; without it
    they are the sorted names found in this file, so give it if files must agree.

    Objects with a box that is no number, not finite, inverted, without width or height or outside its picture are
    dropped with one warning (``degenerate="drop"``) or refused (``"raise"``). Raises ValueError telling every kind of
    fault with its first line: other columns, a cell that is not in fives, names not in ``classes``, an image or
    picture that occurs twice, a file that is no csv in UTF-8 or over 1 GiB, and file names and images as
    :class:`~detkit.data.CocoDataset` does; FileNotFoundError naming all pictures that are missing.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as root:
    ...     Path(root, "n01").mkdir()
    ...     Image.new("RGB", (6, 4)).save(Path(root, "n01/n01_7.JPEG"))
    ...     written = Path(root, "train.csv").write_text("ImageId,PredictionString\\nn01_7,n01 1 0 5 4 ")
    ...     dataset = CsvDataset(root, Path(root, "train.csv"))
    >>> dataset.categories, dataset.target(0)["boxes"].tolist()
    (['n01'], [[1.0, 0.0, 5.0, 4.0]])
    """

    def __init__(
        self,
        images: str | Path,
        file: str | Path,
        *,
        transforms: Transforms | None = None,
        classes: Sequence[str] | None = None,
        degenerate: Degenerate = "drop",
    ) -> None:
        check_degenerate(degenerate, owner="CsvDataset")
        faults = Faults("CsvDataset", policy=degenerate)
        rows = _rows(file)
        names, places = [row[0] for row in rows.values()], [f"{file}: line {line}" for line in rows]
        _refuse_twice(names, places, faults)
        super().__init__(
            Path(images),
            names,
            _records(list(rows.values()), places, faults),
            places,
            classes=classes,
            transforms=transforms,
            faults=faults,
        )
        self._warn_of_nothing(f"CsvDataset: {file}")


def _rows(file: str | Path) -> dict[int, list[str]]:
    """Image and objects of each row by the number of its line; empty lines are none."""
    with open_regular(file, owner="CsvDataset") as opened, io.TextIOWrapper(opened, "utf-8-sig", newline="") as text:
        size = os.fstat(opened.fileno()).st_size
        if size > MAX_CSV_BYTES:
            raise ValueError(f"CsvDataset: {file} has {size} bytes; allowed are {MAX_CSV_BYTES}")
        reader = csv.reader(text, strict=True)
        try:
            with _long_fields():
                rows = dict((reader.line_num, row) for row in reader if row)  # noqa: C402 (the number changes)
        except UnicodeDecodeError as error:  # in a part of the file, of unknown lines
            raise ValueError(f"CsvDataset: {file} cannot be read as csv in UTF-8: {error}") from error
        except csv.Error as error:
            raise ValueError(f"CsvDataset: {file}: line {reader.line_num} cannot be read as csv: {error}") from error
    columns = [name.strip() for name in rows.pop(next(iter(rows), 0), [])]
    if columns != COLUMNS:
        raise ValueError(
            f"CsvDataset: {file} begins with {shown(','.join(columns))}; allowed are the columns {','.join(COLUMNS)}, "
            "and one row for each image"
        )
    for line, row in rows.items():
        if len(row) != len(COLUMNS):
            raise ValueError(f"CsvDataset: {file}: line {line} has {len(row)} columns; allowed are {len(COLUMNS)}")
    return rows


@contextmanager
def _long_fields() -> Iterator[None]:
    """Fields as long as the file, not of some 4,000 objects; the limit is the process', so threads take turns."""
    with _LIMIT:
        limit = csv.field_size_limit(MAX_CSV_BYTES)
        try:
            yield
        finally:
            csv.field_size_limit(limit)


def _refuse_twice(names: Sequence[str], places: Sequence[str], faults: Faults) -> None:
    counts = Counter(names)
    twice = [position for position, name in enumerate(names) if counts[name] > 1]
    words = "all objects of an image stand in one row"
    faults.refuse([True] * len(twice), lambda i: f"{places[twice[i]]}: {shown(names[twice[i]])} occurs twice; {words}")


def _records(rows: Sequence[list[str]], places: Sequence[str], faults: Faults) -> list[NamedObjects]:
    words = [cell.split() for _, cell in rows]
    uneven = [len(row) % 5 > 0 for row in words]
    allowed = f"allowed are five for each object: class (without spaces) {' '.join(_EDGES)}"
    faults.refuse(uneven, lambda i: f"{places[i]}: {len(words[i])} words; {allowed}")
    names = [[] if bad else row[::5] for row, bad in zip(words, uneven, strict=True)]
    edges = [[row[5 * t + 1 : 5 * t + 5] for t in range(len(own))] for row, own in zip(words, names, strict=True)]
    boxes = read_lists([edge for own in edges for edge in own], 4)
    starts = np.cumsum([len(own) for own in names])[:-1]
    parts = np.split(boxes, starts) if rows else []
    return [_record(*parts) for parts in zip((row[0] for row in rows), names, edges, parts, strict=True)]


def _record(image: str, names: list[str], edges: list[list[str]], boxes: np.ndarray) -> NamedObjects:
    bad = np.isnan(boxes)
    words = f"allowed is a finite number within {MAX_COORDINATE:g}"
    unread = {}
    for t in np.flatnonzero(bad.any(1)).tolist():
        edge = int(bad[t].argmax())
        unread[t] = ("no number", f"{_EDGES[edge]}={shown(edges[t][edge])}; {words}")
    return NamedObjects(
        file_name=f"{names[0]}/{image}" if names else "",
        names=names,
        boxes=boxes.astype(np.float32),
        difficult=np.zeros(len(names), np.int64),
        unread=unread,
    )
