"""What stages that follow boxes share: whose object each box handed over has, and what it weighs in their losses."""

import torch
from jaxtyping import Float
from torch import Tensor

from detkit.dist import all_reduce_mean
from detkit.structures import Detections, Targets


def checked_boxes(stage: str, detections: Detections | None, targets: Targets | None) -> Detections:
    """``detections``, or ValueError where the stage before gave none, or in training none with ``matched``.

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


def matched_objects(detections: Detections) -> Tensor:
    """The object of each box (B, K), 0 where there is none.

    >>> boxes = Detections(torch.zeros(1, 2, 4), torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([[True, False]]))
    >>> matched_objects(boxes._replace(matched=torch.tensor([[3, 5]])))
    tensor([[3, 0]])
    """
    assert detections.matched is not None
    return torch.where(detections.valid, detections.matched, 0).clamp(min=0)


def object_weights(detections: Detections, targets: Targets) -> Float[Tensor, "B K"]:
    """The weight of each box's object: 1 where targets have none, 0 where the box is padding.

    >>> boxes = Detections(torch.zeros(1, 2, 4), torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([[True, False]]))
    >>> object_weights(boxes, Targets(*(torch.zeros(1, 1),) * 4))
    tensor([[1., 0.]])
    """
    share = detections.valid.to(detections.boxes)
    if targets.weights is None:
        return share
    return share * targets.weights.to(share).gather(1, matched_objects(detections))


def weighted_mean(costs: Float[Tensor, "*B"], weights: Float[Tensor, "*#B"], count: Float[Tensor, ""]) -> Tensor:
    """The sum of ``weights * costs`` over the mean ``count`` of all processes, which is taken as at least 1.

    >>> weighted_mean(torch.tensor([2.0, 4.0]), torch.tensor([1.0, 0.5]), torch.tensor(2.0))
    tensor(2.)
    """
    return (costs * weights).sum() / all_reduce_mean(count).clamp(min=1)


def refuse_objects_without(name: str, stage: str, targets: Targets) -> None:
    """Raise ValueError where there are objects to learn from but ``name`` is missing; compiled code always needs it.

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
