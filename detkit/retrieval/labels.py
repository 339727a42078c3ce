"""When two embeddings are of one kind: equal labels, or label sets that share a label.

Labels are whole numbers (N,), or sets (N, C) of zeros and ones. A negative number, or row that holds one, is padding:
the embedding takes no part.
"""

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from detkit._door import door
from detkit._inputs import looked_at


@door
def same_labels(labels: Shaped[Tensor, "N *C"], references: Shaped[Tensor, "M *C"]) -> Bool[Tensor, "N M"]:
    """Whether the labels of N embeddings equal those of M references; label sets are the same if they share one label.

    Rows that take no part are like no others. Raises ValueError for labels of different kinds, shapes and widths.

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
    own, theirs = takes_part(labels), takes_part(references)
    if labels.ndim == 1:
        return (labels[:, None] == references) & own[:, None]
    for name, sets in (("labels", labels), ("references", references)):
        if looked_at(sets) and bool((sets > 1).any()):
            raise ValueError(f"same_labels: {name} (N, C) hold {sets.max().item():g}; label sets hold 0 and 1")
    members, others = (sets.to(torch.float32).clamp(min=0) for sets in (labels, references))
    return (members @ others.T > 0) & own[:, None] & theirs


@door
def takes_part(labels: Shaped[Tensor, "N *C"]) -> Bool[Tensor, "N"]:
    """Which embeddings have a label at all: those that are not padding.

    >>> takes_part(torch.tensor([3, -1])), takes_part(torch.tensor([[0, 1], [-1, -1]]))
    (tensor([ True, False]), tensor([ True, False]))
    """
    return labels >= 0 if labels.ndim == 1 else (labels >= 0).all(1)
