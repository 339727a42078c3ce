"""Label smoothing: targets a little below 1 and above 0, in the one form that losses and training loops share."""

from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from detkit._door import door
from detkit._inputs import as_tensor, first_bad, looked_at, promote
from detkit._ranges import Count, Fraction
from detkit.structures.batch import IGNORED
from detkit.structures.labels import check_labels

Spread = Literal["others", "all", "each"]


def smoothed_levels(smoothing: float, num_classes: int, spread: Spread = "others") -> tuple[float, float]:
    """The targets of the true class and of each other one.

    >>> smoothed_levels(0.1, 5), smoothed_levels(0.1, 5, "all"), smoothed_levels(0.1, 5, "each")
    ((0.9, 0.025), (0.92, 0.02), (0.9, 0.1))
    """
    if spread == "each":
        return 1 - smoothing, smoothing
    off = smoothing / (max(num_classes - 1, 1) if spread == "others" else num_classes)
    return 1 - smoothing + (off if spread == "all" else 0.0), off


@door
def smooth_labels(
    targets: Shaped[Tensor, "..."],
    num_classes: Count | None = None,
    *,
    smoothing: Fraction = 0.1,
    spread: Spread = "others",
) -> Float[Tensor, "... C"]:
    """Targets (..., C) of which each number y becomes y * on + (1 - y) * off.

    ``targets`` are labels (...) with their ``num_classes``, 0..C-1, or numbers in [0, 1], (..., C): one class, several,
    or a mixture. With smoothing s and ``spread="others"``, for a softmax, on = 1 - s and off = s / (C - 1): what the
    true class gives up goes to the others. ``"all"`` is torch's ``label_smoothing``: on = 1 - s + s / C, off = s / C,
    the same at s * C / (C - 1). ``"each"`` is for a sigmoid, where classes do not share a sum: on = 1 - s, off = s.
    Rows that sum to 1 still do, but with ``"each"``. Criteria smooth by themselves (``label_smoothing=``); this is for
    losses of your own. Raises ValueError for labels out of range or without ``num_classes``, numbers outside [0, 1] or
    of another number of classes, and one class that has no others to give to. Sources: Szegedy et al. 2016, section 7;
    Zhang et al. 2019 ("Bag of Freebies"), section 3.2.

    >>> smooth_labels(torch.tensor([1]), 3, smoothing=0.1)
    tensor([[0.0500, 0.9000, 0.0500]])
    >>> smooth_labels(torch.tensor([[1.0, 0.0, 1.0]]), smoothing=0.1, spread="each")
    tensor([[0.9000, 0.1000, 0.9000]])
    """
    targets = as_tensor(targets, function="smooth_labels", name="targets")
    if spread not in ("others", "all", "each"):
        raise ValueError(f"smooth_labels: spread={spread!r}; allowed is 'others', 'all' or 'each'")
    hot = _hot(targets, num_classes)
    if smoothing and hot.shape[-1] == 1 and spread == "others":
        raise ValueError(f"smooth_labels: smoothing={smoothing} of 1 class has no others to go to; spread='each' has")
    on, off = smoothed_levels(smoothing, hot.shape[-1], spread)
    return off + hot * (on - off)


@door
def detection_smoothing(num_classes: Count) -> float:
    """How much to smooth the classes of a detector with sigmoids: min(1 / C, 1 / 40).

    Source: Zhang et al. 2019, "Bag of Freebies", as its authors' release (GluonCV's YOLO v3) has it.

    >>> detection_smoothing(20), detection_smoothing(80)
    (0.025, 0.0125)
    """
    return min(1 / num_classes, 1 / 40)


def _hot(targets: Tensor, num_classes: int | None) -> Float[Tensor, "... C"]:
    """Numbers (..., C), of labels 1 for the class."""
    if targets.is_floating_point() or targets.dtype == torch.bool:
        if targets.ndim == 0 or num_classes not in (None, targets.shape[-1]):
            raise ValueError(
                f"smooth_labels: targets have shape {tuple(targets.shape)} and num_classes={num_classes}; allowed are "
                "numbers (..., C)"
            )
        if looked_at(targets) and (bad := ~((targets >= 0) & (targets <= 1))).any():
            place, count = first_bad(bad)
            raise ValueError(
                f"smooth_labels: targets[{', '.join(map(str, place))}]={targets[place].item():g} must lie in [0, 1]; "
                f"{count} of {targets.numel()} do not"
            )
        return targets.float() if targets.dtype == torch.bool else promote(targets)
    if num_classes is None:
        raise ValueError(f"smooth_labels: targets are labels ({targets.dtype}): give their num_classes")
    labels = targets.to(torch.int64)
    check_labels(labels, num_classes, lowest=0, function="smooth_labels", name="targets")
    if looked_at(labels) and (labels == IGNORED).any():
        raise ValueError("smooth_labels: targets hold IGNORED (-2), which has no class; leave those rows out before")
    return (labels[..., None] == torch.arange(num_classes, device=labels.device)).float()
