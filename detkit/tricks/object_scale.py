"""Training at the scale of objects: an image is resized so that one of its objects gets a size that chance chooses."""

from typing import Any

from detkit._door import door
from detkit._ranges import Count, Fraction, Positive
from detkit.tricks.pieces import Piece, View, crowds, place_target, resized
from detkit.tricks.samples import Batch, BatchAugmentation, between


class RandomObjectScale(BatchAugmentation):
    """Resizes each image so that one of its objects, chosen at random, has a short side between ``low`` and ``high``.

    The image's own short side becomes that of the object's factor, rounded, but at least ``shortest``; then its long
    side at most ``longest`` pixels. Width and height keep their ratio. An image without objects other than crowds
    and those of weight 0 keeps its size within the same bounds. Hand the result to a detector whose preprocess leaves
    sizes alone (``Preprocess(None, multiple_of=64)``).

    Arguments and errors as in :class:`BatchAugmentation`; raises ValueError for ``low`` above ``high`` and ``shortest``
    above ``longest``. Source: Li et al. 2016, "Do We Really Need More Training Data For Object Localization", remark
    (a); the numbers are those of the authors' code.

    >>> import torch
    >>> target = {"boxes": torch.tensor([[100.0, 100, 160, 200]]), "labels": torch.tensor([0])}
    >>> images, targets = RandomObjectScale(96, 96)([torch.zeros(3, 480, 640)], [target])
    >>> tuple(images[0].shape), targets[0]["boxes"].tolist()
    ((3, 750, 1000), [[156.25, 156.25, 250.0, 312.5]])
    """

    draws = 2
    refused = ()

    @door
    def __init__(
        self,
        low: Positive = 72.0,
        high: Positive = 128.0,
        *,
        shortest: Count = 100,
        longest: Count = 1000,
        probability: Fraction = 1.0,
    ) -> None:
        super().__init__(probability=probability)
        for one, other, name in ((low, high, "low, high"), (shortest, longest, "shortest, longest")):
            if one > other:
                raise ValueError(
                    f"RandomObjectScale: {name} are {one}, {other}; the first must not be above the second"
                )
        self.low, self.high, self.shortest, self.longest = low, high, shortest, longest

    def _augmented(self, batch: Batch, index: int, numbers: list[float]) -> tuple[Any, dict[str, Any]]:
        """The image ``index`` resized by one of its objects."""
        image, target = batch.images[index], batch.targets[index]
        height, width = image.shape[-2:]
        sides = (target["boxes"][:, 2:] - target["boxes"][:, :2]).amin(1)
        there = target["weights"] > 0 if "weights" in target else sides > 0
        objects = sides[~crowds(target) & (sides > 0) & there].tolist()
        factor = between((self.low, self.high), numbers[1]) / objects[int(numbers[0] * len(objects))] if objects else 1
        short = max(round(factor * min(height, width)), self.shortest)
        factor = min(short / min(height, width), self.longest / max(height, width))
        size = max(1, round(height * factor)), max(1, round(width * factor))
        piece = Piece((0, 0, height, width), (0, 0, *size))
        return resized(image, size), place_target(target, piece, size, keys=batch.keys, view=View(0.0, 0.0))

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        names = "low", "high", "shortest", "longest", "probability"
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)
