"""Criteria called on plain tensors: deltas and what they should be, without anchors between them."""

import torch
from torch import Tensor

from detkit.anchors import Assigned
from detkit.losses import DenseCriterion
from detkit.structures import Anchors, DensePredictions


class Plain:
    """A coder for which a box is its own deltas."""

    numbers = 4

    def encode(self, boxes: Tensor, anchors: Anchors | Tensor) -> Tensor:
        return boxes

    def decode(self, deltas: Tensor, anchors: Anchors | Tensor) -> Tensor:
        return deltas


def assigned_to(
    labels: Tensor, boxes: Tensor, weights: Tensor | None = None, quality: Tensor | None = None
) -> Assigned:
    """What anchors learn, by default with weights and qualities of 1."""
    ones = torch.ones_like(labels, dtype=torch.float32)
    return Assigned(labels, boxes, ones if weights is None else weights, ones if quality is None else quality)


def judge(
    criterion: DenseCriterion,
    logits: Tensor,
    deltas: Tensor,
    labels: Tensor,
    wanted: Tensor,
    weights: Tensor | None = None,
    *,
    quality: Tensor | None = None,
) -> dict[str, Tensor]:
    """The losses of ``deltas`` that should be ``wanted``."""
    anchors = torch.zeros(deltas.shape[1], 4)
    return criterion(DensePredictions(logits, deltas, quality), assigned_to(labels, wanted, weights), anchors, Plain())
