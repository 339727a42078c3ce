"""The search behind BipartiteMatcher."""

import torch
from jaxtyping import Int
from torch import Tensor

from detkit.anchors.assigned import threshold_labels
from detkit.anchors.claims import SMALLEST_CLAIM, pair_keys
from detkit.anchors.search.groups import ImageGroup, best_fit, write_labels
from detkit.anchors.search.overlap_index import OverlapIndex, Pairs
from detkit.structures import Assignment


def search_bipartite(
    index: OverlapIndex,
    group: ImageGroup,
    result: Assignment,
    *,
    positive_iou: float,
    negative_iou: float,
    greedy: bool,
) -> bool:
    """Write the matches of a group of images to ``result``; False, and nothing written, if there are too many pairs.

    The pairs that matter are those with IoU >= ``negative_iou``, and each object's best, which its claim is chosen
    from. The search is repeated with a lower bound, then with none, for objects that lose all of these to others.
    """
    least, share = index.reachable(group.sides).clamp(max=negative_iou), 0.25
    while True:
        pairs = index.pairs(group.sides, least)
        if pairs is None:
            return False
        cells = group.image[pairs.objects] * len(index.anchors) + pairs.anchors
        rows = group.row[pairs.objects]
        claims = _claims(pairs, cells, rows, len(least)) if greedy else _best_pairs(pairs, len(least))
        unlucky = torch.ones_like(least, dtype=torch.bool).index_fill_(0, pairs.objects[claims], False)
        again = unlucky & (least > SMALLEST_CLAIM)
        if not greedy or not again.any():
            break
        least, share = torch.where(again, least * share, least), 0.0
    overlap, row = best_fit(cells, rows, pairs.overlaps, result.matched.view(-1))
    write_labels(result, cells, threshold_labels(overlap, row, positive_iou, negative_iou), overlap)
    claims = claims[rows[claims].argsort(stable=True)]  # of two claims on one anchor the later object's is written last
    write_labels(result, cells[claims], rows[claims], pairs.overlaps[claims])
    return True


def _best_pairs(pairs: Pairs, count: int) -> Int[Tensor, "C"]:
    """The pair of each object with its best anchor, the lower one on a tie, if the IoU is high enough for a claim."""
    keys = pair_keys(pairs.overlaps, pairs.anchors)
    best = keys.new_zeros(count).scatter_reduce_(0, pairs.objects, keys, "amax")
    return ((keys == best[pairs.objects]) & (pairs.overlaps > SMALLEST_CLAIM)).nonzero().squeeze(1)


def _claims(pairs: Pairs, cells: Int[Tensor, "P"], rows: Int[Tensor, "P"], count: int) -> Int[Tensor, "C"]:
    worth = (pairs.overlaps > SMALLEST_CLAIM).nonzero().squeeze(1)
    worthy = Pairs(*(values[worth] for values in pairs))
    return worth[accepted_offers(worthy, cells[worth], rows[worth], count)]


def accepted_offers(pairs: Pairs, cells: Int[Tensor, "P"], rows: Int[Tensor, "P"], count: int) -> Int[Tensor, "C"]:
    """The pairs that greedy claims take, found by deferred acceptance: of ``count`` objects, an anchor in each cell.

    Each object proposes to its best anchor; an anchor keeps its best proposal, and a refused object proposes to its
    next anchor. As objects and anchors rank pairs in one order, the result is that of taking the best pair left, again
    and again; but objects far apart don't wait for each other.
    """
    order = pair_keys(pairs.overlaps, pairs.anchors).argsort(descending=True)
    order = order[pairs.objects[order].argsort(stable=True)]
    counts = pairs.objects[order].bincount(minlength=count)
    last = counts.cumsum(0)
    place = last - counts
    offers = pair_keys(pairs.overlaps, rows)[order]
    spots = cells[order]
    names, spots = spots.unique(return_inverse=True)
    held = offers.new_full(names.shape, -1)
    asking = (place < last).nonzero().squeeze(1)
    while len(asking):
        held.scatter_reduce_(0, spots[place[asking]], offers[place[asking]], "amax")
        live = (place < last).nonzero().squeeze(1)
        asking = live[held[spots[place[live]]] != offers[place[live]]]
        place[asking] += 1
        asking = asking[place[asking] < last[asking]]
    return order[place[place < last]]
