"""The class of each pixel, drawn from the masks of objects."""

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from detkit._door import door
from detkit.structures.batch import NEGATIVE
from detkit.structures.fields import VOID
from detkit.structures.labels import check_labels


@door
def draw_segmentation(
    masks: Shaped[Tensor, "*B T H W"],
    labels: Int[Tensor, "*B T"],
    objects: Bool[Tensor, "*B T"],
    crowds: Bool[Tensor, "*B T"],
) -> Int[Tensor, "*B H W"]:
    """The class of each pixel: 1 + the label of the first object that covers it, or 0, which is background.

    ``masks`` are nonzero inside. Pixels of crowd regions that no object covers are VOID; rows that are neither
    ``objects`` nor ``crowds`` are padding. Raises ValueError for objects with labels outside 0..253, as 255 is VOID (on
    accelerators with ``DETKIT_CHECKS=full``).

    >>> masks = torch.tensor([[[1, 1, 0, 0]], [[0, 1, 1, 0]]])
    >>> both = torch.tensor([True, True])
    >>> draw_segmentation(masks, torch.tensor([4, 2]), both, ~both)
    tensor([[5, 5, 3, 0]])
    """
    known = torch.where(objects, labels.to(torch.int64), 0)
    check_labels(known, VOID - 1, lowest=0, function="draw_segmentation", name="labels")
    count = masks.shape[-3]
    numbers = torch.arange(count + 1, 1, -1, device=masks.device)  # above that of a crowd, the first the highest
    highest = _highest(masks, torch.where(objects, numbers, torch.where(crowds, 1, 0)), count + 1)
    classes = of_owners(known, count + 1 - highest) + 1
    return torch.where(highest > 1, classes, torch.where(highest == 1, VOID, 0))


def pixel_owners(masks: Shaped[Tensor, "*B T H W"], rows: Bool[Tensor, "*B T"]) -> Int[Tensor, "*B H W"]:
    """Which of the ``rows`` is the first that covers each pixel, or NEGATIVE.

    >>> pixel_owners(torch.tensor([[[1, 1, 0]], [[0, 1, 0]]]), torch.tensor([False, True]))
    tensor([[-1,  1, -1]])
    """
    count = masks.shape[-3]
    highest = _highest(masks, torch.arange(count, 0, -1, device=masks.device) * rows, count)
    return torch.where(highest > 0, count - highest, NEGATIVE)


def _highest(masks: Shaped[Tensor, "*B T H W"], numbers: Int[Tensor, "*B T"], most: int) -> Int[Tensor, "*B H W"]:
    """The highest number, of 0 to ``most``, of the masks that cover each pixel, or 0.

    Where the first mask has the highest, this finds the first as argmax does, but torch takes for the place of a
    maximum up to fifty times as long as for a maximum of bytes.
    """
    if masks.shape[-3] == 0:
        return numbers.new_zeros((*masks.shape[:-3], *masks.shape[-2:]))
    kind = torch.int32  # what is traced holds for other numbers of masks, too
    if not torch.compiler.is_compiling():
        kind = next(kind for kind in (torch.uint8, torch.int16, torch.int32) if most <= torch.iinfo(kind).max)
    inside = masks if masks.dtype == torch.bool else masks != 0
    return (inside * numbers.to(kind)[..., None, None]).amax(-3).to(torch.int64)


def of_owners(values: Shaped[Tensor, "*B T"], owners: Int[Tensor, "*B H W"]) -> Shaped[Tensor, "*B H W"]:
    """The value of each pixel's owner; any value where the number is of none.

    >>> of_owners(torch.tensor([7, 8]), torch.tensor([[1, 0, 1]]))
    tensor([[8, 7, 8]])
    """
    if values.shape[-1] == 0:
        return values.new_zeros(owners.shape)
    return values.gather(-1, owners.clamp(0, values.shape[-1] - 1).flatten(-2)).unflatten(-1, owners.shape[-2:])
