"""Where an image lies in its frame, and how that leads from the pixels of a batch to its own."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from detkit.structures import Images


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
