"""The rows of objects in targets: which entries have them, keeping some of them, and joining those of several images.

Cropping, mosaics and pasting all go through here, so that no entry is left behind or comes out with too many rows.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor
from torchvision import tv_tensors

from detkit.structures.fields import FIELDS


def has_rows(key: str, values: Any, count: int) -> bool:
    """Whether an entry has a row for each of ``count`` objects: as the table says, or, if it is unknown, by its length.

    Of unknown entries only tensors and NumPy arrays can have rows; lists are the image's.

    >>> has_rows("labels", torch.zeros(0), 2), has_rows("track", torch.zeros(2), 2), has_rows("names", ["a", "b"], 2)
    (True, True, False)
    """
    if key in FIELDS:
        return FIELDS[key].of == "object"
    return isinstance(values, Tensor | np.ndarray) and values.ndim > 0 and len(values) == count


def keep_rows(target: Mapping[str, Any], keep: Bool[Tensor, " T"], keys: Iterable[str] | None = None) -> dict[str, Any]:
    """The target with only the objects that ``keep`` marks, in all entries that have rows, or in ``keys``.

    >>> target = {"boxes": torch.zeros(2, 4), "labels": torch.tensor([7, 8]), "image_id": 3}
    >>> keep_rows(target, torch.tensor([False, True]))["labels"]
    tensor([8])
    """
    rows = [key for key, values in target.items() if has_rows(key, values, len(keep))] if keys is None else keys
    return {**target, **{key: _kept(target[key], keep) for key in rows}}


def join_rows(targets: Sequence[Mapping[str, Any]], keys: Iterable[str]) -> dict[str, Any]:
    """The entries ``keys`` of all targets, one below the other, beside all that the first one has.

    >>> join_rows([{"labels": torch.tensor([7]), "image_id": 3}, {"labels": torch.tensor([8])}], ["labels"])
    {'labels': tensor([7, 8]), 'image_id': 3}
    """
    joined = dict(targets[0])
    for key in keys:
        parts = [target[key] for target in targets]
        parts = [part for part in parts if len(part)] or parts[:1]  # those without rows may have any shape
        joined[key] = np.concatenate(parts) if isinstance(parts[0], np.ndarray) else torch.cat(parts)
    return joined


def complete_rows(targets: Sequence[Mapping[str, Any]], *, where: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The targets of a batch, each with every entry of objects that any of them has; and the keys of these entries.

    What is missing is filled in as the table says. Raises ValueError, naming ``where``, for an entry that an image with
    objects needs and lacks, an unknown one that has a row for each object in some images only, and rows of several
    shapes: joined, they would belong to other objects.

    >>> targets = [{"boxes": torch.zeros(1, 4), "weights": torch.tensor([0.5])}, {"boxes": torch.zeros(2, 4)}]
    >>> complete_rows(targets, where="f")[0][1]["weights"]
    tensor([1., 1.])
    """
    complete, keys = [dict(target) for target in targets], []
    for key in dict.fromkeys(key for target in targets for key in target):
        holders = {
            i: has_rows(key, target[key], len(target["boxes"])) for i, target in enumerate(targets) if key in target
        }
        if not any(holders.values()):
            continue
        _check_rows(key, holders, targets, where)
        example = max((targets[i][key] for i in holders), key=len)
        for i, target in enumerate(complete):
            if key not in target:
                target[key] = _missing(key, example, len(target["boxes"]), f"{where}: targets[{i}]")
        keys.append(key)
    return complete, keys


def _check_rows(key: str, holders: Mapping[int, bool], targets: Sequence[Mapping[str, Any]], where: str) -> None:
    if (odd := next((i for i, rows in holders.items() if not rows), None)) is not None:
        fits = next(i for i, rows in holders.items() if rows)
        raise ValueError(
            f"{where}: targets[{odd}]: {key!r} has no row for each of {len(targets[odd]['boxes'])} boxes, as in "
            f"targets[{fits}] it has; give it one, or as a list or tuple if it is the image's"
        )
    full = {i: targets[i][key] for i in holders if len(targets[i][key])}
    kinds = {(isinstance(values, Tensor), *values.shape[1:]) for values in full.values()}
    if len(kinds) > 1 and not (key in FIELDS and FIELDS[key].moves == "masks"):
        shapes = sorted({f"{type(values).__name__} of {tuple(values.shape[1:])}" for values in full.values()})
        raise ValueError(
            f"{where}: {key} has rows of several shapes: {', '.join(shapes)}; allowed is one for all images"
        )


def _missing(key: str, example: Any, count: int, where: str) -> Any:
    """Rows that stand for an entry that an image does not have."""
    fill = FIELDS[key].missing if key in FIELDS else None
    if fill is None and count:
        raise ValueError(f"{where}: {count} boxes but no {key}; each object needs its own, since other images have it")
    if isinstance(example, np.ndarray):
        return example[:0]
    return example.new_full((count, *example.shape[1:]), fill or 0)


def _kept(values: Any, keep: Tensor) -> Any:
    if not isinstance(values, Tensor):
        return values[keep.cpu().numpy()]
    rows = values[keep.to(values.device)]
    wrap: Any = tv_tensors.wrap  # which type checkers take for the method of a class
    return wrap(rows, like=values) if isinstance(values, tv_tensors.TVTensor) else rows
