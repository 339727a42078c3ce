"""BallTreeIndex: the tree is built when it is needed, and anew after a change."""

import pytest
import torch

from detkit.retrieval import BallTreeIndex


def test_the_tree_is_built_once_until_something_changes():
    index = BallTreeIndex(2, leaf_size=1)
    index.add(torch.tensor([[0.0, 0], [1, 1]]))
    assert index._tree is None
    index.search(torch.zeros(1, 2), 1)
    tree = index._tree
    index.search(torch.zeros(1, 2), 1)
    assert index._tree is tree
    index.remove([0])
    assert index.search(torch.zeros(1, 2), 1).ids.item() == 1


def test_a_leaf_holds_at_least_one():
    with pytest.raises(ValueError, match="BallTreeIndex: leaf_size=0 must be at least 1"):
        BallTreeIndex(2, leaf_size=0)
