"""Labels of embeddings: the same number, or one shared label of two sets."""

import pytest
import torch
from strategies import unhooked

from detkit.retrieval import same_labels, takes_part


def test_label_sets_are_the_same_if_they_share_a_label():
    sets = torch.tensor([[1, 0, 1], [0, 1, 1], [0, 1, 0], [0, 0, 0]])
    shared = [
        [bool(set(a.nonzero().flatten().tolist()) & set(b.nonzero().flatten().tolist())) for b in sets] for a in sets
    ]
    assert same_labels(sets, sets).tolist() == shared


def test_padding_is_like_nothing():
    assert not same_labels(torch.tensor([-1, -1]), torch.tensor([-1, -1])).any()
    sets = torch.full((2, 3), -1)
    assert not same_labels(sets, sets).any()
    assert takes_part(torch.tensor([[0, 0], [-1, -1]])).tolist() == [True, False]


@pytest.mark.parametrize(
    ("labels", "references", "message"),
    [
        (torch.zeros(2), torch.zeros(2, 3), "allowed are whole numbers"),
        (torch.zeros(2, 4), torch.zeros(2, 3), "allowed are whole numbers"),
        (torch.zeros(2, 1, 1), torch.zeros(2, 1, 1), "allowed are whole numbers"),
        (torch.tensor([[0, 7]]), torch.tensor([[0, 1]]), r"labels hold 7; label sets \(N, C\) hold 0 and 1"),
        (torch.tensor([[0, 1]]), torch.rand(1, 2), r"references hold 0\.\d+; label sets \(N, C\) hold 0 and 1"),
        (torch.tensor([0.5, 1]), torch.tensor([0.0]), r"labels hold 0\.5; allowed are whole numbers"),
    ],
)
def test_labels_of_different_kinds_are_refused(labels, references, message):
    with pytest.raises(ValueError, match=message):
        unhooked(same_labels)(labels, references)


def test_a_label_set_that_holds_a_negative_number_is_padding():
    sets = torch.tensor([[1, -1], [1, 0]])
    assert takes_part(sets).tolist() == [False, True]
    assert same_labels(sets, sets).tolist() == [[False, False], [False, True]]
    assert same_labels(sets, torch.tensor([[True, False]])).tolist() == [[False], [True]]
