"""How much two boxes, or two masks, agree: IoU and the variants that also tell how far apart boxes are.

Every measure comes twice: as a matrix of all pairs, and elementwise as ``paired_``. Both run the same formula on
coordinates that broadcast. Degenerate boxes (zero-size or inverted) have area 0 and IoU 0; a denominator of zero is
replaced before the division, so that neither values nor gradients become NaN and no epsilon bends the result.
Coordinates count as at most 2e18 in float32 and 1e153 in float64: areas of larger boxes would overflow.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode

from detkit._inputs import as_boxes, check_broadcast
from detkit.boxes.overlap import coordinate_limit, iou_matrix, is_plain, mirror, smallest_union

DistanceVariant = Literal["squared", "unsquared"]


def box_iou(boxes1: Shaped[Tensor, "... N 4"], boxes2: Shaped[Tensor, "... M 4"]) -> Float[Tensor, "... N M"]:
    """Intersection over union of every pair; in [0, 1].

    boxes1 (..., N, 4) and boxes2 (..., M, 4) xyxy give (..., N, M); leading dimensions broadcast. Half and integer
    boxes are promoted first. Equal to torchvision's bit for bit, for unions above 1e-36, coordinates below 1e18.

    >>> box_iou(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 1, 3, 3], [5, 5, 5, 5]]))
    tensor([[0.1429, 0.0000]])
    """
    return _matrix(iou_formula, boxes1, boxes2, "box_iou")


def generalized_box_iou(
    boxes1: Shaped[Tensor, "... N 4"], boxes2: Shaped[Tensor, "... M 4"]
) -> Float[Tensor, "... N M"]:
    """GIoU of every pair: IoU minus the share of the enclosing box that neither covers; in [-1, 1].

    Shapes as :func:`box_iou`. Source: Rezatofighi et al. 2019, Algorithm 1.

    >>> generalized_box_iou(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[2.0, 0, 3, 1]]))
    tensor([[-0.3333]])
    """
    return _matrix(generalized_formula, boxes1, boxes2, "generalized_box_iou")


def distance_box_iou(
    boxes1: Shaped[Tensor, "... N 4"], boxes2: Shaped[Tensor, "... M 4"], *, variant: DistanceVariant = "squared"
) -> Float[Tensor, "... N M"]:
    """DIoU of every pair: IoU minus squared center distance over squared diagonal of the enclosing box; in [-1, 1].

    Shapes as :func:`box_iou`. ``variant="unsquared"`` divides the plain distance by the squared diagonal, as one
    report prints it: that form changes with the scale of the boxes. Source: Zheng et al. 2020, equation 7.

    >>> 1 - distance_box_iou(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 1, 3, 3]]))
    tensor([[0.9683]])
    """
    return _matrix(distance_formula(variant, "distance_box_iou"), boxes1, boxes2, "distance_box_iou")


def complete_box_iou(boxes1: Shaped[Tensor, "... N 4"], boxes2: Shaped[Tensor, "... M 4"]) -> Float[Tensor, "... N M"]:
    """CIoU of every pair: DIoU minus a penalty for different aspect ratios; in [-1.5, 1].

    Shapes as :func:`box_iou`. The weight alpha of the penalty takes no gradient, as its authors do; a degenerate box
    has no aspect ratio and no penalty. Source: Zheng et al. 2020, equations 8 to 11.

    >>> complete_box_iou(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[0.0, 0, 2, 2], [0, 0, 4, 1]]))
    tensor([[1.0000, 0.2530]])
    """
    return _matrix(complete_formula, boxes1, boxes2, "complete_box_iou")


def paired_box_iou(boxes1: Shaped[Tensor, "... 4"], boxes2: Shaped[Tensor, "... 4"]) -> Float[Tensor, "..."]:
    """:func:`box_iou` of each box with its partner: (..., 4) and (..., 4), broadcast, to (...).

    >>> paired_box_iou(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 1, 3, 3]]))
    tensor([0.1429])
    """
    return _paired(iou_formula, boxes1, boxes2, "paired_box_iou")


def paired_generalized_box_iou(
    boxes1: Shaped[Tensor, "... 4"], boxes2: Shaped[Tensor, "... 4"]
) -> Float[Tensor, "..."]:
    """:func:`generalized_box_iou` of each box with its partner: (..., 4) and (..., 4), broadcast, to (...).

    >>> paired_generalized_box_iou(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[2.0, 0, 3, 1]]))
    tensor([-0.3333])
    """
    return _paired(generalized_formula, boxes1, boxes2, "paired_generalized_box_iou")


def paired_distance_box_iou(
    boxes1: Shaped[Tensor, "... 4"], boxes2: Shaped[Tensor, "... 4"], *, variant: DistanceVariant = "squared"
) -> Float[Tensor, "..."]:
    """:func:`distance_box_iou` of each box with its partner: (..., 4) and (..., 4), broadcast, to (...).

    >>> 1 - paired_distance_box_iou(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 1, 3, 3]]))
    tensor([0.9683])
    """
    formula = distance_formula(variant, "paired_distance_box_iou")
    return _paired(formula, boxes1, boxes2, "paired_distance_box_iou")


def paired_complete_box_iou(boxes1: Shaped[Tensor, "... 4"], boxes2: Shaped[Tensor, "... 4"]) -> Float[Tensor, "..."]:
    """:func:`complete_box_iou` of each box with its partner: (..., 4) and (..., 4), broadcast, to (...).

    >>> paired_complete_box_iou(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[0.0, 0, 4, 1]]))
    tensor([0.2530])
    """
    return _paired(complete_formula, boxes1, boxes2, "paired_complete_box_iou")


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
    return _ratio(intersection, rows.sum(1)[:, None] + columns.sum(1) - intersection)


class BoxSides(NamedTuple):
    """Coordinates of boxes, shaped to broadcast against those of others."""

    x1: Tensor
    y1: Tensor
    x2: Tensor
    y2: Tensor

    @property
    def width(self) -> Tensor:
        return (self.x2 - self.x1).clamp(min=0)

    @property
    def height(self) -> Tensor:
        return (self.y2 - self.y1).clamp(min=0)

    @property
    def area(self) -> Tensor:
        return self.width * self.height


_Formula = Callable[[BoxSides, BoxSides], Tensor]


def _matrix(formula: _Formula, boxes1: Tensor, boxes2: Tensor, function: str) -> Tensor:
    rows = as_boxes(boxes1, function=function, name="boxes1")
    columns = as_boxes(boxes2, function=function, name="boxes2")
    if rows.ndim < 2 or columns.ndim < 2:
        raise ValueError(
            f"{function}: boxes have shapes {tuple(rows.shape)} and {tuple(columns.shape)}; "
            f"allowed is (..., N, 4) and (..., M, 4); paired_{function} compares box with box"
        )
    check_broadcast(function, "leading dimensions that do", boxes1=rows.shape[:-2], boxes2=columns.shape[:-2])
    if formula is iou_formula and _suits_blocks(rows, columns):
        first, second = mirror(rows), mirror(columns)
        if is_plain(first) and is_plain(second):
            return iou_matrix(first, second)
    return formula(_sides(rows.unsqueeze(-2)), _sides(columns.unsqueeze(-3)))


def _suits_blocks(rows: Tensor, columns: Tensor) -> bool:
    """Whether blocks in place may replace the formula: two plain sets on the CPU, and nothing that differentiates."""
    watched = torch.is_grad_enabled() and (rows.requires_grad or columns.requires_grad)
    traced = (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or _get_current_dispatch_mode() is not None
        or forward_ad._current_level >= 0
    )
    plain = (
        type(rows) is type(columns) is Tensor
        and rows.ndim == columns.ndim == 2
        and rows.dtype == columns.dtype
        and rows.device == columns.device
    )
    return plain and rows.device.type == "cpu" and not watched and not traced


def _paired(formula: _Formula, boxes1: Tensor, boxes2: Tensor, function: str) -> Tensor:
    first = as_boxes(boxes1, function=function, name="boxes1")
    second = as_boxes(boxes2, function=function, name="boxes2")
    check_broadcast(function, "a partner for each box", boxes1=first.shape, boxes2=second.shape)
    return formula(_sides(first), _sides(second))


def _sides(boxes: Tensor) -> BoxSides:
    """Coordinates bounded so that no area, sum of areas or squared distance overflows."""
    limit = coordinate_limit(boxes.dtype)
    return BoxSides(*boxes.clamp(-limit, limit).unbind(-1))


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator, and 0 with a zero gradient where the denominator is not safely positive."""
    positive = denominator > smallest_union(denominator.dtype)
    return torch.where(positive, numerator / torch.where(positive, denominator, 1), 0)


def _intersection_and_union(a: BoxSides, b: BoxSides) -> tuple[Tensor, Tensor]:
    width = (torch.minimum(a.x2, b.x2) - torch.maximum(a.x1, b.x1)).clamp(min=0)
    height = (torch.minimum(a.y2, b.y2) - torch.maximum(a.y1, b.y1)).clamp(min=0)
    intersection = width * height
    return intersection, (a.area + b.area) - intersection


def _hull(a: BoxSides, b: BoxSides) -> tuple[Tensor, Tensor]:
    """Width and height of the smallest box around both."""
    width = torch.maximum(a.x2, b.x2) - torch.minimum(a.x1, b.x1)
    height = torch.maximum(a.y2, b.y2) - torch.minimum(a.y1, b.y1)
    return width.clamp(min=0), height.clamp(min=0)


def iou_formula(a: BoxSides, b: BoxSides) -> Tensor:
    """IoU of sides that broadcast."""
    return _ratio(*_intersection_and_union(a, b))


def generalized_formula(a: BoxSides, b: BoxSides) -> Tensor:
    """GIoU of sides that broadcast."""
    intersection, union = _intersection_and_union(a, b)
    width, height = _hull(a, b)
    hull = width * height
    return _ratio(intersection, union) - _ratio((hull - union).clamp(min=0), hull)


def distance_formula(variant: str, function: str) -> _Formula:
    """The DIoU of ``variant``; raises ValueError in the name of ``function`` for an unknown one."""
    formulas: dict[str, _Formula] = {"squared": _distance, "unsquared": _distance_unsquared}
    if variant not in formulas:
        raise ValueError(f"{function}: variant={variant!r}; allowed is 'squared' or 'unsquared'")
    return formulas[variant]


def _center_distance_squared(a: BoxSides, b: BoxSides) -> Tensor:
    dx = ((a.x1 + a.x2) - (b.x1 + b.x2)) / 2
    dy = ((a.y1 + a.y2) - (b.y1 + b.y2)) / 2
    return dx * dx + dy * dy


def _diagonal_squared(a: BoxSides, b: BoxSides) -> Tensor:
    width, height = _hull(a, b)
    return width * width + height * height


def _distance(a: BoxSides, b: BoxSides) -> Tensor:
    diagonal = _diagonal_squared(a, b)
    apart = torch.minimum(_center_distance_squared(a, b), diagonal)  # centers of inverted boxes lie outside their hull
    return iou_formula(a, b) - _ratio(apart, diagonal)


def _distance_unsquared(a: BoxSides, b: BoxSides) -> Tensor:
    squared = _center_distance_squared(a, b)
    apart = squared > 0
    distance = torch.where(apart, torch.where(apart, squared, 1).sqrt(), 0)  # the root has no gradient at 0
    return iou_formula(a, b) - _ratio(distance, _diagonal_squared(a, b))


def complete_formula(a: BoxSides, b: BoxSides) -> Tensor:
    """CIoU of sides that broadcast."""
    penalty = (4 / math.pi**2) * (_aspect_angle(a) - _aspect_angle(b)) ** 2
    penalty = torch.where((a.area > 0) & (b.area > 0), penalty, 0)
    with torch.no_grad():
        alpha = _ratio(penalty, 1 - iou_formula(a, b) + penalty)
    return _distance(a, b) - alpha * penalty


def _aspect_angle(a: BoxSides) -> Tensor:
    width, height = (torch.where(a.area > 0, side, 1) for side in (a.width, a.height))
    larger = torch.maximum(width, height).detach()  # the angle's gradient squares the sides
    return torch.atan2(width / larger, height / larger)
