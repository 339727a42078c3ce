"""Categories of a COCO file as labels: rows that only group others, and names given more than once."""

import warnings

import numpy as np
from numpy.typing import NDArray

from detkit._coco.tables import Table
from detkit._faults import shown


def group_categories(categories: Table, owners: NDArray[np.int64], *, tidy: bool, source: str) -> NDArray[np.int64]:
    """The label of each category, int64 (C,): its position; ``owners`` (A,) are the categories of all annotations.

    A category that owns no annotation and is the ``supercategory`` of another only groups, as Roboflow's first row
    does. With ``tidy`` such rows have no label, -1, and rows of one name share one; otherwise one warning names both.

    >>> rows = [{"id": 0, "name": "cells", "supercategory": "none"}, {"id": 1, "name": "RBC", "supercategory": "cells"}]
    >>> group_categories(Table("category", rows), np.array([1]), tidy=True, source="a.json")
    array([-1,  0])
    """
    names = [row["name"] for row in categories.entries]
    grouping = _grouping(categories, names, owners)
    first = {name: row for row, name in reversed([*enumerate(names)])}
    repeated = [row for row, name in enumerate(names) if first[name] != row and not grouping[row]]
    if tidy:
        labels = np.cumsum([first[name] == row and not grouping[row] for row, name in enumerate(names)], dtype=np.int64)
        return np.where(grouping, -1, labels[[first[name] for name in names]] - 1) if names else labels
    if grouping.any() or repeated:
        groups = [f"{categories.name(row)} ({shown(names[row])})" for row in np.flatnonzero(grouping)]
        twice = [
            f"{categories.name(row)} is named {shown(names[row])} like {categories.name(first[names[row]])}"
            for row in repeated
        ]
        words = [*(f"{group} only groups others" for group in groups), *twice]
        warnings.warn(
            f"{source}: {'; '.join(words)}; each is a label of its own: tidy_categories=True drops and merges them",
            stacklevel=4,
        )
    return np.arange(len(names))


def _grouping(categories: Table, names: list[str], owners: NDArray[np.int64]) -> NDArray[np.bool_]:
    parents = {row.get("supercategory") for row in categories.entries if row.get("supercategory") != row["name"]}
    owned = np.bincount(owners, minlength=len(names)) > 0
    return np.array([name in parents for name in names], bool) & ~owned
