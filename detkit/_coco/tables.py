"""The lists of a COCO document: images and categories in ascending id, and annotations, each entry with its name."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detkit._coco.columns import read_integers, read_numbers
from detkit._faults import Faults, shown

Entry = Mapping[str, Any]
_READ_OF_CATEGORIES = ("id", "name", "keypoints", "frequency")


class Table(NamedTuple):
    """Entries of one kind, and how messages name them: by their id, or by their position if ``kind`` is plural."""

    kind: str
    entries: Sequence[Entry]

    def column(self, key: str, default: Any = None) -> list[Any]:
        """``key`` of each entry."""
        return [entry.get(key, default) for entry in self.entries]

    def name(self, position: int) -> str:
        """What messages call an entry."""
        entry = self.entries[position]
        if self.kind == "results":
            return f"results[{position}]"
        return f"{self.kind} id={shown(entry['id'])}" if "id" in entry else f"{self.kind} at position {position}"

    def fault(self, position: int, key: str, allowed: str) -> str:
        """What is wrong with ``key`` of an entry."""
        entry = self.entries[position]
        found = f"{key}={shown(entry[key])}" if key in entry else f"{key} is missing"
        return f"{self.name(position)}: {found}; allowed is {allowed}"

    def take(self, rows: NDArray[np.int64]) -> "Table":
        """The entries at ``rows``, in that order."""
        return Table(self.kind, [self.entries[row] for row in rows])


class Document(NamedTuple):
    """Images and categories in ascending id, their ids, and annotations in the order of the file.

    ``has_truth`` is False for files that do not list annotations, as those of test splits.
    """

    images: Table
    image_ids: NDArray[np.int64]
    categories: Table
    category_ids: NDArray[np.int64]
    annotations: Table
    has_truth: bool

    @classmethod
    def read(cls, document: Any, faults: Faults) -> "Document":
        """The lists of a document, with unique ids; what is wrong goes to ``faults``, a wrong form is an error here.

        Rows of categories that say the same stand for one. A file without ``annotations`` has none.
        """
        has_truth = not isinstance(document, Mapping) or "annotations" in document
        images, categories, annotations = (
            Table(kind, _entries(document, key, has_truth, faults))
            for kind, key in (("image", "images"), ("category", "categories"), ("annotation", "annotations"))
        )
        faults.settle()
        categories = _distinct(categories)
        images, image_ids = _ascending(images, _ids(images, faults))
        categories, category_ids = _ascending(categories, _ids(categories, faults))
        _ids(annotations, faults)
        return cls(images, image_ids, categories, category_ids, annotations, has_truth)


def read_sizes(images: Table) -> NDArray[np.int64]:
    """(height, width) of each image, int64 (M, 2), 0 where the file gives no number of pixels.

    >>> read_sizes(Table("image", [{"id": 1, "height": "309", "width": 64.0}, {"id": 2, "width": -1}]))
    array([[309,  64],
           [  0,   0]])
    """
    sizes = np.stack([read_numbers(images.column(key), float(1 << 31)) for key in ("height", "width")], axis=1)
    given = np.where(np.isfinite(sizes) & (sizes > 0) & (sizes % 1 == 0), sizes, 0)
    return given.astype(np.int64)


def keypoint_counts(categories: Table) -> NDArray[np.int64]:
    """How many keypoints each category names, int64 (C + 1,), the last one of no category.

    >>> keypoint_counts(Table("category", [{"id": 1, "keypoints": ["tip", "end"]}, {"id": 2}]))
    array([2, 0, 0])
    """
    names = [*categories.column("keypoints"), None]
    return np.array([len(value) if isinstance(value, list) else 0 for value in names], np.int64)


def positions(table: Table, key: str, known: NDArray[np.int64], faults: Faults) -> NDArray[np.int64]:
    """The position of each entry's ``key`` in the ascending ids ``known``, -1 for none; text of an integer is one."""
    values, bad = read_integers(table.column(key), text=True)
    places = np.searchsorted(known, values)
    found = np.append(known, 0)[places] == values
    found &= ~bad & (places < len(known))
    listed = {"image_id": "images", "category_id": "categories"}[key]
    faults.refuse(~found, lambda row: table.fault(row, key, f"the integer id of one of the {len(known)} {listed}"))
    return np.where(found, places, -1)


def _entries(document: Any, key: str, has_truth: bool, faults: Faults) -> Sequence[Entry]:
    if not isinstance(document, Mapping):
        if key == "images":
            kind = type(document).__name__
            faults.refuse([True], lambda _: f"holds a {kind}; allowed is a dict with images, annotations, categories")
        return []
    entries = document.get(key) if key != "annotations" or has_truth else []
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        found = f"is {shown(entries)}" if key in document else "is missing"
        faults.refuse([True], lambda _: f"{key} {found}; allowed is a list, which stands beside {sorted(document)}")
        return []
    bad = [not isinstance(entry, Mapping) for entry in entries]
    faults.refuse(bad, lambda row: f"{key}[{row}] is {shown(entries[row])}; allowed is a dict")
    return [] if any(bad) else entries


def _ids(table: Table, faults: Faults) -> NDArray[np.int64]:
    column = table.column("id")
    ids, bad = read_integers(column, text=True)  # references to ids in text are not faults of their own
    bad |= np.array([isinstance(value, str) for value in column], bool)
    faults.refuse(bad, lambda row: table.fault(row, "id", "an integer within 64 bits, the same in every reference"))
    _, first, counts = np.unique(ids, return_index=True, return_counts=True)
    faults.refuse(
        (counts > 1) & ~bad[first],
        lambda row: f"{table.name(int(first[row]))} stands there {counts[row]} times; allowed is each id once",
    )
    return ids


def _ascending(table: Table, ids: NDArray[np.int64]) -> tuple[Table, NDArray[np.int64]]:
    order = np.argsort(ids, kind="stable")
    return table.take(order), ids[order]


def _distinct(categories: Table) -> Table:
    """Without the rows that say the same as an earlier one in what is read of them."""
    rows = {repr([row.get(key) for key in _READ_OF_CATEGORIES]): row for row in reversed(categories.entries)}
    return Table(categories.kind, list(reversed(rows.values())))
