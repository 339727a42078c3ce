"""When two embeddings are of one kind: equal labels, or label sets that share a label.

Labels are whole numbers (N,), or sets (N, C) of zeros and ones. A negative number, or row that holds one, is padding:
the embedding takes no part.
"""

import math

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from detkit._door import door
from detkit._inputs import looked_at


@door
def same_labels(labels: Shaped[Tensor, "N *C"], references: Shaped[Tensor, "M *C"]) -> Bool[Tensor, "N M"]:
    """Whether the labels of N embeddings equal those of M references; label sets are the same if they share one label.

    Rows that take no part are like no others. Raises ValueError for labels of different kinds, shapes and widths, for
    fractions, and for label sets of more than 0 and 1.

    >>> same_labels(torch.tensor([0, 1, -1]), torch.tensor([1, 1, -1]))
    tensor([[False, False, False],
            [ True,  True, False],
            [False, False, False]])
    >>> same_labels(torch.tensor([[1, 1, 0]]), torch.tensor([[0, 1, 1], [0, 0, 1]]))
    tensor([[ True, False]])
    """
    if labels.ndim not in (1, 2) or labels.ndim != references.ndim or labels.shape[1:] != references.shape[1:]:
        raise ValueError(
            f"same_labels: labels have shape {tuple(labels.shape)} and references {tuple(references.shape)}; allowed "
            "are whole numbers (N,) and (M,), or label sets (N, C) and (M, C)"
        )
    for name, given in (("labels", labels), ("references", references)):
        check_labels("same_labels", name, given)
    own, theirs = takes_part(labels), takes_part(references)
    if labels.ndim == 1:
        return (labels[:, None] == references) & own[:, None]
    members, others = (sets.to(torch.float32).clamp(min=0) for sets in (labels, references))
    return (members @ others.T > 0) & own[:, None] & theirs


@door
def takes_part(labels: Shaped[Tensor, "N *C"]) -> Bool[Tensor, "N"]:
    """Which embeddings have a label at all: those that are not padding.

    >>> takes_part(torch.tensor([3, -1])), takes_part(torch.tensor([[0, 1], [-1, -1]]))
    (tensor([ True, False]), tensor([ True, False]))
    """
    return labels >= 0 if labels.ndim == 1 else (labels >= 0).all(1)


def check_labels(function: str, name: str, labels: Tensor) -> None:
    """Raise ValueError for fractions, such as probabilities, and for label sets of more than 0 and 1.

    >>> check_labels("map_at_r", "labels", torch.tensor([[0.25, 1]]))
    Traceback (most recent call last):
    ValueError: map_at_r: labels hold 0.25; label sets (N, C) hold 0 and 1
    """
    if not looked_at(labels):
        return
    sets, values = labels.ndim == 2, labels.double()
    wrong = (values % 1 != 0) | (values > (1 if sets else math.inf))
    if bool(wrong.any()):
        allowed = "label sets (N, C) hold 0 and 1" if sets else "allowed are whole numbers"
        raise ValueError(f"{function}: {name} hold {labels[wrong].max().item():g}; {allowed}")
