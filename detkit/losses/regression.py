"""Losses on numbers: deltas of boxes, and boxes themselves. Unreduced: masking, weighting and summing are the caller's.

The box losses are ``1 - measure`` of :mod:`detkit.boxes.measures`. Their fused form, a fifth of the time of autograd,
stands in :mod:`detkit.losses.fused.regression`; all of them may be differentiated twice, and by ``torch.func``.
"""

import math

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from detkit._door import door
from detkit._gradient import with_gradient
from detkit._inputs import as_boxes, promote
from detkit.boxes.measures import BoxSides, Measure, ciou, coordinate_limit, giou, iou
from detkit.boxes.overlap import DistanceVariant, distance_measure
from detkit.losses.fused import regression as fused
from detkit.structures.labels import check_weights


@door
def smooth_l1_loss(
    predictions: Float[Tensor, "*shape"], targets: Float[Tensor, "*shape"], *, beta: float = 1.0
) -> Float[Tensor, "*shape"]:
    """``d**2 / (2 beta)`` where ``|d| < beta``, else ``|d| - beta / 2``, for each d = predictions - targets.

    Both tensors have one shape and so has the result; half precision is promoted. ``beta=0`` is the absolute
    difference. Raises ValueError for differing shapes and for a beta that is negative or not finite. Source: Girshick
    2015, equation 3 (beta = 1).

    >>> smooth_l1_loss(torch.tensor([0.5, 3.0]), torch.zeros(2))
    tensor([0.1250, 2.5000])
    """
    if predictions.shape != targets.shape:
        raise ValueError(
            f"smooth_l1_loss: predictions have shape {tuple(predictions.shape)} and targets {tuple(targets.shape)}; "
            "they must be equal"
        )
    if not 0 <= beta < math.inf:
        raise ValueError(f"smooth_l1_loss: beta={beta} must be finite and at least 0")
    distance = (promote(predictions) - promote(targets)).abs()
    if beta == 0:
        return distance
    near = distance.clamp(max=beta)
    return torch.where(distance < beta, near / beta * 0.5 * near, distance - 0.5 * beta)


@door
def box_iou_loss(
    boxes1: Shaped[Tensor, "... 4"], boxes2: Shaped[Tensor, "... 4"], *, weights: Shaped[Tensor, "..."] | None = None
) -> Float[Tensor, "..."]:
    """``1 - IoU`` of each box with its partner, in [0, 1]: (..., 4) and (..., 4), broadcast, to (...).

    Boxes xyxy, both take a gradient; boxes apart have none. ``weights`` (...) multiply the result. Half and integer
    boxes are promoted. Raises ValueError for wrong shapes.

    >>> box_iou_loss(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[0.0, 0, 4, 2]]))
    tensor([0.5000])
    """
    return _box_loss(iou, boxes1, boxes2, weights, "box_iou_loss")


@door
def generalized_box_iou_loss(
    boxes1: Shaped[Tensor, "... 4"], boxes2: Shaped[Tensor, "... 4"], *, weights: Shaped[Tensor, "..."] | None = None
) -> Float[Tensor, "..."]:
    """``1 - GIoU`` of each box with its partner, in [0, 2]: (..., 4) and (..., 4), broadcast, to (...).

    Boxes xyxy, both take a gradient; finite for every finite box. ``weights`` (...) multiply the result. Half and
    integer boxes are promoted. Raises ValueError for wrong shapes. Source: Rezatofighi et al. 2019, Algorithm 1.

    >>> generalized_box_iou_loss(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[2.0, 0, 3, 1]]))
    tensor([1.3333])
    """
    return _box_loss(giou, boxes1, boxes2, weights, "generalized_box_iou_loss")


@door
def distance_box_iou_loss(
    boxes1: Shaped[Tensor, "... 4"],
    boxes2: Shaped[Tensor, "... 4"],
    *,
    variant: DistanceVariant = "squared",
    weights: Shaped[Tensor, "..."] | None = None,
) -> Float[Tensor, "..."]:
    """``1 - DIoU`` of each box with its partner, in [0, 2]: (..., 4) and (..., 4), broadcast, to (...).

    ``variant`` as in :func:`~detkit.boxes.distance_box_iou`; "unsquared" has no upper bound, and inverted boxes far
    larger than their partner overflow it; the rest as :func:`generalized_box_iou_loss`. Source:
    Zheng et al. 2020, equation 7.

    >>> distance_box_iou_loss(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 1, 3, 3]]))
    tensor([0.9683])
    """
    measure = distance_measure(variant, "distance_box_iou_loss")
    return _box_loss(measure, boxes1, boxes2, weights, "distance_box_iou_loss")


@door
def complete_box_iou_loss(
    boxes1: Shaped[Tensor, "... 4"], boxes2: Shaped[Tensor, "... 4"], *, weights: Shaped[Tensor, "..."] | None = None
) -> Float[Tensor, "..."]:
    """``1 - CIoU`` of each box with its partner, in [0, 2.5]: (..., 4) and (..., 4), broadcast, to (...).

    The weight alpha of the aspect penalty takes no gradient. The rest as :func:`generalized_box_iou_loss`. Source:
    Zheng et al. 2020, equations 8 to 11.

    >>> complete_box_iou_loss(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[0.0, 0, 4, 1]]))
    tensor([0.7470])
    """
    return _box_loss(ciou, boxes1, boxes2, weights, "complete_box_iou_loss")


def one_minus(boxes1: Float[Tensor, "n 4"], boxes2: Float[Tensor, "n 4"], *, measure: Measure) -> Float[Tensor, "n"]:
    """What every box loss is; a NaN box costs NaN.

    >>> one_minus(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[0.0, 0, 4, 2]]), measure=iou)
    tensor([0.5000])
    """
    limit = coordinate_limit(boxes1.dtype)
    first, second = (BoxSides.of(*boxes.clamp(-limit, limit).unbind(-1)) for boxes in (boxes1, boxes2))
    return 1 - measure(first, second)


def _box_loss(measure: Measure, boxes1: Tensor, boxes2: Tensor, weights: Tensor | None, function: str) -> Tensor:
    first = as_boxes(boxes1, function=function, name="boxes1")
    second = as_boxes(boxes2, function=function, name="boxes2")
    kind = torch.promote_types(first.dtype, second.dtype)
    try:
        first, second = torch.broadcast_tensors(first.to(kind), second.to(kind))
    except RuntimeError:
        shapes = f"{tuple(boxes1.shape)} and {tuple(boxes2.shape)}"
        raise ValueError(f"{function}: boxes have shapes {shapes}; allowed is (..., 4) that broadcast") from None
    shape, first, second = first.shape[:-1], first.reshape(-1, 4), second.reshape(-1, 4)
    if torch.compiler.is_compiling():
        losses = fused.one_minus_compiled(first, second, measure=measure).reshape(shape)
    else:
        losses = with_gradient(one_minus, fused.one_minus, first, second, measure=measure).reshape(shape)
    if weights is None:
        return losses
    if weights.shape != shape:
        raise ValueError(f"{function}: weights have shape {tuple(weights.shape)}; allowed is {tuple(shape)}")
    check_weights(weights, function=function)
    return losses * promote(weights)
