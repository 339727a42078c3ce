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
    first = {name: row for row, name in reversed([*enumerate(names)]) if not grouping[row]}
    own = [row for row, name in enumerate(names) if first.get(name) == row]
    if tidy:
        labels = {names[row]: label for label, row in enumerate(own)}
        return np.array([-1 if grouping[row] else labels[name] for row, name in enumerate(names)], np.int64)
    twice = [(row, first[name]) for row, name in enumerate(names) if not grouping[row] and first[name] != row]
    _warn(categories, grouping, twice, source)
    return np.arange(len(names))


def _warn(categories: Table, grouping: NDArray[np.bool_], twice: list[tuple[int, int]], source: str) -> None:
    def shown_name(row: int) -> str:
        return shown(categories.entries[row]["name"])

    groups = [
        f"{categories.name(row)} ({shown_name(row)}) only groups others" for row in np.flatnonzero(grouping).tolist()
    ]
    same = [f"{categories.name(row)} is named {shown_name(row)} like {categories.name(one)}" for row, one in twice]
    if groups or same:
        warnings.warn(
            f"{source}: {'; '.join(groups + same)}; each is a label of its own: tidy_categories=True drops or merges",
            stacklevel=5,
        )


def _grouping(categories: Table, names: list[str], owners: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Rows without annotations that are the supercategory of others, but not of themselves as COCO's person is."""
    parents = categories.column("supercategory")
    groups = [name in parents and name != parent for name, parent in zip(names, parents, strict=True)]
    return np.array(groups, bool) & (np.bincount(owners, minlength=len(names)) == 0)
