"""Random colors of whole batches: brightness, contrast, saturation and hue as one matrix of each image."""

import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from detkit._door import door
from detkit._inputs import white_of
from detkit._ranges import Ascending, Fraction, NotNegative, Range
from detkit.tricks.samples import Batch, BatchAugmentation, between, strips, whole

_GRAY = (0.299, 0.587, 0.114)
_YIQ = torch.tensor([_GRAY, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)], dtype=torch.float64)
"""RGB to luma and two chroma channels, in which a turn of the hue is a rotation."""
Factors = Annotated[tuple[NotNegative, NotNegative], Ascending()]
Turns = Annotated[tuple[Annotated[float, Range(-0.5, 0.5)], Annotated[float, Range(-0.5, 0.5)]], Ascending()]


class ColorDistortion(BatchAugmentation):
    """Changes brightness, contrast, saturation and hue at random, each with ``part_probability``; targets stay.

    The first three are factors in their range: of the pixels, of their difference from the image's mean gray, of their
    difference from their own gray. The hue turns by a part of the circle in ``hue``. Images have three channels, red,
    green, blue; integers are rounded, halves up, and all are cut to their range once, at the end.

    The amounts are those of :class:`torchvision.transforms.v2.RandomPhotometricDistort` and of SSD (Liu et al. 2016,
    section 2.2). Deviations: all four are linear, so that each image takes one product with a 3 x 3 matrix, about a
    tenth of the time. Hence hue rotates in YIQ, not HSV, and keeps the luma; nothing is cut in between; contrast comes
    first; channels are not permuted. Raises ValueError for other than three channels; see :class:`BatchAugmentation`.

    >>> gray = torch.full((3, 2, 2), 100, dtype=torch.uint8)
    >>> color = ColorDistortion(brightness=(1.5, 1.5), part_probability=1.0)  # gray has no contrast and no hue
    >>> color([gray], [{"image_id": 7}])[0][0].unique()
    tensor([150], dtype=torch.uint8)
    """

    draws = 8
    refused = ()

    @door
    def __init__(
        self,
        *,
        brightness: Factors = (0.875, 1.125),
        contrast: Factors = (0.5, 1.5),
        saturation: Factors = (0.5, 1.5),
        hue: Turns = (-0.05, 0.05),
        part_probability: Fraction = 0.5,
        probability: Fraction = 1.0,
    ) -> None:
        super().__init__(probability=probability)
        self.ranges = tuple(brightness), tuple(contrast), tuple(saturation), tuple(hue)
        self.part_probability = part_probability

    def _augmented(self, batch: Batch, index: int, numbers: list[float]) -> tuple[Tensor, dict[str, Any]]:
        """The image ``index`` in other colors, and its target."""
        image = batch.images[index]
        if image.shape[0] != 3:
            raise ValueError(f"ColorDistortion: images have {image.shape[0]} channels; allowed are 3: red, green, blue")
        chosen = [
            between(reach, number) if chance < self.part_probability else unchanged
            for reach, number, chance, unchanged in zip(
                self.ranges, numbers[:4], numbers[4:], (1, 1, 1, 0), strict=True
            )
        ]
        return _recolored(image, chosen), batch.targets[index]

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        names = ("brightness", "contrast", "saturation", "hue")
        ranges = ", ".join(f"{name}={reach}" for name, reach in zip(names, self.ranges, strict=True))
        return f"{ranges}, part_probability={self.part_probability}, probability={self.probability}"


def _recolored(image: Shaped[Tensor, "3 H W"], chosen: Sequence[float]) -> Shaped[Tensor, "3 H W"]:
    brightness, contrast, saturation, hue = chosen
    white = white_of(image.dtype, where="ColorDistortion: images")
    # Gray has no chroma: saturation and hue leave the mean's part as it is.
    offset = brightness * (1 - contrast) * _mean_gray(image) if contrast != 1 else 0
    offset += 0 if image.dtype.is_floating_point else 0.5
    matrix = (brightness * contrast * _turned(saturation, hue)).tolist()
    recolored = torch.empty_like(image)
    for rows, new in strips(image, recolored):
        channels = rows.to(torch.promote_types(torch.float32, image.dtype))
        for channel, (red, green, blue) in zip(new, matrix, strict=True):
            mixed = (channels[0] * red).add_(channels[1], alpha=green).add_(channels[2], alpha=blue).add_(offset)
            mixed.clamp_(0, white)
            channel.copy_(mixed if image.dtype.is_floating_point else whole(mixed, image.dtype))
    return recolored


def _mean_gray(image: Shaped[Tensor, "3 H W"]) -> float:
    """Summed row by row, which is exact for integers, and for floats does not depend on threads."""
    sums = image.to(torch.promote_types(torch.float32, image.dtype)).sum(2).double().sum(1)
    return sum(part * total for part, total in zip(_GRAY, sums.tolist(), strict=True)) / image[0].numel()


def _turned(saturation: float, hue: float) -> Float[Tensor, "3 3"]:
    """The matrix of RGB that scales the chroma and turns the hue, and leaves gray and the luma."""
    sine, cosine = saturation * math.sin(2 * math.pi * hue), saturation * math.cos(2 * math.pi * hue)
    turn = torch.tensor([[1, 0, 0], [0, cosine, sine], [0, -sine, cosine]], dtype=torch.float64)
    return torch.linalg.inv(_YIQ) @ turn @ _YIQ
