"""The range of integer labels, checked where they are read."""

import torch
from jaxtyping import Shaped
from torch import Tensor

from detkit._inputs import first_bad, full_checks, is_mapped
from detkit.structures.batch import IGNORED, NEGATIVE


def check_labels(labels: Shaped[Tensor, "..."], num_classes: int, *, lowest: int, function: str, name: str) -> None:
    """Raise ValueError for the first label that is neither IGNORED nor in ``lowest`` .. ``num_classes`` - 1.

    Looks at values: always on a CPU, elsewhere with ``DETKIT_CHECKS=full``, never under ``torch.compile``
    or ``torch.func.vmap``.

    >>> check_labels(torch.tensor([0, 2, -1]), 2, lowest=NEGATIVE, function="f", name="labels")
    Traceback (most recent call last):
    ValueError: f: labels[1]=2 must lie in 0..1, or be NEGATIVE (-1) or IGNORED (-2); 1 of 3 do not
    """
    if torch.compiler.is_compiling() or is_mapped() or not (labels.device.type == "cpu" or full_checks()):
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
