"""The engine of suppression: which boxes survive, for many segments of boxes at once, exactly as the greedy loop says.

A segment is what may suppress each other, one class of one image say: a run of rows, best first. Segments are decided
by length, always with the same answer:

* up to 64 rows: all pairs of all such segments at once;
* up to 2,048: torchvision's kernel on a view of the rows, several views on several threads;
* longer: block after block, each against those survivors that are near it (``detkit.boxes.near``), then in itself.

The pairs that conflict make a graph, and ``resolve`` turns it into survivors. Coordinates are never shifted to keep
segments apart: that rounds them.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import torch
import torchvision
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from detkit._ranking import falling_order, stable_topk
from detkit._sent import sent
from detkit._threads import threads_for_pieces
from detkit.boxes.iou_blocks import iou_matrix
from detkit.boxes.measures import BoxSides, Measure, coordinate_limit, diou, iou, smallest_union
from detkit.boxes.near import near_pairs

MeasureName = Literal["iou", "diou"]
MEASURES: dict[str, Measure] = {"iou": iou, "diou": diou}
"""Measures that are never above IoU: what IoU does not bring near cannot conflict."""

_SHORT, _LONG = 64, 2048
_PAIRS_AT_ONCE = 1 << 15  # of short segments: what stays in the cache
_BLOCK = 1024  # the first block of a long segment; later ones are as long as _GROWTH times all before
_GROWTH, _LONGEST_BLOCK = 3, 1 << 14
_FEW = 128  # so many survivors are compared with a whole block, more only with what is near
_MOST_PAIRS = 1 << 22  # a block with more pairs to look at is halved: bounds memory on crowds of duplicates
_LEAST_THRESHOLD, _LARGEST_THRESHOLD = 0.2, 0.99  # below, too much is near; above, sizes differ too little
_ROUNDS = 32  # of settling everything at once, before the rest is settled row by row


def usable(boxes: Float[Tensor, "*B N 4"], scores: Float[Tensor, "*B N"]) -> Bool[Tensor, "*B N"]:
    """Rows whose numbers are finite: the others can neither be kept nor suppress.

    >>> usable(torch.tensor([[0.0, 0, 1, 1], [0, 0, torch.inf, 1]]), torch.ones(2))
    tensor([ True, False])
    """
    return torch.isfinite(boxes).all(-1) & torch.isfinite(scores)


def best_first(scores: Float[Tensor, "*B N"], count: int) -> Int[Tensor, "*B K"]:
    """The order of the best ``count`` scores of each row, ties by lower index.

    >>> best_first(torch.tensor([0.1, 0.9, 0.9]), 2)
    tensor([1, 2])
    """
    if scores.dtype == torch.float32 and count < scores.shape[-1]:
        return stable_topk(scores, count)
    if scores.dtype == torch.float32 and count >= _LONG and scores.device.type == "cpu":
        return falling_order(scores)
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :count]


def suits_kernel(boxes: Float[Tensor, "N 4"], scores: Float[Tensor, "N"]) -> bool:
    """Whether torchvision's kernel keeps what greedy suppression does, in no more time, of boxes in any order.

    It does so on the host for sound boxes of common size, and ranks scores as :func:`best_first` does.

    >>> suits_kernel(torch.tensor([[0.0, 0, 9, 9]]), torch.ones(1)), suits_kernel(torch.zeros(1, 4), torch.ones(1))
    (True, False)
    """
    if not 0 < len(boxes) <= _LONG or boxes.device.type != "cpu" or boxes.dtype != scores.dtype:
        return False
    sides = boxes[:, 2:] - boxes[:, :2]
    small = (sides[:, 0] * sides[:, 1]).min().item() <= smallest_union(boxes.dtype)
    return not small and boxes.abs().max().item() <= coordinate_limit(boxes.dtype)


def surviving(
    boxes: Float[Tensor, "N 4"],
    segments: Int[Tensor, "N"] | None,
    iou_threshold: float,
    measure: Measure,
    most: int | None = None,
) -> Bool[Tensor, "N"]:
    """Which rows survive, of rows in order of score that may be suppressed by those of their own segment.

    After the best ``most`` survivors of a segment (None: all) others may be left out.

    >>> surviving(torch.tensor([[0.0, 0, 9, 9]] * 3), torch.tensor([7, 8, 7]), 0.5, iou)
    tensor([ True,  True, False])
    """
    if segments is None:
        return survivors(boxes, [len(boxes)], iou_threshold, measure, most)
    if segments.device.type != "cpu":  # many small steps, for which a device would have to be waited again and again
        return sent(surviving(boxes.cpu(), segments.cpu(), iou_threshold, measure, most), segments.device)
    ordered, order = segments.sort(stable=True)
    lengths = ordered.unique_consecutive(return_counts=True)[1].tolist()
    keep = torch.zeros_like(segments, dtype=torch.bool)
    survived = survivors(boxes.index_select(0, order), lengths, iou_threshold, measure, most)
    return keep.index_fill_(0, order[survived], True)


def survivors(
    boxes: Float[Tensor, "N 4"],
    lengths: Sequence[int],
    iou_threshold: float,
    measure: Measure = iou,
    most: int | None = None,
) -> Bool[Tensor, "N"]:
    """Which rows survive: those that no better survivor of their segment overlaps by more than ``iou_threshold``.

    boxes (N, 4) xyxy, finite; ``lengths`` of the consecutive segments, each best first. Rows without area (up to 1e-36
    square pixels in float32) neither suppress nor are suppressed. After the best ``most`` survivors of a segment (None:
    all) others may be left out.

    >>> boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 8], [0, 0, 9, 8], [5, 5, 5, 5]])
    >>> survivors(boxes, [2, 2], 0.5)
    tensor([ True, False,  True,  True])
    """
    limit = coordinate_limit(boxes.dtype)
    boxes = boxes.clamp(-limit, limit)
    sides = BoxSides.of(*boxes.T.contiguous().unbind(0))
    solid = sides.area > smallest_union(boxes.dtype)
    if not solid.all():
        owners = torch.repeat_interleave(torch.tensor(lengths, dtype=torch.int64, device=boxes.device))
        some = owners[solid].bincount(minlength=len(lengths)).tolist()
        keep = ~solid
        keep[solid] = survivors(boxes[solid], some, iou_threshold, measure, most)
        return keep
    if len(lengths) == 1:
        return _one(boxes, sides, iou_threshold, measure, most)
    keep = resolve(len(boxes), *_short_conflicts(sides, lengths, iou_threshold, measure))
    stops = itertools.accumulate(lengths)
    long = [slice(stop - length, stop) for stop, length in zip(stops, lengths, strict=True) if length > _SHORT]
    decided = _threaded(
        lambda rows: _one(boxes[rows], sides.map(lambda values: values[rows]), iou_threshold, measure, most), long
    )
    for rows, survived in zip(long, decided, strict=True):
        keep[rows] = survived
    return keep


def _threaded(function: Callable[[slice], Tensor], segments: Sequence[slice]) -> Iterable[Tensor]:
    """``function`` of each segment, on torch's number of threads: the kernel releases the interpreter's lock."""
    workers = min(threads_for_pieces(), len(segments))
    if workers < 2:
        return map(function, segments)
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(function, segments))


def resolve(count: int, better: Int[Tensor, "P"], worse: Int[Tensor, "P"]) -> Bool[Tensor, "N"]:
    """Who of ``count`` rows survives where ``better[p]``, if it survives itself, suppresses ``worse[p]``.

    ``better[p] < worse[p]``. Starts with everybody alive and applies all conflicts at once, again and again: after k
    rounds everything is settled that hangs on a chain of at most k conflicts. What hangs on longer chains is settled
    row by row.

    >>> resolve(3, torch.tensor([0, 1]), torch.tensor([1, 2]))
    tensor([ True, False,  True])
    """
    keep = torch.ones(count, dtype=torch.bool, device=better.device)
    for _ in range(_ROUNDS):
        settled = torch.ones_like(keep).index_fill_(0, worse[keep[better]], False)
        if torch.equal(settled, keep):
            return keep
        keep = settled
    return _resolve_in_order(count, better, worse)


def _resolve_in_order(count: int, better: Int[Tensor, "P"], worse: Int[Tensor, "P"]) -> Bool[Tensor, "N"]:
    rivals, order = better.cpu().sort()
    victims = worse.cpu()[order].numpy()
    rows, lengths = rivals.unique_consecutive(return_counts=True)
    keep, start = np.ones(count, dtype=bool), 0
    for row, length in zip(rows.tolist(), lengths.tolist(), strict=True):
        if keep[row]:
            keep[victims[start : start + length]] = False
        start += length
    return torch.from_numpy(keep).to(better.device)


def _above(better: BoxSides, worse: BoxSides, threshold: float, measure: Measure) -> Bool[Tensor, "*P"]:
    return measure(better, worse) > round_down(threshold, better.area.dtype)


def round_down(threshold: float, dtype: torch.dtype) -> float:
    """The largest number of ``dtype`` that is not above ``threshold``: what is above the one is above the other.

    >>> 0.6000000238418579 > 0.6 == round_down(0.6, torch.float64) > round_down(0.6, torch.float32)
    True
    """
    kind = np.float64 if dtype == torch.float64 else np.float32  # not of torch: exported code calls this while traced
    rounded = kind(threshold)
    return float(rounded if float(rounded) <= threshold else np.nextafter(rounded, kind(-1)))


def _short_conflicts(
    sides: BoxSides, lengths: Sequence[int], threshold: float, measure: Measure
) -> tuple[Int[Tensor, "P"], Int[Tensor, "P"]]:
    """Pairs (better row, worse row) that conflict in segments of 2 to 64 rows.

    Segments lie one after the other, longest first: the rows that have a partner ``shift`` places below them are then
    at the front, and all those pairs are two overlapping slices: nothing is gathered. Of few rows several shifts are
    looked at at once.
    """
    sizes = torch.tensor(lengths, dtype=torch.int64, device=sides.area.device)
    starts = sizes.cumsum(0) - sizes
    chosen = sizes.argsort(descending=True)
    chosen = chosen[(sizes[chosen] > 1) & (sizes[chosen] <= _SHORT)]
    starts, sizes = starts[chosen], sizes[chosen]
    place = torch.arange(int(sizes.sum()), device=sides.area.device)
    place -= torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
    origin = torch.repeat_interleave(starts, sizes) + place
    following = torch.repeat_interleave(sizes, sizes) - place - 1
    ordered = F.pad(torch.stack(sides).index_select(1, origin), (0, _SHORT))  # the last rows have partners, too
    found, shift, longest = [(origin[:0], origin[:0])], 1, int(sizes[0]) if len(sizes) else 0
    while shift < longest:
        front = int(sizes[sizes > shift].sum())
        shifts = torch.arange(shift, min(longest, shift + max(1, _PAIRS_AT_ONCE // front)), device=origin.device)
        partners = ordered[:, shift : shift + len(shifts) + front - 1].unfold(1, front, 1)
        better, worse = (BoxSides(*part.unbind(0)) for part in (ordered[:, None, :front], partners))
        above = _above(better, worse, threshold, measure) & (following[:front] >= shifts[:, None])
        which, rows = above.nonzero(as_tuple=True)
        found.append((origin.index_select(0, rows), origin.index_select(0, rows + shifts[which])))
        shift += len(shifts)
    first, second = zip(*found, strict=True)
    return torch.cat(first), torch.cat(second)


def _one(
    boxes: Float[Tensor, "N 4"], sides: BoxSides, threshold: float, measure: Measure, most: int | None
) -> Bool[Tensor, "N"]:
    """One segment of any length."""
    near = _LEAST_THRESHOLD <= threshold <= _LARGEST_THRESHOLD and boxes.device.type == "cpu"
    if measure is iou and (len(boxes) <= _LONG or not near):
        return _by_kernel(boxes, threshold, most)
    return _by_blocks(boxes, sides, threshold, measure)


def _by_kernel(boxes: Float[Tensor, "N 4"], threshold: float, most: int | None = None) -> Bool[Tensor, "N"]:
    """One segment: at first a little more than ``most`` rows, then what is kept of them with more of the others."""
    most = len(boxes) if most is None else most
    kept, start, stop = torch.arange(0, device=boxes.device), 0, most + most // 2
    while start < len(boxes) and len(kept) < most:
        rows = torch.cat((kept, torch.arange(start, min(stop, len(boxes)), device=boxes.device)))
        falling = torch.arange(len(rows), 0, -1, device=boxes.device).to(boxes.dtype)
        kept = rows[torchvision.ops.nms(boxes.index_select(0, rows), falling, threshold)]
        start, stop = stop, 2 * stop
    return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device).index_fill_(0, kept, True)


def _by_blocks(boxes: Float[Tensor, "N 4"], sides: BoxSides, threshold: float, measure: Measure) -> Bool[Tensor, "N"]:
    """One long segment, block by block: a block meets the survivors so far, what is left of it meets itself."""
    first = boxes[:_BLOCK] if measure is iou else boxes[:0]
    kept = _by_kernel(first, threshold).nonzero().squeeze(1)
    start, length, crowded = len(first), _BLOCK, False
    while start < len(boxes):
        block = torch.arange(start, min(start + length, len(boxes)), device=boxes.device)
        fresh = _outlive(sides, block, kept, threshold, measure)
        keep = None if fresh is None else _among(sides, fresh, threshold, measure)
        if fresh is not None and keep is not None:
            kept, start = torch.cat((kept, fresh[keep])), start + len(block)
            length = min(_GROWTH * start, _LONGEST_BLOCK, 2 * length if crowded else _LONGEST_BLOCK)
        elif measure is iou:  # too crowded for looking at pairs; what is kept suppresses nothing that is kept
            rest = torch.cat((kept, torch.arange(start, len(boxes), device=boxes.device)))
            kept, start = rest[_by_kernel(boxes[rest], threshold)], len(boxes)
        else:
            length, crowded = max(1, length // 2), True
    return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device).index_fill_(0, kept, True)


def _among(boxes: BoxSides, rows: Tensor, threshold: float, measure: Measure) -> Bool[Tensor, "M"] | None:
    """Which of ``rows`` survive each other; None where that takes too many pairs."""
    if len(rows) < 2:
        return torch.ones_like(rows, dtype=torch.bool)
    pairs = _candidates(boxes, rows, rows, threshold)
    if pairs is None:
        return _by_kernel(boxes.take(rows).corners(), threshold) if measure is iou else None
    better, worse = torch.minimum(*pairs), torch.maximum(*pairs)
    first, second = boxes.take(rows.index_select(0, better)), boxes.take(rows.index_select(0, worse))
    above = (better < worse) & _above(first, second, threshold, measure)
    return resolve(len(rows), better[above], worse[above])


def _outlive(
    boxes: BoxSides, block: Tensor, kept: Tensor, threshold: float, measure: Measure
) -> Int[Tensor, "M"] | None:
    """Rows of ``block`` that none of ``kept`` suppresses; None where that takes too many pairs."""
    if measure is iou and len(kept) <= _FEW:
        overlaps = iou_matrix(boxes.take(kept), boxes.take(block))
        return block[(overlaps <= round_down(threshold, overlaps.dtype)).all(0)]
    pairs = _candidates(boxes, block, kept, threshold)
    if pairs is None:
        return None
    queries, others = pairs
    first, second = boxes.take(block.index_select(0, queries)), boxes.take(kept.index_select(0, others))
    above = _above(first, second, threshold, measure)
    return block[torch.ones_like(block, dtype=torch.bool).index_fill_(0, queries[above], False)]


def _candidates(boxes: BoxSides, rows: Tensor, others: Tensor, threshold: float) -> tuple[Tensor, Tensor] | None:
    """Places (in ``rows``, in ``others``) of pairs that may conflict; None if they are too many."""
    if threshold >= _LEAST_THRESHOLD and rows.device.type == "cpu":
        first = boxes.take(rows)
        pairs = near_pairs(first, first if others is rows else boxes.take(others), threshold, most=_MOST_PAIRS)
        if pairs is not None:
            return pairs
    if len(rows) * len(others) > _MOST_PAIRS and len(rows) > 1:
        return None
    places = torch.arange(len(rows) * len(others), device=rows.device)
    return places // max(len(others), 1), places % max(len(others), 1)
