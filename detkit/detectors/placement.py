"""Where an image lies in its frame, and how that leads from the pixels of a batch to its own."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from detkit.structures import Images


class Place(NamedTuple):
    """What the host knows of an image: (height, width) in the batch and as it came, (top, left) in its frame."""

    new: tuple[int, int]
    old: tuple[int, int]
    start: tuple[int, int]


def fitted(height: int, width: int, frame: tuple[int, int]) -> tuple[int, int]:
    """The largest (height, width) with the ratio of an image that fits into a frame, rounded down, at least 1 pixel.

    >>> fitted(480, 640, (416, 416))
    (312, 416)
    """
    if frame[1] * height < frame[0] * width:
        return max(1, height * frame[1] // width), frame[1]
    return frame[0], max(1, width * frame[0] // height)


def spans_of(images: Images) -> Shaped[Tensor, "B 2"]:
    """Height and width of each image in the pixels of the batch.

    >>> spans_of(Images(torch.zeros(1, 3, 8, 8), torch.tensor([[6, 8]]), offsets=torch.tensor([[2, 0]])))
    tensor([[4, 8]])
    """
    return images.sizes if images.offsets is None else images.sizes - images.offsets


def places_of(images: Images) -> list[Place]:
    """The place of each image, read from a device at once.

    >>> places_of(Images(torch.zeros(1, 3, 8, 8), torch.tensor([[6, 8]]), offsets=torch.tensor([[2, 0]])))
    [Place(new=(4, 8), old=(6, 8), start=(2, 0))]
    """
    original = images.sizes if images.original_sizes is None else images.original_sizes
    starts = torch.zeros_like(original) if images.offsets is None else images.offsets
    places = torch.stack((spans_of(images), original, starts), dim=1).tolist()
    return [Place(*((first, second) for first, second in place)) for place in places]


def factors_of(images: Images, like: Tensor) -> Float[Tensor, "B 1 4"]:
    """What takes lengths, as boxes (x, y, x, y), from the pixels of the batch to those of the images as they came.

    >>> factors_of(Images(torch.zeros(1, 3, 8, 8), torch.tensor([[4, 8]]), torch.tensor([[8, 24]])), torch.zeros(1))
    tensor([[[3., 2., 3., 2.]]])
    """
    original = images.sizes if images.original_sizes is None else images.original_sizes
    return (original / spans_of(images)).to(like).flip(-1).repeat(1, 2)[:, None]


def shifts_of(images: Images, like: Tensor) -> Float[Tensor, "B 1 4"]:
    """Where each image begins in its frame, as boxes (x, y, x, y).

    >>> images = Images(torch.zeros(1, 3, 8, 8), torch.tensor([[6, 8]]), offsets=torch.tensor([[2, 0]]))
    >>> shifts_of(images, torch.zeros(1))
    tensor([[[0., 2., 0., 2.]]])
    """
    offsets = torch.zeros_like(images.sizes) if images.offsets is None else images.offsets
    return offsets.to(like).flip(-1).repeat(1, 2)[:, None]
