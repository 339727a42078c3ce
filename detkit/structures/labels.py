"""The values of ground truth, checked where they are read: labels, weights and boxes."""

import torch
from jaxtyping import Shaped
from torch import Tensor

from detkit._inputs import first_bad, looked_at
from detkit.structures.batch import IGNORED, NEGATIVE, Targets


def check_labels(labels: Shaped[Tensor, "..."], num_classes: int, *, lowest: int, function: str, name: str) -> None:
    """Raise ValueError for the first label that is neither IGNORED nor in ``lowest`` .. ``num_classes`` - 1.

    Labels that are no integers are refused, too. Looks at values as :func:`~detkit._inputs.looked_at` says.

    >>> check_labels(torch.tensor([0, 2, -1]), 2, lowest=NEGATIVE, function="f", name="labels")
    Traceback (most recent call last):
    ValueError: f: labels[1]=2 must lie in 0..1, or be NEGATIVE (-1) or IGNORED (-2); 1 of 3 do not
    """
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"{function}: {name} has type {labels.dtype}; allowed are integers")
    if not looked_at(labels):
        return
    bad = ((labels < lowest) & (labels != IGNORED)) | (labels >= num_classes)
    if bad.any():
        index, count = first_bad(bad)
        place = ", ".join(map(str, index))
        special = "NEGATIVE (-1) or IGNORED (-2)" if lowest <= NEGATIVE else "IGNORED (-2)"
        raise ValueError(
            f"{function}: {name}[{place}]={labels[index].item()} must lie in 0..{num_classes - 1}, or be "
            f"{special}; {count} of {labels.numel()} do not"
        )


def check_targets(targets: Targets, *, function: str) -> None:
    """Raise ValueError for the first object whose label is negative, or whose weight is negative or not finite.

    Padding and crowds may hold anything. Looks at values as :func:`check_labels` does.

    >>> yes, no = torch.tensor([[True]]), torch.tensor([[False]])
    >>> check_targets(Targets(torch.zeros(1, 1, 4), torch.tensor([[-2]]), yes, no), function="f")
    Traceback (most recent call last):
    ValueError: f: targets.labels[0, 0]=-2 must be at least 0; 1 object is wrong
    """
    if not looked_at(targets.valid):
        return
    bad = targets.objects & (targets.labels < 0)
    _refuse(bad, targets.labels, f"{function}: targets.labels", "be at least 0")
    if targets.weights is not None:
        check_weights(torch.where(targets.objects, targets.weights, 1), function=function, name="targets.weights")


def check_weights(weights: Shaped[Tensor, "..."], *, function: str, name: str = "weights") -> None:
    """Raise ValueError for the first weight that is negative or not finite; looks as :func:`check_labels` does.

    >>> check_weights(torch.tensor([1.0, -1.0]), function="f")
    Traceback (most recent call last):
    ValueError: f: weights[1]=-1.0 must be at least 0 and finite; 1 object is wrong
    """
    if looked_at(weights):
        bad = ~((weights >= 0) & torch.isfinite(weights))
        _refuse(bad, weights, f"{function}: {name}", "be at least 0 and finite")


def _refuse(bad: Tensor, values: Tensor, where: str, allowed: str) -> None:
    if bad.any():
        index, count = first_bad(bad)
        objects = "object is" if count == 1 else "objects are"
        raise ValueError(
            f"{where}[{', '.join(map(str, index))}]={values[index].tolist()} must {allowed}; {count} {objects} wrong"
        )
