"""An input size and a finest level that suit a data set: small classes get cells enough, images no more pixels."""

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from detkit.detectors.recipes.trunks import Finest
from detkit.inspect.report import Truth, objects_of, sides

_WANTED = 28.0  # pixels of a small object at input, three and a half cells of stride 8: what bccd and digits learn well
_FEWEST, _MOST = 320 * 320, 640 * 640  # pixels of the input
_QUARTER = 0.25


class Suggestion(NamedTuple):
    """The (height, width) of a detector's input, and the stride of its finest level, 4 for tiny objects."""

    size: tuple[int, int]
    finest: Finest

    def taken_by(self, recipe: Callable[..., Any]) -> dict[str, Any]:
        """Those that are options of a recipe, by name."""
        taken = inspect.signature(recipe).parameters
        return {name: value for name, value in self._asdict().items() if name in taken}


def suggest(truth: Truth) -> Suggestion:
    """The size at which small objects are some 28 pixels, in the shape of the images, rounded to multiples of 32.

    Small is the lower quartile of the objects where all classes count alike. The size has 320 x 320 to 640 x 640
    pixels; images below that are enlarged only for small objects, and at most twice. Where small objects then have less
    than 16 pixels the finest level has stride 4.

    >>> target = {"boxes": torch.tensor([[0.0, 0, 42, 42]]), "labels": torch.tensor([0])}
    >>> suggest(Truth([0], [target], [(600, 800)]))
    Suggestion(size=(384, 544), finest=8)
    """
    if not truth.sizes:
        return Suggestion((320, 320), 8)
    shapes = torch.tensor(truth.sizes).double()
    pixels = float(shapes.prod(1).median())
    ratio = float((shapes[:, 1] / shapes[:, 0]).median())
    small = small_side(truth)
    lowest, highest = min(1.0, math.sqrt(_FEWEST / pixels)), min(2.0, math.sqrt(_MOST / pixels))
    scale = lowest if small is None else min(max(_WANTED / small, lowest), highest)
    height = scale * math.sqrt(pixels / ratio)
    size = (max(1, round(height / 32)) * 32, max(1, round(height * ratio / 32)) * 32)
    return Suggestion(size, 4 if small is not None and scale * small < 16 else 8)


def small_side(truth: Truth) -> float | None:
    """The lower quartile of the objects' sides (root of the area, in pixels), classes alike; None without objects."""
    found = [objects_of(target) for target in truth.targets]
    lengths, labels = torch.cat([sides(boxes) for boxes, _ in found]), torch.cat([labels for _, labels in found])
    lengths, labels = lengths[lengths > 0], labels[lengths > 0]
    lengths, order = lengths.sort()
    _, rows, counts = labels[order].unique(return_inverse=True, return_counts=True)
    share = (1.0 / counts.double())[rows].cumsum(0) / len(counts)  # each class counts alike, as in AP
    return float(lengths[share >= _QUARTER][0]) if len(lengths) else None
