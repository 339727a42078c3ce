"""ShardedIndex in one process; in several see test_dist."""

import pytest
import torch

from detkit.retrieval import BruteForceIndex, ShardedIndex


def test_in_one_process_it_is_the_index_itself():
    index = BruteForceIndex(2)
    index.add(torch.tensor([[0.0, 1], [1, 0], [1, 0]]), [9, 8, 7])
    queries = torch.rand(4, 2)
    for one, other in zip(ShardedIndex(index).search(queries, 3), index.search(queries, 3), strict=True):
        assert torch.equal(one, other)


def test_a_k_above_all_parts_together_is_named():
    with pytest.raises(ValueError, match=r"ShardedIndex.search: k=1 of 0 vectors; allowed is 1..0"):
        ShardedIndex(BruteForceIndex(2)).search(torch.zeros(1, 2), 1)
