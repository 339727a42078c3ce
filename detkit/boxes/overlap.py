"""How much two boxes, or two masks, agree: every measure as a matrix of all pairs, and elementwise as ``paired_``.

What the measures compute stands in :mod:`detkit.boxes.measures`; here it meets tensors: boxes are checked, promoted and
broadcast, once for all measures and for yours.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from detkit._door import door
from detkit._inputs import as_boxes, check_broadcast
from detkit.boxes.iou_blocks import iou_matrix, suits_blocks
from detkit.boxes.measures import Measure, bounded_sides, ciou, diou, giou, iou, ratio, unsquared_diou

DistanceVariant = Literal["squared", "unsquared"]


@door
def all_pairs(measure: Measure, *, name: str | None = None) -> Callable[[Tensor, Tensor], Tensor]:
    """The function that applies ``measure`` to every pair: boxes (..., N, 4) and (..., M, 4) to (..., N, M).

    ``measure`` takes two :class:`~detkit.boxes.BoxSides` that broadcast and returns a tensor of their shape. Boxes
    xyxy, half and integer ones promoted first; leading dimensions broadcast. The function raises ValueError for wrong
    shapes in the name of the measure, or of ``name``.

    >>> def shared_area(a, b):
    ...     return intersection_and_union(a, b)[0]
    >>> from detkit.boxes import intersection_and_union
    >>> all_pairs(shared_area)(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 1, 3, 3], [0, 0, 9, 1]]))
    tensor([[1., 2.]])
    """
    single = f"paired_{name}" if name else "paired"
    called: str = name or getattr(measure, "__name__", "all_pairs")

    def matrix(boxes1: Tensor, boxes2: Tensor) -> Tensor:
        rows, columns = _read(boxes1, boxes2, called)
        if rows.ndim < 2 or columns.ndim < 2:
            raise ValueError(
                f"{called}: boxes have shapes {tuple(rows.shape)} and {tuple(columns.shape)}; "
                f"allowed is (..., N, 4) and (..., M, 4); {single} compares box with box"
            )
        check_broadcast(called, "leading dimensions that do", boxes1=rows.shape[:-2], boxes2=columns.shape[:-2])
        first, second = bounded_sides(rows), bounded_sides(columns)
        if measure is iou and suits_blocks(rows, columns):
            return iou_matrix(first, second)
        return measure(first.map(lambda values: values.unsqueeze(-1)), second.map(lambda values: values.unsqueeze(-2)))

    return matrix


@door
def paired(measure: Measure, *, name: str | None = None) -> Callable[[Tensor, Tensor], Tensor]:
    """The function that applies ``measure`` to each box and its partner: (..., 4) and (..., 4), broadcast, to (...).

    ``measure`` and ``name`` as :func:`all_pairs`.

    >>> def half_as_wide(a, b):
    ...     return (a.width <= b.width / 2).float()
    >>> paired(half_as_wide)(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[0.0, 0, 2, 2], [0, 0, 9, 1]]))
    tensor([0., 1.])
    """
    called: str = name or getattr(measure, "__name__", "paired")

    def elementwise(boxes1: Tensor, boxes2: Tensor) -> Tensor:
        first, second = _read(boxes1, boxes2, called)
        check_broadcast(called, "a partner for each box", boxes1=first.shape, boxes2=second.shape)
        return measure(bounded_sides(first), bounded_sides(second))

    return elementwise


def _read(boxes1: Tensor, boxes2: Tensor, function: str) -> tuple[Tensor, Tensor]:
    return as_boxes(boxes1, function=function, name="boxes1"), as_boxes(boxes2, function=function, name="boxes2")


@door
def box_iou(boxes1: Shaped[Tensor, "... N 4"], boxes2: Shaped[Tensor, "... M 4"]) -> Float[Tensor, "... N M"]:
    """Intersection over union of every pair; in [0, 1].

    boxes1 (..., N, 4) and boxes2 (..., M, 4) xyxy give (..., N, M); leading dimensions broadcast. Half and integer
    boxes are promoted first. Equal to torchvision's bit for bit, for unions above 1e-36, coordinates below 1e18.

    >>> box_iou(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 1, 3, 3], [5, 5, 5, 5]]))
    tensor([[0.1429, 0.0000]])
    """
    return all_pairs(iou, name="box_iou")(boxes1, boxes2)


@door
def generalized_box_iou(
    boxes1: Shaped[Tensor, "... N 4"], boxes2: Shaped[Tensor, "... M 4"]
) -> Float[Tensor, "... N M"]:
    """GIoU of every pair: IoU minus the share of the enclosing box that neither covers; in [-1, 1].

    Shapes as :func:`box_iou`. Source: Rezatofighi et al. 2019, Algorithm 1.

    >>> generalized_box_iou(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[2.0, 0, 3, 1]]))
    tensor([[-0.3333]])
    """
    return all_pairs(giou, name="generalized_box_iou")(boxes1, boxes2)


@door
def distance_box_iou(
    boxes1: Shaped[Tensor, "... N 4"], boxes2: Shaped[Tensor, "... M 4"], *, variant: DistanceVariant = "squared"
) -> Float[Tensor, "... N M"]:
    """DIoU of every pair: IoU minus squared center distance over squared diagonal of the enclosing box; in [-1, 1].

    Shapes as :func:`box_iou`. ``variant="unsquared"`` divides the plain distance by the squared diagonal, as one
    report prints it: that form changes with the scale of the boxes. Source: Zheng et al. 2020, equation 7.

    >>> 1 - distance_box_iou(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 1, 3, 3]]))
    tensor([[0.9683]])
    """
    measure = distance_measure(variant, "distance_box_iou")
    return all_pairs(measure, name="distance_box_iou")(boxes1, boxes2)


@door
def complete_box_iou(boxes1: Shaped[Tensor, "... N 4"], boxes2: Shaped[Tensor, "... M 4"]) -> Float[Tensor, "... N M"]:
    """CIoU of every pair: DIoU minus a penalty for different aspect ratios; in [-1.5, 1].

    Shapes as :func:`box_iou`. The weight alpha of the penalty takes no gradient, as its authors do; a degenerate box
    has no aspect ratio and no penalty. Source: Zheng et al. 2020, equations 8 to 11.

    >>> complete_box_iou(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[0.0, 0, 2, 2], [0, 0, 4, 1]]))
    tensor([[1.0000, 0.2530]])
    """
    return all_pairs(ciou, name="complete_box_iou")(boxes1, boxes2)


@door
def paired_box_iou(boxes1: Shaped[Tensor, "... 4"], boxes2: Shaped[Tensor, "... 4"]) -> Float[Tensor, "..."]:
    """:func:`box_iou` of each box with its partner: (..., 4) and (..., 4), broadcast, to (...).

    >>> paired_box_iou(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 1, 3, 3]]))
    tensor([0.1429])
    """
    return paired(iou, name="paired_box_iou")(boxes1, boxes2)


@door
def paired_generalized_box_iou(
    boxes1: Shaped[Tensor, "... 4"], boxes2: Shaped[Tensor, "... 4"]
) -> Float[Tensor, "..."]:
    """:func:`generalized_box_iou` of each box with its partner: (..., 4) and (..., 4), broadcast, to (...).

    >>> paired_generalized_box_iou(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[2.0, 0, 3, 1]]))
    tensor([-0.3333])
    """
    return paired(giou, name="paired_generalized_box_iou")(boxes1, boxes2)


@door
def paired_distance_box_iou(
    boxes1: Shaped[Tensor, "... 4"], boxes2: Shaped[Tensor, "... 4"], *, variant: DistanceVariant = "squared"
) -> Float[Tensor, "..."]:
    """:func:`distance_box_iou` of each box with its partner: (..., 4) and (..., 4), broadcast, to (...).

    >>> 1 - paired_distance_box_iou(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 1, 3, 3]]))
    tensor([0.9683])
    """
    measure = distance_measure(variant, "paired_distance_box_iou")
    return paired(measure, name="paired_distance_box_iou")(boxes1, boxes2)


@door
def paired_complete_box_iou(boxes1: Shaped[Tensor, "... 4"], boxes2: Shaped[Tensor, "... 4"]) -> Float[Tensor, "..."]:
    """:func:`complete_box_iou` of each box with its partner: (..., 4) and (..., 4), broadcast, to (...).

    >>> paired_complete_box_iou(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[0.0, 0, 4, 1]]))
    tensor([0.2530])
    """
    return paired(ciou, name="paired_complete_box_iou")(boxes1, boxes2)


def distance_measure(variant: str, function: str) -> Measure:
    """The DIoU of ``variant``; raises ValueError in the name of ``function`` for an unknown one."""
    measures: dict[str, Measure] = {"squared": diou, "unsquared": unsquared_diou}
    if variant not in measures:
        raise ValueError(f"{function}: variant={variant!r}; allowed is 'squared' or 'unsquared'")
    return measures[variant]


@door
def mask_iou(masks1: Shaped[Tensor, "N H W"], masks2: Shaped[Tensor, "M H W"]) -> Float[Tensor, "N M"]:
    """Intersection over union of every pair of masks: (N, H, W) and (M, H, W) to (N, M), in [0, 1].

    A pixel counts where it is nonzero. Two empty masks have IoU 0. Raises ValueError where the sizes differ.

    >>> mask_iou(torch.tensor([[[1, 1, 0]]]), torch.tensor([[[0, 1, 1]], [[1, 1, 0]]]))
    tensor([[0.3333, 1.0000]])
    """
    if masks1.shape[1:] != masks2.shape[1:] or masks1.ndim != 3:
        raise ValueError(
            f"mask_iou: masks have shapes {tuple(masks1.shape)} and {tuple(masks2.shape)}; "
            "allowed is (N, H, W) and (M, H, W) with the same height and width"
        )
    exact = torch.float32 if masks1[0:1].numel() < 2**24 else torch.float64  # float32 counts exactly up to 2**24
    rows, columns = ((masks != 0).flatten(1).to(exact) for masks in (masks1, masks2))
    with torch.autocast(rows.device.type, enabled=False):  # bfloat16 counts exactly only up to 256
        intersection = rows @ columns.T
    return ratio(intersection, rows.sum(1)[:, None] + columns.sum(1) - intersection)
