"""One image in several views: flipped, resized or cut, and what was found there in the image's own pixels.

Each entry of a detection travels as the table of fields says (:data:`~detkit.structures.FIELDS`).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from detkit._inputs import promote
from detkit.structures import FIELDS, read_entries, read_target
from detkit.structures.padding import check_size
from detkit.tricks.pieces import nearest_pixels

Flip = Literal["none", "horizontal", "vertical", "both"]
AXES: dict[Flip, tuple[int, ...]] = {"none": (), "horizontal": (-1,), "vertical": (-2,), "both": (-2, -1)}
"""The dimensions of an image that each flip reverses."""


class View(NamedTuple):
    """What was found in one view: entries that have a row for each object, and those of the image and its pixels."""

    objects: dict[str, Tensor]
    others: dict[str, Any]

    def __len__(self) -> int:
        """The number of objects."""
        return len(self.objects["boxes"])


def read_view(found: Mapping[str, Any], *, where: str, size: Sequence[int] | None = None) -> View:
    """A detection as it came from a detector, checked; masks (K, 1, H, W) as (K, H, W).

    Raises ValueError naming ``where`` for one without boxes, scores and labels, entries of another shape or number of
    rows, masks and maps of another ``size`` (height, width), and keys that are not in the table: nothing tells whether
    they have a row for each object.

    >>> found = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": [], "size": (4, 4)}
    >>> read_view(found, where="x").others
    {'size': (4, 4)}
    """
    entries = read_entries(found, where=where)
    if unknown := sorted(str(key) for key in entries if key not in FIELDS):
        raise ValueError(
            f"{where}: entries {unknown}, of which nothing says how they travel; allowed are those of "
            "detkit.structures.FIELDS, and detections under several names are fused one name at a time"
        )
    if missing := [key for key in ("boxes", "scores", "labels") if key not in entries]:
        raise ValueError(
            f"{where}: no {missing[0]!r} among {sorted(entries)}; a detection has boxes, scores and labels"
        )
    if getattr(entries.get("masks"), "ndim", 3) == 4 and entries["masks"].shape[1] == 1:
        entries["masks"] = entries["masks"][:, 0]
    objects = {key: values for key, values in entries.items() if FIELDS[key].of == "object"}
    read: dict[str, Any] = {**read_target(objects, where=where, size=size)}
    others = {key: values for key, values in entries.items() if key not in objects}
    for key in (key for key in others if FIELDS[key].of == "pixel" and size is not None):
        check_size(others[key].shape[-2:], cast(Sequence[int], size), where=f"{where}: {key}")
    return View(read, others)


def joined(views: Sequence[View], *, where: str) -> dict[str, Tensor]:
    """The objects of all views, one view's after the other's.

    A view without objects may lack entries. Raises ValueError naming ``where`` and the view whose entries are others
    than those of the first with objects, or of another shape: class scores of other classes, say.

    >>> view = View({"boxes": torch.ones(2, 4), "scores": torch.ones(2), "labels": torch.ones(2)}, {})
    >>> len(joined([view, view], where="x")["scores"])
    4
    """
    first_where = where.rpartition(": ")[2]
    filled = [i for i, view in enumerate(views) if len(view)] or [0]
    first = views[filled[0]].objects
    for i in filled[1:]:
        own = views[i].objects
        if own.keys() != first.keys():
            raise ValueError(
                f"{where}[{i}] holds {sorted(own)}, {first_where}[{filled[0]}] {sorted(first)}; allowed are the "
                "same entries in all"
            )
        for key, rows in own.items():
            if rows.shape[1:] != first[key].shape[1:]:
                raise ValueError(
                    f"{where}[{i}]: {key} have shape {tuple(rows.shape)}; allowed are rows of "
                    f"{tuple(first[key].shape[1:])} as in {first_where}[{filled[0]}]"
                )
    return {key: torch.cat([views[i].objects[key] for i in filled]) for key in first}


def flipped_back(values: Tensor, moves: str, flip: Flip, size: Sequence[int]) -> Tensor:
    """An entry found in a flipped image of ``size`` (height, width), as it is in the image before the flip.

    >>> flipped_back(torch.tensor([[1.0, 2, 3, 4]]), "boxes", "horizontal", (10, 10))
    tensor([[7., 2., 9., 4.]])
    """
    if moves in ("masks", "map"):
        return values.flip(AXES[flip]) if AXES[flip] else values
    for axis in AXES[flip]:
        place, length = -axis - 1, size[axis]  # 0: x, 1: y
        columns = [*promote(values).unbind(-1)]
        if moves == "boxes":
            columns[place], columns[place + 2] = length - columns[place + 2], length - columns[place]
        else:
            columns[place] = length - columns[place]
        values = torch.stack(columns, dim=-1)
    return values


def resized_back(values: Tensor, moves: str, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """An entry found in an image of size ``old``, as it is where the image has size ``new``, both (height, width).

    Real-valued masks and maps are resized bilinearly, others take the nearest pixel.

    >>> resized_back(torch.tensor([[1.0, 2, 3, 4]]), "boxes", (10, 10), (10, 20))
    tensor([[2., 2., 6., 4.]])
    """
    if tuple(old) == tuple(new):
        return values
    if moves in ("masks", "map"):
        return _resized_pixels(values, new)
    (height, width), (old_height, old_width), values = new, old, promote(values)
    after, before = (width, height), (old_width, old_height)
    after, before = (after * 2, before * 2) if moves == "boxes" else ((*after, 1), (*before, 1))
    return values * values.new_tensor(after) / values.new_tensor(before)  # by a quotient, an edge may pass the image's


def shifted(values: Tensor, moves: str, top: int, left: int) -> Tensor:
    """Boxes or points found in a part of an image that begins at (top, left), as they are in the image.

    >>> shifted(torch.tensor([[1.0, 2, 3, 4]]), "boxes", 100, 10)
    tensor([[ 11., 102.,  13., 104.]])
    """
    if top == left == 0:
        return values
    values = promote(values)
    return values + values.new_tensor((left, top, left, top) if moves == "boxes" else (left, top, 0))


def _resized_pixels(values: Tensor, size: Sequence[int]) -> Tensor:
    planes = values.reshape(1, -1, *values.shape[-2:])
    if planes.shape[1] == 0:
        return values.new_zeros((*values.shape[:-2], *size))
    if values.is_floating_point():
        planes = F.interpolate(planes, size=tuple(size), mode="bilinear", align_corners=False)
    else:
        rows, columns = (
            nearest_pixels(after, 0, before, values.device)
            for after, before in zip(size, values.shape[-2:], strict=True)
        )
        planes = planes[:, :, rows[:, None], columns]
    return planes.reshape(*values.shape[:-2], *size)
