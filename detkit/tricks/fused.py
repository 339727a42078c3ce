"""What a fusion is, and what it returns: checked where one is handed over, and after its answer."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor


class Fused(NamedTuple):
    """What a fusion makes of N detections in all, one view's after the other's: K, best first.

    ``rows`` (K,) says which of the N each one was, or of several the best: its masks, keypoints and other entries stay.
    """

    boxes: Float[Tensor, "K 4"]
    scores: Float[Tensor, "K"]
    labels: Int[Tensor, "K"]
    rows: Int[Tensor, "K"]


Fusion = Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]], Fused]


def check_fusion(fusion: object, *, where: str) -> None:
    """Raise ValueError naming ``where`` for what is no function, and for a class in place of its instance.

    >>> from detkit.tricks import NMSFusion
    >>> check_fusion(NMSFusion, where="x: fusion")
    Traceback (most recent call last):
    ValueError: x: fusion is the class NMSFusion; allowed is an instance: NMSFusion(), with its settings
    """
    if isinstance(fusion, type):
        name = fusion.__name__
        raise ValueError(f"{where} is the class {name}; allowed is an instance: {name}(), with its settings")
    if not callable(fusion):
        raise ValueError(
            f"{where} is {fusion!r}; allowed is a fusion, such as NMSFusion(0.5), or a function that returns a Fused"
        )


def decided(fusion: Fusion, boxes: list[Tensor], scores: list[Tensor], labels: list[Tensor]) -> Fused:
    """What ``fusion`` says of these views; raises ValueError unless it is a :class:`Fused`.

    >>> import torch
    >>> from detkit.tricks import KeepAll
    >>> decided(KeepAll(), [torch.ones(1, 4)], [torch.ones(1)], [torch.zeros(1).long()]).rows
    tensor([0])
    """
    kept = fusion(boxes, scores, labels)
    if not isinstance(kept, Fused):
        name = getattr(fusion, "__name__", type(fusion).__name__)
        raise ValueError(
            f"{name}: as a fusion it returned a {type(kept).__name__}; allowed is Fused(boxes, scores, labels, rows)"
        )
    return kept
