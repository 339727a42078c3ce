"""Class names from any of the forms in which they may be given."""

from collections.abc import Mapping, Sequence
from typing import Any


def category_names(categories: int | Sequence[str] | Sequence[Mapping[str, Any]], *, function: str) -> list[str]:
    """A name per label from a number of classes, names, or COCO's category dicts.

    Raises ValueError, with ``function`` in the message, if there is no class.

    >>> category_names(2, function="demo"), category_names([{"id": 7, "name": "cat"}], function="demo")
    (['0', '1'], ['cat'])
    """
    rows = range(categories) if isinstance(categories, int) else categories
    if isinstance(categories, str | bool) or not rows:
        raise ValueError(f"{function}: categories={categories!r}; allowed is a number >= 1, names, or category dicts")
    return [str(row.get("name", i) if isinstance(row, Mapping) else row) for i, row in enumerate(rows)]


def frequency_groups(categories: Any) -> dict[str, list[int]]:
    """The labels of each of LVIS's frequencies (rare, common, frequent); empty if categories have none.

    >>> frequency_groups([{"id": 1, "frequency": "c"}])
    {'r': [], 'c': [0], 'f': []}
    """
    rows = categories if isinstance(categories, Sequence) else ()
    known = {i: row["frequency"] for i, row in enumerate(rows) if isinstance(row, Mapping) and "frequency" in row}
    return {group: [i for i, name in known.items() if name == group] for group in ("r", "c", "f")} if known else {}
