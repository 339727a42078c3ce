"""The class of each pixel, drawn from the masks of objects."""

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from detkit._door import door
from detkit._inputs import on_host
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
    owners = pixel_owners(masks, objects)
    ground = torch.zeros_like(owners)
    if not on_host(crowds) or crowds.any():
        ground = torch.where(pixel_owners(masks, crowds) >= 0, VOID, 0)
    return torch.where(owners >= 0, of_owners(known, owners) + 1, ground)


def pixel_owners(masks: Shaped[Tensor, "*B T H W"], rows: Bool[Tensor, "*B T"]) -> Int[Tensor, "*B H W"]:
    """Which of the ``rows`` is the first that covers each pixel, or NEGATIVE.

    >>> pixel_owners(torch.tensor([[[1, 1, 0]], [[0, 1, 0]]]), torch.tensor([False, True]))
    tensor([[-1,  1, -1]])
    """
    count = masks.shape[-3]
    if count == 0:
        return masks.new_full((*masks.shape[:-3], *masks.shape[-2:]), NEGATIVE, dtype=torch.int64)
    inside = masks if masks.dtype == torch.bool else masks != 0
    # The first is given the highest number, since torch finds a maximum of bytes 50 times as fast as its place.
    small = next(kind for kind in (torch.uint8, torch.int16, torch.int32) if count <= torch.iinfo(kind).max)
    numbers = (torch.arange(count, 0, -1, device=masks.device) * rows).to(small)
    highest = (inside.view(torch.uint8) * numbers[..., None, None]).amax(-3).to(torch.int64)
    return torch.where(highest > 0, count - highest, NEGATIVE)


def of_owners(values: Shaped[Tensor, "*B T"], owners: Int[Tensor, "*B H W"]) -> Shaped[Tensor, "*B H W"]:
    """The value of each pixel's owner; any value where it has none.

    >>> of_owners(torch.tensor([7, 8]), torch.tensor([[1, 0, 1]]))
    tensor([[8, 7, 8]])
    """
    if values.shape[-1] == 0:
        return values.new_zeros(owners.shape)
    return values.gather(-1, owners.clamp(min=0).flatten(-2)).unflatten(-1, owners.shape[-2:])
