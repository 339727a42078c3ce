"""Helpers for stages that follow a box stage: the object matched to each box, and its weight in the losses."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from detkit.losses.dense import mean_count
from detkit.structures import IGNORED, Assignment, Detections, Targets


def checked_boxes(stage: str, detections: Detections | None, targets: Targets | None) -> Detections:
    """``detections``; raises ValueError if the previous stage gave none, or in training none with ``matched``.

    >>> checked_boxes("MaskStage", None, None)
    Traceback (most recent call last):
    ValueError: MaskStage: got no boxes; put a stage that finds them before it
    """
    if detections is None:
        raise ValueError(f"{stage}: got no boxes; put a stage that finds them before it")
    if targets is not None and detections.matched is None:
        raise ValueError(
            f"{stage}: the boxes to learn on have no matched; the stage before must hand over which object each has"
        )
    return detections


def matched_objects(detections: Detections) -> Assignment:
    """The assignment of the boxes handed over: the object matched to each box, IGNORED where a row is padding.

    >>> boxes = Detections(torch.zeros(1, 2, 4), torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([[True, False]]))
    >>> matched_objects(boxes._replace(matched=torch.tensor([[3, 5]]))).matched
    tensor([[ 3, -2]])
    """
    assert detections.matched is not None
    return Assignment(torch.where(detections.valid, detections.matched, IGNORED), detections.scores)


def weighted_mean(costs: Float[Tensor, "*B"], weights: Float[Tensor, "*#B"], rows: Bool[Tensor, "*B"]) -> Tensor:
    """The sum of ``weights * costs`` over ``rows``, divided by their weights' mean over processes, at least 1.

    >>> costs, rows = torch.tensor([2.0, 4.0, 9.0]), torch.tensor([True, True, False])
    >>> weighted_mean(costs, torch.tensor([1.0, 0.5, 1.0]), rows)
    tensor(2.6667)
    """
    return (torch.where(rows, costs, 0) * weights).sum() / mean_count(rows, costs, weights=weights)


def refuse_objects_without(name: str, stage: str, targets: Targets) -> None:
    """Raise ValueError if there are objects to learn but ``name`` is missing; compiled code always needs it.

    >>> targets = Targets(torch.zeros(1, 1, 4), torch.zeros(1, 1), torch.tensor([[True]]), torch.tensor([[False]]))
    >>> refuse_objects_without("masks", "MaskStage", targets)
    Traceback (most recent call last):
    ValueError: MaskStage: targets have no masks; give every target with objects its own (and, where the training is
    compiled, images without objects empty ones)
    """
    if torch.compiler.is_compiling() or bool((targets.objects).any()):
        raise ValueError(
            f"{stage}: targets have no {name}; give every target with objects its own (and, where the training is "
            "compiled, images without objects empty ones)"
        )
