"""The table of Kaggle's ImageNet Object Localization Challenge: one row for each image, all its objects in one cell."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from detkit._coco.columns import MAX_COORDINATE, read_lists
from detkit._faults import Faults, shown
from detkit.data.named_objects import NamedObjects

COLUMNS = ["ImageId", "PredictionString"]
"""The header of the table."""
EDGES = ("xmin", "ymin", "xmax", "ymax")


def kaggle_records(rows: Mapping[int, list[str]], file: object, faults: Faults) -> tuple[list[str], list[NamedObjects]]:
    """Image and objects of each row, which are told by the number of their line; ``faults`` is told of what is wrong.

    >>> names, records = kaggle_records({2: ["a", "cat 1 2 5 4"]}, "a.csv", Faults("a.csv"))
    >>> names, records[0].names, records[0].boxes.tolist()
    (['a'], ['cat'], [[1.0, 2.0, 5.0, 4.0]])
    """
    for line, row in rows.items():
        if len(row) != len(COLUMNS):
            raise ValueError(f"CsvDataset: {file}: line {line} has {len(row)} columns; allowed are {len(COLUMNS)}")
    names, places = [row[0] for row in rows.values()], [f"{file}: line {line}" for line in rows]
    _refuse_twice(names, places, faults)
    return names, _records(list(rows.values()), places, faults)


def _refuse_twice(names: Sequence[str], places: Sequence[str], faults: Faults) -> None:
    counts = Counter(names)
    twice = [position for position, name in enumerate(names) if counts[name] > 1]
    words = "all objects of an image stand in one row"
    faults.refuse([True] * len(twice), lambda i: f"{places[twice[i]]}: {shown(names[twice[i]])} occurs twice; {words}")


def _records(rows: Sequence[list[str]], places: Sequence[str], faults: Faults) -> list[NamedObjects]:
    words = [cell.split() for _, cell in rows]
    uneven = [len(row) % 5 > 0 for row in words]
    allowed = f"allowed are five for each object: class (without spaces) {' '.join(EDGES)}"
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
        unread[t] = ("no number", f"{EDGES[edge]}={shown(edges[t][edge])}; {words}")
    return NamedObjects(
        file_name=f"{names[0]}/{image}" if names else "",
        names=names,
        boxes=boxes.astype(np.float32),
        difficult=np.zeros(len(names), np.int64),
        unread=unread,
    )
