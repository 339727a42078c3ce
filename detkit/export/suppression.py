"""Suppression in plain operators, for runtimes that know none of this library: the greedy loop itself.

The best of what is left is found, and takes what it overlaps with it; that many times as detections are wanted. All
images of a batch, and all classes, take their steps together. It is what the operators do, whatever boxes overlap; no
order is needed, so no runtime's ties matter. The loop is a node of the program, or is unrolled: a step is some
thirty nodes. Where the number of rows is a symbol, rows of padding make it at least as large as what is taken of them:
few runtimes know the smaller of two lengths. Some take the largest of -inf for the lowest number, so that is used.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop_op
from torch.nn import functional as F

from detkit._inputs import promote
from detkit._ranking import among_best, plain_places
from detkit.boxes.measures import BoxSides, coordinate_limit, smallest_union
from detkit.boxes.suppression import MEASURES, round_down, usable

_GONE = torch.finfo(torch.float32).min  # the score of what is no candidate, or no more
_NOWHERE = 2**24  # no place is above it; some runtimes compute with integers in float32, which holds no more


def plain_nms_padded(
    boxes: Shaped[Tensor, "B N 4"],
    scores: Shaped[Tensor, "B N"],
    iou_threshold: float,
    groups: Shaped[Tensor, "B N"] | None,
    valid: Bool[Tensor, "B N"] | None,
    max_detections: int,
    measure: str,
    *,
    loops: bool = True,
) -> tuple[Int[Tensor, "B K"], Bool[Tensor, "B K"]]:
    """What the operator behind :func:`~detkit.boxes.nms_padded` finds; unrolled unless ``loops``.

    >>> boxes = torch.tensor([[[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]]])
    >>> plain_nms_padded(boxes, torch.tensor([[0.8, 0.9, 0.7]]), 0.5, None, None, 3, "iou", loops=False)
    (tensor([[1, 2, 0]]), tensor([[ True,  True, False]]))
    """
    boxes, scores = promote(boxes), promote(scores)
    candidates = usable(boxes, scores) if valid is None else usable(boxes, scores) & valid
    alive = torch.where(candidates, scores, _GONE)
    wanted = _known(max_detections, scores.shape[1])
    return _greedy(boxes, alive, groups, wanted, (iou_threshold, measure), loops)


def plain_multiclass_nms_padded(
    boxes: Shaped[Tensor, "B N 4"] | Shaped[Tensor, "B N C 4"],
    scores: Shaped[Tensor, "B N C"],
    iou_threshold: float,
    score_threshold: float,
    candidates_per_class: int | None,
    max_detections: int,
    measure: str,
    *,
    candidates: int = 4096,
    loops: bool = True,
) -> tuple[Int[Tensor, "B K"], Bool[Tensor, "B K"]]:
    """What the operator behind :func:`~detkit.boxes.multiclass_nms_padded` finds among the best ``candidates``.

    These are (box, class) pairs of an image above ``score_threshold``.

    >>> boxes, scores = torch.tensor([[[0.0, 0, 9, 9], [0, 0, 9, 8]]]), torch.tensor([[[0.9, 0.2], [0.8, 0.3]]])
    >>> plain_multiclass_nms_padded(boxes, scores, 0.5, 0.1, None, 3, "iou", loops=False)
    (tensor([[0, 3, 0]]), tensor([[ True,  True, False]]))
    """
    boxes, scores = promote(boxes), promote(scores)
    solid = torch.isfinite(boxes).all(-1)
    finite = (solid if boxes.ndim == 4 else solid[..., None]) & torch.isfinite(scores)
    scores = torch.where(finite & (scores > score_threshold), scores, _GONE)
    count, classes = scores.shape[1:]
    symbolic = isinstance(count, torch.SymInt)
    each = count if candidates_per_class is None else _known(candidates_per_class, count)
    if candidates_per_class is not None:
        by_class = _padded(scores.transpose(1, 2), candidates_per_class)
        kept = among_best(by_class, each)[..., :count].transpose(1, 2)
        scores = torch.where(kept, scores, _GONE)
    flat = _padded(scores.flatten(1), candidates)
    places = plain_places(flat, candidates if symbolic else min(candidates, count * classes))
    alive = flat.gather(1, places)
    places = torch.where(alive > _GONE, places, 0)
    rows = places // classes if boxes.ndim == 3 else places
    own = boxes.flatten(1, -2).gather(1, rows[..., None].expand(-1, -1, 4))
    wanted = max_detections if symbolic else min(max_detections, each * classes)
    found, filled = _greedy(own, alive, places % classes, wanted, (iou_threshold, measure), loops)
    return torch.where(filled, places.gather(1, found), 0), filled


def _known(count: int, length: Any) -> int:
    """The smaller of both; ``count`` where ``length`` is a symbol, to whose rows :func:`_padded` adds that many."""
    return count if isinstance(length, torch.SymInt) else min(count, length)


def _padded(scores: Float[Tensor, "*B N"], count: int) -> Float[Tensor, "*B N"]:
    return F.pad(scores, (0, count), value=_GONE) if isinstance(scores.shape[-1], torch.SymInt) else scores


def _greedy(
    boxes: Float[Tensor, "B N 4"],
    alive: Float[Tensor, "B N"],
    groups: Int[Tensor, "B N"] | None,
    wanted: int,
    settings: tuple[float, str],
    loops: bool,
) -> tuple[Int[Tensor, "B K"], Bool[Tensor, "B K"]]:
    """Places of the ``wanted`` best survivors; ``alive`` are the scores of candidates."""
    threshold, measure = settings
    batch, count = alive.shape
    found = torch.zeros((batch, wanted), dtype=torch.int64, device=alive.device)
    columns, places = (torch.arange(length, device=alive.device) for length in (wanted, count))
    groups = torch.zeros_like(alive, dtype=torch.int64) if groups is None else groups.to(torch.int64)
    fixed = (_sides(boxes, alive).contiguous(), groups.contiguous(), places, columns)  # a loop keeps strides
    limit = round_down(threshold, boxes.dtype)

    def step(alive: Tensor, found: Tensor, filled: Tensor, *fixed: Tensor) -> tuple[Tensor, ...]:
        sides, groups, places, columns = fixed
        best = alive.amax(1, keepdim=True)
        pick = torch.where(alive == best, places, _NOWHERE).amin(1, keepdim=True)
        own = sides.gather(2, pick[:, None].expand(-1, 5, -1))
        overlap = MEASURES[measure](BoxSides(*own.unbind(1)), BoxSides(*sides.unbind(1)))
        gone = ((overlap > limit) & (groups == groups.gather(1, pick))) | (places == pick)
        here = (columns == filled.to(torch.int64).sum(1, keepdim=True)) & (best > _GONE)
        return torch.where(gone, _GONE, alive), torch.where(here, pick, found), filled | here

    state = (alive.clone(memory_format=torch.contiguous_format), found, torch.zeros_like(found, dtype=torch.bool))
    if not loops:
        for _ in range(wanted):
            state = step(*state, *fixed)
        return state[1], state[2]

    def handing_on(*values: Tensor) -> tuple[Tensor, ...]:  # several runtimes know only loops that carry all they read
        return *step(*values), *(value.clone() for value in values[3:])

    carried: Any = (*state, *fixed)
    state = while_loop_op(_unfinished, handing_on, carried, ())
    return state[1], state[2]


def _unfinished(alive: Tensor, found: Tensor, filled: Tensor, *fixed: Tensor) -> Bool[Tensor, ""]:
    return ((alive.amax(1) > _GONE) & ~filled[:, -1]).any()


def _sides(boxes: Float[Tensor, "B N 4"], alive: Float[Tensor, "B N"]) -> Float[Tensor, "B 5 N"]:
    """Corners and area of each box, bounded; zeros for what suppresses nothing."""
    limit = coordinate_limit(boxes.dtype)
    boxes = torch.where((alive > _GONE)[..., None], boxes, 0).clamp(-limit, limit)
    sides = torch.stack(BoxSides.of(*boxes.unbind(-1)), 1)
    return torch.where(sides[:, 4:] > smallest_union(boxes.dtype), sides, 0)
