"""A table with one row for each object: which column is what, with a header or without, and the objects by image."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detkit._coco.columns import MAX_COORDINATE, read_lists, read_numbers
from detkit._faults import Faults, shown
from detkit.data.named_objects import NamedObjects

NAMES: dict[str, tuple[str, ...]] = {
    "image": ("image", "filename", "file_name", "file", "path", "image_path", "img_path", "img", "image_name"),
    "class": ("class", "label", "class_name", "label_name", "category", "name"),
    "xmin": ("xmin", "x_min", "x1", "left"),
    "ymin": ("ymin", "y_min", "y1", "top"),
    "xmax": ("xmax", "x_max", "x2", "right"),
    "ymax": ("ymax", "y_max", "y2", "bottom"),
    "width": ("width", "image_width", "img_width"),
    "height": ("height", "image_height", "img_height"),
}
"""What a column is, and the names in a header that say so, in either case; other columns are not read."""
NEEDED = ("image", "class", "xmin", "ymin", "xmax", "ymax")
CLASS_LAST = ("image", "xmin", "ymin", "xmax", "ymax", "class")
CLASS_SECOND = ("image", "class", "xmin", "ymin", "xmax", "ymax")
"""The two orders of six columns without a header."""


class _Row(NamedTuple):
    place: str
    cells: dict[str, str]


def find_columns(rows: Mapping[int, list[str]], given: Sequence[str] | None, file: object) -> tuple[list[str], bool]:
    """What each column is, and whether the first row is a header: it names them, or they are ``given``, or told by
    where the numbers are.

    >>> find_columns({1: ["a.jpg", "1", "2", "5", "4", "cat"]}, None, "a.csv")
    (['image', 'xmin', 'ymin', 'xmax', 'ymax', 'class'], False)
    """
    if given is not None:
        if not set(NEEDED) <= set(given) or len(set(given)) < len(given):
            allowed = f"a list with {', '.join(NEEDED)}, each once"
            raise ValueError(f"CsvDataset: columns={shown(given)}; allowed is {allowed}")
        return list(given), False
    first = next(iter(rows.values()), [])
    known = {name: column for column, names in NAMES.items() for name in names}
    named = [known.get(cell.strip().lower(), "") for cell in first]
    if set(NEEDED) <= set(named):
        twice = [name for name in NAMES if named.count(name) > 1]
        if twice:
            raise ValueError(f"CsvDataset: {file}: its header names {twice[0]} twice: {shown(','.join(first))}")
        return named, True
    fitting = [order for order in (CLASS_LAST, CLASS_SECOND) if _fits(rows.values(), order)]
    if len(fitting) == 1:
        return list(fitting[0]), False
    if not first:
        raise ValueError(f"CsvDataset: {file} is empty; allowed are rows of {','.join(CLASS_LAST)}")
    either, neither = "may be of either order, since its classes are numbers", "is neither a header nor six columns"
    why = either if fitting else f"{neither}, set off by commas"
    raise ValueError(
        f"CsvDataset: {file} begins with {shown(','.join(first))}, which {why}; allowed are the columns "
        f"{','.join(NEEDED)} or ImageId,PredictionString under a header, {','.join(CLASS_LAST)} or "
        f"{','.join(CLASS_SECOND)} without; or give columns=[...]"
    )


def object_records(
    rows: Mapping[int, list[str]], columns: Sequence[str], file: object, faults: Faults
) -> tuple[list[str], list[str], list[NamedObjects]]:
    """Names of the images, in the order of their first rows, the places of these, and their objects.

    A row whose class and coordinates are empty is an image without objects. ``faults`` is told of what is wrong.

    >>> rows = {1: ["a", "1", "2", "5", "4", "cat"], 2: ["b", "", "", "", "", ""]}
    >>> names, _, records = object_records(rows, CLASS_LAST, "a.csv", Faults("a.csv"))
    >>> names, [record.names for record in records]
    (['a', 'b'], [['cat'], []])
    """
    lines = list(rows.items())
    uneven = [len(cells) != len(columns) for _, cells in lines]
    faults.refuse(
        uneven, lambda i: f"{file}: line {lines[i][0]} has {len(lines[i][1])} columns; allowed are {len(columns)}"
    )
    images: dict[str, list[_Row]] = {}
    for (line, cells), bad in zip(lines, uneven, strict=True):
        if not bad:
            stripped = dict(zip(columns, map(str.strip, cells), strict=True))
            images.setdefault(stripped["image"], []).append(_Row(f"{file}: line {line}", stripped))
    records = [_record(own, faults) for own in images.values()]
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *(record.boxes for record in records)])
    fractions = len(boxes) > 0 and bool(((boxes >= 0) & (boxes <= 1)).all())
    words = f"{file}: all coordinates lie in 0..1; allowed are pixels: multiply fractions by the size of the picture"
    faults.refuse([fractions], lambda _: words)
    return list(images), [own[0].place for own in images.values()], records


def _fits(rows: Iterable[list[str]], order: Sequence[str]) -> bool:
    """Whether all coordinates in this order are numbers, or all of a row's are empty."""
    edges = [place for place, column in enumerate(order) if column[0] in "xy"]
    for row in rows:
        if len(row) != len(order):
            return False
        cells = [row[place].strip() for place in edges]
        if any(cells) and np.isnan(read_numbers(cells)).any():
            return False
    return True


def _record(rows: Sequence[_Row], faults: Faults) -> NamedObjects:
    objects = [row for row in rows if any(row.cells[column] for column in NEEDED[1:])]
    edges = [[row.cells[edge] for edge in NEEDED[2:]] for row in objects]
    boxes = read_lists(edges, 4)
    unread = {}
    for t, (row, numbers) in enumerate(zip(objects, boxes, strict=True)):
        if not row.cells["class"]:
            unread[t] = ("no name", f"{row.place}: its class is empty")
        elif np.isnan(numbers).any():
            edge = int(np.isnan(numbers).argmax())
            words = f"{NEEDED[2 + edge]}={shown(edges[t][edge])}; allowed is a finite number within {MAX_COORDINATE:g}"
            unread[t] = ("no number", f"{row.place}: {words}")
    return NamedObjects(
        size=_size(rows, faults),
        names=[row.cells["class"] for row in objects],
        boxes=boxes.astype(np.float32),
        difficult=np.zeros(len(objects), np.int64),
        unread=unread,
    )


def _size(rows: Sequence[_Row], faults: Faults) -> tuple[int, int]:
    """The (height, width) that the rows of an image declare, 0 where they do not."""
    declared = [_numbers_of(row) for row in rows]
    other = [not np.array_equal(size, declared[0], equal_nan=True) for size in declared]
    faults.refuse(other, lambda i: f"{rows[i].place}: its size is another than in {rows[0].place}")
    height, width = (int(side) if side > 0 else 0 for side in declared[0])
    return height, width


def _numbers_of(row: _Row) -> NDArray[np.float64]:
    return read_numbers([row.cells.get("height", ""), row.cells.get("width", "")])
