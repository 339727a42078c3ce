"""Memories of embeddings: what is compared, what is kept, what is forgotten first; several processes in test_dist."""

import pytest
import pytorch_metric_learning.losses as peers
import torch
from metric_loops import batch
from strategies import unhooked

from detkit.retrieval import ContrastiveLoss, CrossBatchMemory, GatheredLoss, MetricLoss, TripletLoss


def test_a_batch_is_compared_with_itself_and_with_past_batches():
    first, second = batch(5, 3), batch(6, 3, seed=1)
    memory = CrossBatchMemory(ContrastiveLoss(), 20, 5, weight=0.5).double()
    assert memory(*first) == ContrastiveLoss()(*first)
    expected = ContrastiveLoss()(*second) + 0.5 * ContrastiveLoss()(*second, *first)
    torch.testing.assert_close(memory(*second), expected)


def test_the_oldest_rows_are_forgotten_first_and_padding_is_not_kept():
    memory = CrossBatchMemory(ContrastiveLoss(), 5, 1)
    for start in (0, 4, 8):
        rows = torch.arange(start, start + 4.0)[:, None]
        memory(rows, torch.tensor([start, -1, start + 2, start + 3]))
    assert len(memory) == 5
    assert sorted(memory.labels.tolist()) == [6, 7, 8, 10, 11]
    assert memory.embeddings[:, 0].tolist() == memory.labels.tolist()


def test_the_memory_is_filled_in_training_and_travels_with_the_state():
    memory = CrossBatchMemory(TripletLoss(), 8, 5).double()
    memory.eval()(*batch(4, 2))
    assert len(memory) == 0
    memory.train()(*batch(4, 2))
    other = CrossBatchMemory(TripletLoss(), 8, 5).double()
    other.load_state_dict(memory.state_dict())
    assert torch.equal(other(*batch(4, 2, seed=1)), memory(*batch(4, 2, seed=1)))
    assert len(other) == 8


def test_the_past_has_no_gradient_and_a_later_batch_does_not_spoil_an_earlier_one():
    memory = CrossBatchMemory(ContrastiveLoss(), 6, 5).double()
    rows, labels = batch(4, 2)
    rows.requires_grad_()
    first = memory(rows, labels) + memory(rows * 2, labels)
    first.backward()
    assert torch.isfinite(rows.grad).all()
    assert not memory.embeddings.requires_grad


def test_in_one_process_a_gathered_loss_is_the_loss_with_and_without_references():
    rows, labels = batch(6, 2)
    assert GatheredLoss(TripletLoss())(rows, labels) == TripletLoss()(rows, labels)
    others = batch(5, 2, seed=1)
    assert GatheredLoss(TripletLoss())(rows, labels, *others) == TripletLoss()(rows, labels, *others)
    assert GatheredLoss(TripletLoss()).takes_padding
    assert not GatheredLoss(torch.nn.Identity()).takes_padding


def test_what_a_memory_cannot_hold_is_refused():
    memory = CrossBatchMemory(ContrastiveLoss(), 3, 5)
    with pytest.raises(ValueError, match="a batch of 4 rows in all processes; allowed are size=3"):
        memory(*batch(4, 2))
    with pytest.raises(ValueError, match=r"labels have shape \(4, 2\); allowed are \(N,\)"):
        unhooked(memory)(torch.zeros(4, 5), torch.zeros(4, 2))


def test_a_batch_that_is_not_finite_does_not_spoil_those_after_it():
    memory = CrossBatchMemory(ContrastiveLoss(), 8, 2)
    memory(torch.tensor([[0.0, torch.nan], [1, 1], [torch.inf, 0]]), torch.tensor([0, 1, 2]))
    assert (len(memory), memory.labels.tolist()[:2]) == (1, [1, -1])
    assert torch.isfinite(memory(torch.rand(2, 2), torch.tensor([0, 1])))


def test_a_loss_that_knows_no_padding_is_compared_with_past_rows_only():
    peer = peers.ContrastiveLoss(neg_margin=2.0)  # rows of zeros, as in an empty memory, would cost it something
    wrapped = MetricLoss(
        lambda rows, labels, others, theirs: peer(rows, labels, ref_emb=others, ref_labels=theirs), takes_padding=False
    )
    memory, first, second = CrossBatchMemory(wrapped, 20, 5).double(), batch(5, 3), batch(6, 3, seed=1)
    assert memory(*first) == peer(*first)
    expected = peer(*second) + peer(*second, ref_emb=first[0], ref_labels=first[1])
    torch.testing.assert_close(memory(*second), expected)


def test_a_loss_that_may_take_padding_for_a_class_is_refused():
    with pytest.raises(TypeError, match=r"loss is a ContrastiveLoss, which does not say whether .* give a MetricLoss"):
        CrossBatchMemory(peers.ContrastiveLoss(), 20, 5)
