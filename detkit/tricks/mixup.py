"""Mixup: two images blended into one, for classification with their labels, for detection with all their objects."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from detkit._door import door
from detkit._inputs import first_bad, looked_at, promote
from detkit._ranges import Count, Fraction, Positive
from detkit.structures import FIELDS
from detkit.structures.rows import join_rows
from detkit.tricks.samples import Batch, BatchAugmentation, check_partners, check_type, others, strips, uniform, whole


class Mixup(nn.Module):
    """Blends each image of a classification batch with another one: ``lam * x_i + (1 - lam) * x_j``, labels alike.

    lam is drawn for each image from Beta(``alpha``, ``alpha``), j from the other images. Zhang et al. 2018 (section 2)
    draw one lam for a batch and may pair an image with itself.

    >>> mixup, generator = Mixup(3, alpha=1.0), torch.Generator().manual_seed(0)
    >>> images, labels = mixup(torch.ones(2, 3, 8, 8), torch.tensor([0, 2]), generator=generator)
    >>> labels
    tensor([[0.9701, 0.0000, 0.0299],
            [0.5406, 0.0000, 0.4594]])
    """

    @door
    def __init__(self, num_classes: Count, *, alpha: Positive = 0.2) -> None:
        super().__init__()
        self.num_classes, self.alpha = int(num_classes), alpha

    @door
    def forward(
        self,
        images: Shaped[Tensor, "B D H W"],
        labels: Shaped[Tensor, "B"] | Shaped[Tensor, "B C"],
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Shaped[Tensor, "B D H W"], Float[Tensor, "B C"]]:
        """New images of the same type (integers rounded), and soft labels (B, num_classes) in [0, 1].

        images: uint8, uint16 or floats. labels: classes (B,) in 0..num_classes-1, or rows (B, num_classes) in [0, 1],
        such as multi-hot ones. Raises ValueError for other types, shapes and values (those on accelerators with
        ``DETKIT_CHECKS=full``), and for one image.
        """
        if images.ndim != 4 or len(images) != len(labels):
            raise ValueError(
                f"Mixup: images {tuple(images.shape)} and labels {tuple(labels.shape)}; allowed are (B, D, H, W) and B "
                "labels"
            )
        check_partners(len(images), function="Mixup")
        check_type(images.dtype, where="Mixup: images")
        rows = self._rows(labels)
        numbers = uniform((len(images), 2), generator)
        partners = [others(i, row[1:], len(numbers))[0] for i, row in enumerate(numbers)]
        shares = beta([row[0] for row in numbers], self.alpha)
        blended = [_blend(image, images[j], share) for image, j, share in zip(images, partners, shares, strict=True)]
        soft = rows[partners].lerp(rows, rows.new_tensor(shares)[:, None])
        return torch.stack(blended), soft

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"{self.num_classes}, alpha={self.alpha}"

    def _rows(self, labels: Tensor) -> Float[Tensor, "B C"]:
        if labels.ndim == 1 and not (labels.is_floating_point() or labels.dtype == torch.bool):
            low, high, rows = 0, self.num_classes - 1, None
        elif labels.ndim == 2 and labels.shape[1] == self.num_classes:
            low, high, rows = 0, 1, labels
        else:
            raise ValueError(
                f"Mixup: labels have shape {tuple(labels.shape)} and are {labels.dtype}; allowed are integers (B,), or "
                f"rows (B, {self.num_classes})"
            )
        if looked_at(labels) and (bad := ~((labels >= low) & (labels <= high))).any():
            place, count = first_bad(bad)
            raise ValueError(
                f"Mixup: labels[{', '.join(map(str, place))}]={labels[place].item()} must lie in [{low}, {high}]; "
                f"{count} of {labels.numel()} do not"
            )
        if rows is not None:
            return rows.to(torch.float32)
        return (labels[:, None] == torch.arange(self.num_classes, device=labels.device)).to(torch.float32)


class DetectionMixup(BatchAugmentation):
    """Blends each image with another of the batch; all objects of both stay, weighted with their image's share.

    The canvas has the larger height and the larger width of the two. Both images lie at its upper left corner, not
    resized, on black: ``lam * x_i + (1 - lam) * x_j``, lam from Beta(``alpha``, ``alpha``); with ``even`` it is 1/2.
    Integers are computed as float32 and rounded, halves up. Boxes and all else of the objects are those of i, then
    those of j, unchanged but for ``weights``: times lam, and times 1 - lam, where an image without weights has 1.
    Losses must heed them: those of this library do. At lam = 1 the image comes back as it is.

    Raises ValueError for a batch of one, and for a segmentation: a pixel of two images has two classes. All else, and
    the other errors, as in :class:`BatchAugmentation`.

    Source: Zhang, He, Zhang et al. 2019 ("Bag of Freebies for Training Object Detection"), section 3.1, which also
    turns it off for the last epochs; ``even`` mixing suits losses that take no weights.

    >>> images = [torch.full((3, 2, 4), 100, dtype=torch.uint8), torch.full((3, 4, 2), 50, dtype=torch.uint8)]
    >>> targets = [{"boxes": torch.tensor([[0.0, 0, 2, 2]]), "labels": torch.tensor([i])} for i in range(2)]
    >>> images, targets = DetectionMixup(even=True)(images, targets)
    >>> images[0][0], targets[0]["labels"], targets[0]["weights"]
    (tensor([[75, 75, 50, 50],
            [75, 75, 50, 50],
            [25, 25,  0,  0],
            [25, 25,  0,  0]], dtype=torch.uint8), tensor([0, 1]), tensor([0.5000, 0.5000]))
    """

    draws = 2
    refused = ("no", "view")

    @door
    def __init__(self, *, alpha: Positive = 1.5, even: bool = False, probability: Fraction = 1.0) -> None:
        super().__init__(probability=probability)
        self.alpha, self.even = alpha, even

    def _augmented(self, batch: Batch, index: int, numbers: list[float]) -> tuple[Tensor, dict[str, Any]]:
        """The image ``index`` blended with another one."""
        check_partners(len(batch.images), function="DetectionMixup")
        share = 0.5 if self.even else beta(numbers[:1], self.alpha)[0]
        if share >= 1:
            return batch.images[index], batch.targets[index]
        members = [index, *others(index, numbers[1:], len(batch.images))]
        images = [batch.images[member] for member in members]
        size = [max(sides) for sides in zip(*(image.shape[-2:] for image in images), strict=True)]
        first, second = (_padded(image, size) for image in images)
        targets = [
            _weighted(batch.targets[member], size, part)
            for member, part in zip(members, (share, 1 - share), strict=True)
        ]
        keys = dict.fromkeys((*batch.keys, "weights"))
        return _blend(first, second, share), join_rows(targets, keys)

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"alpha={self.alpha}, even={self.even}, probability={self.probability}"


def beta(numbers: Sequence[float], alpha: float) -> list[float]:
    """Numbers that are uniform in [0, 1) as ones of Beta(alpha, alpha), the inverse of its distribution at each.

    >>> beta([0.0, 0.5, 0.9], 1.0)
    [0.0, 0.5, 0.9]
    """
    from scipy.special import betaincinv

    return [float(betaincinv(alpha, alpha, number)) for number in numbers]


def _padded(pixels: Tensor, size: Sequence[int]) -> Tensor:
    height, width = (whole - own for whole, own in zip(size, pixels.shape[-2:], strict=True))
    return F.pad(pixels, (0, width, 0, height)) if height or width else pixels


def _blend(first: Tensor, second: Tensor, share: float) -> Tensor:
    """``share`` of the first and the rest of the second, in their type; integers rounded, halves up."""
    if first.dtype.is_floating_point:
        return second.lerp(first, share)
    blended = torch.empty_like(first)
    for new, one, other in strips(blended, first, second):
        mixed = one.to(torch.float32).mul_(share).add_(other.to(torch.float32), alpha=1 - share).add_(0.5)
        new.copy_(whole(mixed, first.dtype))
    return blended


def _weighted(target: dict[str, Any], size: Sequence[int], share: float) -> dict[str, Any]:
    """The target on a canvas of ``size``, its objects weighted with the ``share`` of their image."""
    weighted = dict(target)
    weights = (
        promote(target["weights"]) if "weights" in target else torch.ones_like(target["labels"], dtype=torch.float32)
    )
    for key in target.keys() & FIELDS.keys():
        if FIELDS[key].moves == "masks":
            weighted[key] = _padded(target[key], size)
    return weighted | {"weights": weights * share}
