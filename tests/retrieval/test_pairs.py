"""Miners against loops over anchors, and the pairs of a batch."""

import functools

import pytest
import torch
from metric_loops import batch, hostile

from detkit.retrieval import hardest_pairs, informative_pairs, semi_hard_pairs
from detkit.retrieval.pairs import MetricLoss, Pairs, mean_over, mined, pairs_of

BATCHES = hostile()


def by_hand(name: str, distances: list[float], positives: list[int], negatives: list[int]) -> tuple[set[int], set[int]]:
    """What a miner leaves of one anchor."""
    farthest = max((distances[j] for j in positives), default=-torch.inf)
    nearest = min((distances[j] for j in negatives), default=torch.inf)
    hardest = {next(j for j in positives if distances[j] == farthest)} if positives else set()
    if name == "hardest":
        return hardest, {next(j for j in negatives if distances[j] == nearest)} if negatives else set()
    if name == "semi-hard":
        return hardest, {j for j in negatives if farthest < distances[j] < farthest + 0.5}
    near = {j for j in negatives if distances[j] < farthest + 0.3}
    return {j for j in positives if distances[j] > nearest - 0.3}, near


MINERS = {
    "hardest": hardest_pairs,
    "semi-hard": functools.partial(semi_hard_pairs, margin=0.5),
    "informative": functools.partial(informative_pairs, epsilon=0.3),
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("miner", MINERS)
def test_a_miner_leaves_what_a_loop_does(miner, name):
    rows, _, pairs = pairs_of("test", *BATCHES[name])
    distances = torch.cdist(rows, rows)
    left = mined(MINERS[miner], distances, pairs)
    for i in range(len(rows)):
        positives, negatives = (mask[i].nonzero().flatten().tolist() for mask in pairs)
        expected = by_hand(miner, distances[i].tolist(), positives, negatives)
        assert tuple(set(mask[i].nonzero().flatten().tolist()) for mask in left) == expected


def test_of_equal_distances_the_first_is_the_hardest():
    same = torch.tensor([[True, True, False, False]])
    found = hardest_pairs(torch.ones(1, 4), same, ~same)
    assert [mask[0].tolist() for mask in found] == [[True, False, False, False], [False, False, True, False]]


def test_no_row_is_its_own_partner():
    for embeddings, labels in BATCHES.values():
        pairs = pairs_of("test", embeddings, labels)[2]
        assert not pairs.positives.diagonal().any()
        assert not pairs.negatives.diagonal().any()
        assert not (pairs.positives & pairs.negatives).any()


def test_the_mean_over_nothing_is_0():
    assert mean_over(torch.tensor([9.0]), torch.tensor([False])) == 0
    anchors = Pairs(torch.zeros(2, 3) > 0, torch.tensor([[False] * 3, [True] * 3])).anchors
    assert anchors.tolist() == [False, True]


def test_a_loss_of_ones_own_has_its_signature():
    rows, labels = batch(3, 2)
    loss = MetricLoss(lambda embeddings, labels, *references: embeddings.sum() * 2)
    assert loss(rows, labels) == rows.sum() * 2


def test_a_miner_that_gives_no_masks_of_all_pairs_is_named():
    same = torch.tensor([[True, False], [False, True]])
    for miner in (lambda distances, *pairs: (pair.float() for pair in pairs), lambda d, p, n: (p[:1], n[:1])):
        with pytest.raises(ValueError, match=r"miner: its positives have shape .* allowed are masks of shape .2, 2."):
            mined(miner, torch.ones(2, 2), Pairs(same, ~same))


def test_a_function_without_padding_gets_the_rows_that_take_part():
    given = []

    def counted(embeddings, labels, others, their_labels):
        given.append((labels.tolist(), None if their_labels is None else their_labels.tolist()))
        return embeddings.sum()

    loss, rows = MetricLoss(counted, takes_padding=False), torch.ones(3, 2, requires_grad=True)
    assert loss(rows, torch.tensor([4, -1, 5])) == 4
    assert loss(rows, torch.tensor([4, -1, 5]), torch.ones(2, 2), torch.tensor([-1, 7])) == 4
    assert given == [([4, 5], None), ([4, 5], [7])]
    nothing = loss(rows, torch.tensor([4, -1, 5]), torch.ones(2, 2), torch.tensor([-1, -1]))
    nothing.backward()
    assert nothing == 0 == rows.grad.abs().sum()
    assert len(given) == 2
