"""Data sets inside others: torch's Subset and ConcatDataset, and what wraps one data set, as Augmented does."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from torch.utils.data import ConcatDataset, Subset


def find_item(dataset: Any, index: int, *, function: str) -> tuple[Any, int]:
    """The data set that an item comes from, however deeply it is wrapped, and its position there.

    Raises TypeError for a data set, named with ``function``, that neither knows its ground truth nor wraps one that
    does, and ValueError for a wrapper of another length than what it wraps: which item would be which?

    >>> from detkit.data import DigitScenes
    >>> scenes = DigitScenes(5)
    >>> found, place = find_item(ConcatDataset([scenes, Subset(scenes, [4, 2])]), 6, function="example")
    >>> found is scenes, place
    (True, 2)
    """
    dataset, index = find_part(dataset, index)
    while not _knows_truth(dataset):
        dataset, index = find_part(_inside(dataset, function), index)
    return dataset, range(len(dataset))[index]


def find_part(dataset: Any, index: int) -> tuple[Any, int]:
    """The data set in torch's Subset and ConcatDataset that an item comes from, and its position there.

    >>> find_part(ConcatDataset([Subset("abc", [2]), "de"]), 2)
    ('de', 1)
    """
    while isinstance(dataset, (ConcatDataset, Subset)):
        if isinstance(dataset, ConcatDataset):
            part = bisect_right(dataset.cumulative_sizes, index)
            before = dataset.cumulative_sizes[part - 1] if part else 0
            dataset, index = dataset.datasets[part], index - before
        else:
            dataset, index = dataset.dataset, int(dataset.indices[index])
    return dataset, index


def find_categories(dataset: Any, *, function: str) -> tuple[Sequence[str], Sequence[int]]:
    """Names and ids of the categories, which all parts of a data set share. Raises ValueError where they differ.

    >>> from detkit.data import DigitScenes
    >>> find_categories(Subset(DigitScenes(5), [0]), function="example")[0][7]
    '7'
    """
    (first, *others) = _parts(dataset, function)
    for other in others:
        if (list(other.categories), list(other.category_ids)) != (list(first.categories), list(first.category_ids)):
            raise ValueError(
                f"{function}: parts of the data set have the categories {list(first.categories)} with the ids "
                f"{list(first.category_ids)} and {list(other.categories)} with {list(other.category_ids)}; allowed are "
                "the same in all"
            )
    return first.categories, first.category_ids


def _parts(dataset: Any, function: str) -> list[Any]:
    if _knows_truth(dataset):
        return [dataset]
    if isinstance(dataset, ConcatDataset):
        return [part for whole in dataset.datasets for part in _parts(whole, function)]
    return _parts(dataset.dataset if isinstance(dataset, Subset) else _inside(dataset, function), function)


def _knows_truth(dataset: Any) -> bool:
    return all(hasattr(dataset, name) for name in ("target", "image_size", "categories", "category_ids"))


def _inside(dataset: Any, function: str) -> Any:
    """What a wrapper of one data set wraps."""
    inner = getattr(dataset, "dataset", None)
    if inner is None:
        raise TypeError(
            f"{function}: a {type(dataset).__name__} does not know its ground truth; allowed are CocoDataset, "
            "VocDataset, DigitScenes, or a data set with their methods, and Subset, ConcatDataset and wrappers of these"
        )
    if len(inner) != len(dataset):
        raise ValueError(
            f"{function}: a {type(dataset).__name__} of {len(dataset)} items wraps {len(inner)}; allowed are wrappers "
            "that keep number and order, and Subset"
        )
    return inner
