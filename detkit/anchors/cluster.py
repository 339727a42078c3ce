"""Anchor shapes from a data set: k-means over the sizes of its boxes, with the distance 1 - IoU."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from detkit._door import door
from detkit._inputs import promote
from detkit._noise import uniform_like
from detkit._ranges import Count

_LARGEST = 2.0**500


@door
def shape_iou(sizes: Shaped[Tensor, "*#B N 2"], shapes: Shaped[Tensor, "*#B K 2"]) -> Float[Tensor, "*B N K"]:
    """IoU of every size with every shape, both (width, height), as if centered on one point; in [0, 1], 0 without area.

    YOLO assigns an object to the anchor shape with the highest value. Raises ValueError if the last dimension is not 2.

    >>> shape_iou(torch.tensor([[12.0, 14], [50, 50]]), torch.tensor([[10.0, 13], [62, 45]]))
    tensor([[0.7738, 0.0602],
            [0.0520, 0.7401]])
    """
    one, other = _as_sizes(sizes, "sizes")[..., :, None, :], _as_sizes(shapes, "shapes")[..., None, :, :]
    kind = torch.promote_types(one.dtype, other.dtype)
    (w, h), (v, g) = (rows.double().clamp(0, _LARGEST).unbind(-1) for rows in (one, other))  # where no area overflows
    shared = torch.minimum(w, v) * torch.minimum(h, g)
    union = w * h + v * g - shared
    return torch.where(shared > 0, shared / torch.where(shared > 0, union, 1), 0).to(kind)


@door
def mean_shape_iou(sizes: Shaped[Tensor, "N 2"], shapes: Shaped[Tensor, "K 2"]) -> Float[Tensor, ""]:
    """How well ``shapes`` fit ``sizes``, both (width, height): the mean over sizes of the IoU with the best shape.

    Raises ValueError if either is empty. Source: Redmon and Farhadi 2017, section 2 ("Avg IOU", table 1).

    >>> mean_shape_iou(torch.tensor([[10.0, 20], [20, 10]]), torch.tensor([[10.0, 10]]))
    tensor(0.5000)
    """
    for name, rows in (("sizes", sizes), ("shapes", shapes)):
        if rows.shape[0] == 0:
            raise ValueError(f"mean_shape_iou: got no {name}; at least one is needed")
    return shape_iou(sizes, shapes).amax(dim=1).mean()


@door
def cluster_anchors(
    sizes: Shaped[Tensor, "N 2"],
    count: Count,
    *,
    restarts: Count = 5,
    iterations: Count = 100,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "{count} 2"]:
    """The ``count`` anchor shapes (width, height) that best fit boxes of these ``sizes``, smallest area first.

    k-means with the distance 1 - IoU of two shapes centered on one point, so that large boxes count no more than small
    ones. Each of ``restarts`` runs starts from sizes drawn far apart (k-means++) and continues until no size changes
    its cluster or ``iterations`` are done. A center that loses all its sizes moves to the size that fits worst. The
    result is the set of shapes with the highest mean IoU seen. The same ``generator`` state gives the same shapes.
    Computed on the CPU in float64, wherever ``sizes`` are.

    Raises ValueError for sizes that are not (N, 2), positive and finite, for fewer than ``count`` different sizes, and
    for a count, restarts or iterations below 1.

    Source: Redmon and Farhadi 2017, section 2 ("Dimension Clusters").

    >>> sizes = torch.tensor([[10.0, 10], [12, 10], [100, 50], [104, 50], [11, 10], [102, 50]])
    >>> cluster_anchors(sizes, 2, generator=torch.Generator().manual_seed(0))
    tensor([[ 11.,  10.],
            [102.,  50.]])
    """
    wanted = _as_sizes(sizes, "sizes", function="cluster_anchors")
    _check_sizes(wanted)
    distinct, weights = wanted.cpu().double().unique(dim=0, return_counts=True)
    if count > len(distinct):
        raise ValueError(
            f"cluster_anchors: count={count} shapes from {len(distinct)} different sizes; allowed is at most that"
        )
    weights = weights.double() / len(wanted)
    starts = (_spread(distinct, weights, count, generator) for _ in range(restarts))
    runs = [_settle(distinct, weights, start, iterations) for start in starts]
    _, best = max(runs, key=lambda run: run[0])
    order = sorted(best.tolist(), key=lambda shape: (shape[0] * shape[1], shape[0]))
    return wanted.new_tensor(order)


def _spread(sizes: Tensor, weights: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """``count`` different sizes, each drawn with a probability proportional to its squared distance from the drawn
    ones."""
    chosen = [_draw(weights, generator)]
    distance = torch.ones_like(weights)
    while len(chosen) < count:
        distance = distance.minimum(1 - shape_iou(sizes, sizes[chosen[-1:]])[:, 0])
        chances = (weights * distance.square()).index_fill(0, torch.tensor(chosen, device=sizes.device), 0)
        left = torch.ones_like(weights).index_fill(0, torch.tensor(chosen, device=sizes.device), 0)
        chosen.append(_draw(chances if chances.sum() > 0 else left, generator))
    return sizes[chosen]


def _draw(chances: Tensor, generator: torch.Generator | None) -> int:
    """An index drawn with these probabilities; unlike multinomial it takes more than 2**24 of them."""
    steps = chances.cumsum(0)
    place = uniform_like(steps[-1], generator, dtype=torch.float64).to(steps) * steps[-1]
    index = int(torch.searchsorted(steps, place, right=True))
    return index if index < len(chances) else int(chances.nonzero()[-1])


def _settle(sizes: Tensor, weights: Tensor, centers: Tensor, iterations: int) -> tuple[float, Tensor]:
    """The highest mean IoU over Lloyd's iterations from ``centers`` on, and its centers.

    The mean of a cluster does not maximize its IoU, so an iteration may lower the mean IoU: the best is kept.
    """
    best, kept, before = -1.0, centers, None
    for _ in range(iterations + 1):
        overlaps, nearest = shape_iou(centers, sizes).max(dim=0)
        fit = float(overlaps @ weights)
        if fit > best:
            best, kept = fit, centers
        if before is not None and torch.equal(nearest, before):
            break
        before = nearest
        centers = _means(sizes, weights, nearest, overlaps, len(centers))
    return best, kept


def _means(sizes: Tensor, weights: Tensor, nearest: Tensor, overlaps: Tensor, count: int) -> Tensor:
    """Mean size of each cluster; empty clusters move to the sizes that fit worst, each to another."""
    mass = weights.new_zeros(count).index_add_(0, nearest, weights)
    sums = sizes.new_zeros(count, 2).index_add_(0, nearest, sizes * weights[:, None])
    empty = (mass == 0).nonzero().squeeze(1)
    centers = sums / torch.where(mass > 0, mass, 1)[:, None]
    return centers.index_copy(0, empty, sizes[overlaps.argsort(stable=True)[: len(empty)]]) if len(empty) else centers


def _as_sizes(sizes: Tensor, name: str, *, function: str = "shape_iou") -> Tensor:
    if sizes.ndim < 2 or sizes.shape[-1] != 2 or (function == "cluster_anchors" and sizes.ndim != 2):
        raise ValueError(f"{function}: {name} has shape {tuple(sizes.shape)}; allowed is (N, 2): width, height")
    return promote(sizes)


def _check_sizes(sizes: Tensor) -> None:
    bad = ~((sizes > 0) & torch.isfinite(sizes))
    if bad.any():
        row, side = bad.nonzero()[0].tolist()
        raise ValueError(
            f"cluster_anchors: sizes[{row}, {side}]={sizes[row, side].item():g} must be positive and finite; "
            f"{int(bad.any(1).sum())} of {len(sizes)} sizes are not"
        )
