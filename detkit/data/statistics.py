"""What a data set of boxes is like: how many objects, how large, how many of them small or twisted."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch

from detkit._door import door
from detkit._inputs import check_finite
from detkit._ranges import Count
from detkit.structures import Target, read_target

_SMALL, _TWISTED = 32.0 * 32.0, 4.0


class ObjectStatistics(NamedTuple):
    """Counts and shares of the objects of a data set, crowds left out; shares are NaN without objects.

    ``images_per_class``: the fewest and the most images that show a class, of those that occur; ``scale``: the mean
    share of its image that a box covers; ``small``: the share of objects below 32 * 32 pixels; ``twisted``: the share
    of those more than four times as wide as high, or as high as wide.
    """

    images: int
    objects: int
    images_per_class: tuple[int, int]
    objects_per_image: float
    scale: float
    small: float
    twisted: float


@door
def object_statistics(targets: Sequence[Target], sizes: Sequence[tuple[Count, Count]]) -> ObjectStatistics:
    """Statistics of the ``targets`` of N images of ``sizes`` (height, width).

    Labels below 0 are no class; their objects count. Of a :class:`CocoDataset` these are
    ``[dataset.target(i) for i in range(len(dataset))]`` and ``dataset.image_size(i)``. Raises ValueError for different
    numbers of images, sizes below 1, boxes that are not finite, and as :func:`~detkit.structures.read_target` does.
    Source: Li et al. 2016, "Do We Really Need More Training Data For Object Localization", table of the data sets,
    which gives shares in percent.

    >>> target = {"boxes": torch.tensor([[0.0, 0, 50, 10], [0, 0, 40, 50]]), "labels": torch.tensor([3, 3])}
    >>> found = object_statistics([target], [(100, 100)])
    >>> found.images_per_class, found.objects_per_image, found.scale, found.small, found.twisted
    ((1, 1), 2.0, 0.125, 0.5, 0.5)
    """
    if len(targets) != len(sizes):
        raise ValueError(f"object_statistics: {len(targets)} targets, {len(sizes)} sizes; each image needs both")
    shown: Counter[int] = Counter()
    rows = [torch.zeros(0, 3, dtype=torch.float64)]
    for i, (target, (height, width)) in enumerate(zip(targets, sizes, strict=True)):
        read = read_target(target, where=f"object_statistics: targets[{i}]")
        objects = ~torch.as_tensor(read.get("iscrowd", torch.zeros(len(read["boxes"])))).bool()
        check_finite(read["boxes"][objects], function="object_statistics", name=f"targets[{i}]: boxes of objects")
        sides = (read["boxes"][objects, 2:] - read["boxes"][objects, :2]).double().clamp(min=0)
        rows.append(torch.cat((sides, sides.prod(1, keepdim=True) / (height * width)), dim=1))
        shown.update(label for label in set(read["labels"][objects].tolist()) if label >= 0)
    wide, high, share = torch.cat(rows).unbind(1)
    twisted = (wide > _TWISTED * high) | (high > _TWISTED * wide)
    return ObjectStatistics(
        images=len(targets),
        objects=len(share),
        images_per_class=(min(shown.values(), default=0), max(shown.values(), default=0)),
        objects_per_image=len(share) / max(len(targets), 1),
        scale=share.mean().item(),
        small=(wide * high < _SMALL).double().mean().item(),
        twisted=twisted.double().mean().item(),
    )
