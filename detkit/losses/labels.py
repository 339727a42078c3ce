"""What the losses check alike: integer labels, and the shapes of rows of logits and deltas."""

import torch
from jaxtyping import Shaped
from torch import Tensor

from detkit._inputs import first_bad, full_checks
from detkit.structures import IGNORED, NEGATIVE


def check_labels(labels: Shaped[Tensor, "..."], num_classes: int, *, lowest: int, function: str, name: str) -> None:
    """Raise ValueError for the first label that is neither IGNORED nor in ``lowest`` .. ``num_classes`` - 1.

    Looks at values: always on a CPU, elsewhere with ``DETKIT_CHECKS=full``, never under ``torch.compile``.

    >>> check_labels(torch.tensor([0, 2, -1]), 2, lowest=NEGATIVE, function="f", name="labels")
    Traceback (most recent call last):
    ValueError: f: labels[1]=2 must lie in 0..1, or be NEGATIVE (-1) or IGNORED (-2); 1 of 3 do not
    """
    if torch.compiler.is_compiling() or not (labels.device.type == "cpu" or full_checks()):
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


def check_dense_shapes(
    function: str,
    logits: Tensor,
    deltas: Tensor,
    labels: Tensor,
    delta_targets: Tensor,
    weights: Tensor | None,
    *,
    outputs: str = "C",
) -> None:
    """Raise ValueError unless logits (B, N, C), deltas and targets (B, N, 4), labels and weights (B, N) fit together.

    ``outputs`` is what the message calls the columns of the logits.

    >>> logits, deltas, labels = torch.zeros(1, 2, 3), torch.zeros(1, 2, 4), torch.zeros(1, 3)
    >>> check_dense_shapes("f", logits, deltas, labels, deltas, None)
    Traceback (most recent call last):
    ValueError: f: logits (1, 2, 3), ...
    """
    shapes = {"deltas": deltas.shape, "labels": labels.shape, "delta_targets": delta_targets.shape}
    expected = {"deltas": (*labels.shape, 4), "labels": logits.shape[:2], "delta_targets": deltas.shape}
    if any(shapes[name] != torch.Size(expected[name]) for name in shapes):
        listed = ", ".join(f"{name} {tuple(shape)}" for name, shape in {"logits": logits.shape, **shapes}.items())
        raise ValueError(f"{function}: {listed}; allowed is (B, N, {outputs}), (B, N, 4), (B, N), (B, N, 4)")
    if weights is not None and weights.shape != labels.shape:
        raise ValueError(
            f"{function}: weights have shape {tuple(weights.shape)}; allowed is that of labels, {tuple(labels.shape)}"
        )
