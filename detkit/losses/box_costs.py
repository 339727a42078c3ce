"""Box costs: the box term in the criteria of dense detectors. A new one is one function.

A *box cost* is a function ``(deltas (B, N, 4), boxes (B, N, 4), anchors, coder) -> costs (B, N)``. The head predicts
the deltas, the boxes are ground-truth xyxy, and the coder converts between them, relative to the anchors: L1 costs
compare deltas, IoU costs compare boxes. Costs are unreduced. A criterion masks out anchors without a box, and must give
them finite deltas before it calls the cost: the gradient of a NaN is NaN even if its cost is masked out.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from detkit._door import door
from detkit._inputs import check_not_negative, promote
from detkit.boxes import box_area, box_centers
from detkit.losses.regression import (
    box_iou_loss,
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
    smooth_l1_loss,
)
from detkit.structures import Anchors


@runtime_checkable
class BoxCoder(Protocol):
    """Encodes boxes relative to anchors: a coder of :mod:`detkit.boxes`, or one of your own.

    >>> from detkit.boxes import DeltaCoder
    >>> coder: BoxCoder = DeltaCoder()
    """

    @door
    def encode(self, boxes: Tensor, anchors: Anchors | Tensor) -> Tensor:
        """Deltas (..., 4) from ``anchors`` to ``boxes``, xyxy (..., 4)."""
        ...

    @door
    def decode(self, deltas: Tensor, anchors: Anchors | Tensor) -> Tensor:
        """Boxes xyxy (..., 4) decoded from ``deltas``."""
        ...


@door
def l1_cost(
    deltas: Float[Tensor, "*B 4"],
    boxes: Shaped[Tensor, "*B 4"],
    anchors: Anchors | Shaped[Tensor, "*#B _"],
    coder: BoxCoder,
) -> Float[Tensor, "*B"]:
    """Absolute differences between ``deltas`` and the encoded ``boxes``, summed over the four; at least 0.

    deltas (..., 4), boxes xyxy (..., 4) and anchors, :class:`~detkit.structures.Anchors` or boxes (..., 4), give (...).
    Half precision is promoted. Raises ValueError for wrong shapes.

    >>> from detkit.boxes import DeltaCoder
    >>> anchors, boxes = torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([[2.0, 0, 6, 4]])  # half a width away
    >>> l1_cost(torch.zeros(1, 4), boxes, anchors, DeltaCoder())
    tensor([0.5000])
    """
    _check_shapes("l1_cost", deltas, boxes)
    return torch.abs(promote(deltas) - coder.encode(boxes, anchors)).sum(-1)


@door
def l2_cost(
    deltas: Float[Tensor, "*B 4"],
    boxes: Shaped[Tensor, "*B 4"],
    anchors: Anchors | Shaped[Tensor, "*#B _"],
    coder: BoxCoder,
) -> Float[Tensor, "*B"]:
    """Squared differences between ``deltas`` and the encoded ``boxes``, summed over the four; as in YOLO v1.

    Arguments as in :func:`l1_cost`. Source: Redmon et al. 2016, equation 3.

    >>> from detkit.boxes import DeltaCoder
    >>> anchors, boxes = torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([[2.0, 0, 6, 4]])
    >>> l2_cost(torch.zeros(1, 4), boxes, anchors, DeltaCoder())
    tensor([0.2500])
    """
    _check_shapes("l2_cost", deltas, boxes)
    return (promote(deltas) - coder.encode(boxes, anchors)).square().sum(-1)


@door
def smooth_l1_cost(
    deltas: Float[Tensor, "*B 4"],
    boxes: Shaped[Tensor, "*B 4"],
    anchors: Anchors | Shaped[Tensor, "*#B _"],
    coder: BoxCoder,
    *,
    beta: float = 1.0,
) -> Float[Tensor, "*B"]:
    """:func:`~detkit.losses.smooth_l1_loss` between ``deltas`` and the encoded ``boxes``, summed over the four.

    Arguments as in :func:`l1_cost`. For another beta hand ``partial(smooth_l1_cost, beta=1 / 9)`` to a criterion.
    Raises ValueError for a beta that is negative or not finite. Source: Girshick 2015, equation 2.

    >>> from detkit.boxes import DeltaCoder
    >>> anchors, boxes = torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([[2.0, 0, 6, 4]])
    >>> smooth_l1_cost(torch.zeros(1, 4), boxes, anchors, DeltaCoder())
    tensor([0.1250])
    """
    _check_shapes("smooth_l1_cost", deltas, boxes)
    check_not_negative("smooth_l1_cost", beta=beta)
    return smooth_l1_loss(promote(deltas), coder.encode(boxes, anchors), beta=beta).sum(-1)


@door
def iou_cost(
    deltas: Float[Tensor, "*B _"],
    boxes: Shaped[Tensor, "*B 4"],
    anchors: Anchors | Shaped[Tensor, "*#B _"],
    coder: BoxCoder,
) -> Float[Tensor, "*B"]:
    """``1 - IoU`` between the decoded ``deltas`` and ``boxes``, in [0, 1].

    Arguments as in :func:`l1_cost`; deltas may have any width that the coder decodes. Disjoint boxes cost 1 and have no
    gradient; with :func:`giou_cost` and the others they do. Source: Yu et al. 2016 (UnitBox).

    >>> from detkit.boxes import DeltaCoder
    >>> anchors, boxes = torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([[2.0, 0, 6, 4]])
    >>> iou_cost(torch.zeros(1, 4), boxes, anchors, DeltaCoder())
    tensor([0.6667])
    """
    _check_shapes("iou_cost", deltas, boxes, numbers=None)
    return box_iou_loss(coder.decode(deltas, anchors), boxes)


@door
def giou_cost(
    deltas: Float[Tensor, "*B _"],
    boxes: Shaped[Tensor, "*B 4"],
    anchors: Anchors | Shaped[Tensor, "*#B _"],
    coder: BoxCoder,
) -> Float[Tensor, "*B"]:
    """``1 - GIoU`` between the decoded ``deltas`` and ``boxes``, in [0, 2]; arguments as in :func:`iou_cost`.

    Source: Rezatofighi et al. 2019, Algorithm 2.

    >>> from detkit.boxes import DeltaCoder
    >>> anchors, boxes = torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([[4.0, 0, 8, 4]])
    >>> giou_cost(torch.zeros(1, 4), boxes, anchors, DeltaCoder())
    tensor([1.])
    """
    _check_shapes("giou_cost", deltas, boxes, numbers=None)
    return generalized_box_iou_loss(coder.decode(deltas, anchors), boxes)


@door
def diou_cost(
    deltas: Float[Tensor, "*B _"],
    boxes: Shaped[Tensor, "*B 4"],
    anchors: Anchors | Shaped[Tensor, "*#B _"],
    coder: BoxCoder,
) -> Float[Tensor, "*B"]:
    """``1 - DIoU`` between the decoded ``deltas`` and ``boxes``, in [0, 2]; arguments as in :func:`iou_cost`.

    Source: Zheng et al. 2020, equation 7.

    >>> from detkit.boxes import DeltaCoder
    >>> anchors, boxes = torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([[4.0, 0, 8, 4]])
    >>> diou_cost(torch.zeros(1, 4), boxes, anchors, DeltaCoder())
    tensor([1.2000])
    """
    _check_shapes("diou_cost", deltas, boxes, numbers=None)
    return distance_box_iou_loss(coder.decode(deltas, anchors), boxes)


@door
def ciou_cost(
    deltas: Float[Tensor, "*B _"],
    boxes: Shaped[Tensor, "*B 4"],
    anchors: Anchors | Shaped[Tensor, "*#B _"],
    coder: BoxCoder,
) -> Float[Tensor, "*B"]:
    """``1 - CIoU`` between the decoded ``deltas`` and ``boxes``, in [0, 2.5]; arguments as in :func:`iou_cost`.

    Source: Zheng et al. 2020, equations 8 to 11.

    >>> from detkit.boxes import DeltaCoder
    >>> anchors, boxes = torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[0.0, 0, 4, 1]])
    >>> ciou_cost(torch.zeros(1, 4), boxes, anchors, DeltaCoder())
    tensor([0.7470])
    """
    _check_shapes("ciou_cost", deltas, boxes, numbers=None)
    return complete_box_iou_loss(coder.decode(deltas, anchors), boxes)


@door
def grid_cost(
    deltas: Float[Tensor, "*B 4"],
    boxes: Shaped[Tensor, "*B 4"],
    anchors: Anchors | Shaped[Tensor, "*#B _"],
    coder: BoxCoder,
) -> Float[Tensor, "*B"]:
    """YOLO v2's and v3's cost of places in a cell and log-scales, as :class:`~detkit.boxes.GridCoder` codes them.

    Binary cross-entropy of sigmoid(tx), sigmoid(ty) against the place of the center in its cell, plus half the squared
    differences of tw and th; times 2 minus the box's share of the area that the cells cover. Its gradient by the four
    deltas is the difference that the authors' code passes back: ``(2 - w h) (sigmoid(tx) - x)``,
    ``(2 - w h) (tw - log(w / wa))`` and so on. Arguments as in :func:`l1_cost`. A perfect box does not cost 0, but the
    entropy of its place. Source: Redmon and Farhadi 2018, section 2.1, and the authors' released code.

    >>> from detkit.boxes import GridCoder
    >>> anchors = Anchors(torch.tensor([[0.0, 0, 8, 8]]), torch.tensor([[8.0, 8]]), (1,))
    >>> grid_cost(torch.zeros(1, 4), torch.tensor([[0.0, 0, 8, 8]]), anchors, GridCoder())  # 2 log 2
    tensor([1.3863])
    """
    _check_shapes("grid_cost", deltas, boxes)
    deltas = promote(deltas)
    costs = grid_distance(deltas, coder.encode(boxes, anchors).to(deltas))
    return (2 - _covered(boxes, anchors).to(deltas)) * costs


def grid_distance(deltas: Float[Tensor, "*B 4"], wanted: Float[Tensor, "*#B 4"]) -> Float[Tensor, "*B"]:
    """:func:`grid_cost` without the weight by area, of deltas and those that are ``wanted``.

    >>> grid_distance(torch.tensor([[0.0, 0, 3, 0]]), torch.zeros(1, 4))
    tensor([5.8863])
    """
    wanted = wanted.expand_as(deltas)
    places = F.binary_cross_entropy_with_logits(deltas[..., :2], wanted[..., :2].sigmoid(), reduction="none")
    return (places + (deltas[..., 2:] - wanted[..., 2:]).square() / 2).sum(-1)


def _covered(boxes: Shaped[Tensor, "*B 4"], anchors: Anchors | Tensor) -> Float[Tensor, "*B"]:
    """The share of the area that all cells of the anchors cover which a box has, in [0, 1]."""
    anchors = Anchors.of(anchors)
    if anchors.boxes.shape[-2] == 0:
        return promote(boxes)[..., 0]
    width, height = (box_centers(anchors.boxes) + promote(anchors.strides) / 2).amax(-2).unbind(-1)
    area = (width * height)[..., None]
    share = box_area(boxes) / torch.where(area > 0, area, torch.inf)
    return share.nan_to_num(0).clamp(0, 1)


def _check_shapes(function: str, deltas: Tensor, boxes: Tensor, *, numbers: int | None = 4) -> None:
    """One row of deltas per box, with ``numbers`` columns if a formula reads them rather than the coder."""
    if boxes.shape[-1:] != (4,) or deltas.shape[:-1] != boxes.shape[:-1] or numbers not in (None, deltas.shape[-1]):
        raise ValueError(
            f"{function}: deltas have shape {tuple(deltas.shape)} and boxes {tuple(boxes.shape)}; "
            f"allowed is (..., {numbers or 'D'}) and (..., 4) with the same leading dimensions"
        )
