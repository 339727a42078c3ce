"""Metric losses equal loops over all pairs and triplets, and pytorch-metric-learning's; and what a batch may hold."""

import functools

import metric_loops as loops
import pytest
import pytorch_metric_learning.losses as peers
import torch
from metric_loops import LOOPS, batch, hostile, rows_of
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.miners import MultiSimilarityMiner
from strategies import unhooked

from detkit.retrieval import (
    ContrastiveLoss,
    CosineDistance,
    MultiSimilarityLoss,
    SupervisedContrastiveLoss,
    TripletLoss,
    chopra_cost,
    contrastive_cost,
    contrastive_loss,
    hardest_pairs,
    informative_pairs,
    triplet_cost,
    triplet_loss,
)

LOSSES = ContrastiveLoss(), TripletLoss(), SupervisedContrastiveLoss(), MultiSimilarityLoss()
named = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
BATCHES = hostile()


def test_the_golden_numbers():
    a, b = torch.tensor([[0.0, 0], [1, 0]]), torch.tensor([[0.6, 0.8], [1, 0.5]])
    assert contrastive_cost((a - b).norm(dim=1), torch.tensor([True, False])).mean().item() == pytest.approx(0.3125)
    anchor, positive, negative = torch.tensor([[0.0, 0], [0.6, 0.8], [1.5, 0]])
    assert triplet_cost((anchor - positive).norm(), (anchor - negative).norm()).item() == pytest.approx(0.5)


@named
@pytest.mark.parametrize("name", BATCHES)
def test_a_loss_is_its_loop_and_has_a_finite_gradient(loss, name):
    embeddings, labels = BATCHES[name]
    embeddings = embeddings.clone().requires_grad_()
    found = loss(embeddings, labels)
    found.backward()
    expected = LOOPS[type(loss).__name__](rows_of(embeddings, labels), None)
    assert found.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert torch.isfinite(embeddings.grad).all()


@named
def test_references_take_the_place_of_the_batch(loss):
    embeddings, labels = batch(6, 3)
    references, theirs = batch(8, 4, seed=1)
    theirs[2] = -1
    expected = LOOPS[type(loss).__name__](rows_of(embeddings, labels), rows_of(references, theirs))
    assert loss(embeddings, labels, references, theirs).item() == pytest.approx(expected, rel=1e-9)


@named
@pytest.mark.slow
def test_the_gradient_is_that_of_the_loss(loss):
    embeddings, labels = batch(7, 3, spread=0.4)
    references, theirs = batch(5, 3, seed=3, spread=0.4)
    assert torch.autograd.gradcheck(lambda rows: loss(rows, labels), embeddings.requires_grad_())
    both = (embeddings, references.requires_grad_())
    assert torch.autograd.gradcheck(lambda rows, others: loss(rows, labels, others, theirs), both)


@named
def test_what_padding_holds_does_not_matter(loss):
    embeddings, labels = batch(6, 2)
    longer = torch.cat((embeddings[:2], torch.full((3, 5), torch.nan).double(), embeddings[2:])).requires_grad_()
    padded = torch.cat((labels[:2], torch.tensor([-1, -1, -2]), labels[2:]))
    found = loss(longer, padded)
    assert found.item() == pytest.approx(loss(embeddings, labels).item(), rel=1e-12)
    found.backward()
    assert not longer.grad[2:5].any()


@named
def test_half_precision_is_promoted_and_losses_stay_near(loss):
    embeddings, labels = batch(6, 2)
    exact = loss(embeddings, labels)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        found = loss(embeddings.to(dtype), labels)
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(exact.item(), rel=1e-5 if dtype == torch.float32 else 0.05)


# Settings


@pytest.mark.parametrize("reduction", ["all", "active"])
@pytest.mark.parametrize("margin", [0.0, 0.3, 2.0])
def test_margins_and_reductions_are_those_of_the_loops(margin, reduction):
    embeddings, labels = batch(9, 3, spread=0.5)
    rows, active = rows_of(embeddings, labels), reduction == "active"
    cost = functools.partial(contrastive_cost, margin=margin)
    expected = loops.contrastive(rows, None, margin=margin, active=active)
    assert contrastive_loss(embeddings, labels, cost=cost, reduction=reduction).item() == pytest.approx(expected)
    expected = loops.triplet(rows, None, margin=margin, active=active)
    assert triplet_loss(embeddings, labels, margin=margin, reduction=reduction).item() == pytest.approx(expected)


def test_the_form_of_2005_takes_the_l1_distance():
    embeddings, labels = batch(6, 2)
    found = contrastive_loss(embeddings, labels, cost=chopra_cost, distance=functools.partial(torch.cdist, p=1))
    costs = []
    for own, positives, negatives in loops.partners(rows_of(embeddings, labels), None):
        costs += [2 * abs(own - other).sum() ** 2 for other in positives]
        costs += [2 * 2.718281828459045 ** (-2.77 * abs(own - other).sum()) for other in negatives]
    assert found.item() == pytest.approx(sum(costs) / len(costs))


def test_a_triplet_at_its_margin_exactly_costs_nothing_and_is_not_active():
    embeddings = torch.tensor([[0.0], [1.0], [2.0]])
    labels = torch.tensor([0, 0, 1])
    # From 0: 1 - 2 + 1 = 0; from 1: 1 - 1 + 1 = 1, the only active one.
    assert triplet_loss(embeddings, labels, reduction="active").item() == 1
    assert triplet_loss(embeddings, labels, reduction="all").item() == 0.5


def test_batch_hard_keeps_the_farthest_positive_and_the_nearest_negative():
    embeddings, labels = batch(8, 3)
    costs = [
        max(0.0, max(loops.euclidean(own, p) for p in positives) - min(loops.euclidean(own, n) for n in negatives) + 1)
        for own, positives, negatives in loops.partners(rows_of(embeddings, labels), None)
        if positives and negatives
    ]
    found = triplet_loss(embeddings, labels, miner=hardest_pairs, reduction="all")
    assert found.item() == pytest.approx(sum(costs) / len(costs))


# pytorch-metric-learning


def matched() -> dict[str, tuple[object, object]]:
    """Ours and theirs, with settings that mean the same."""
    unsquared = functools.partial(contrastive_cost, margin=1.0, squared=False)
    plain = LpDistance(normalize_embeddings=False)
    theirs_mined = peers.MultiSimilarityLoss()
    return {
        "contrastive": (
            ContrastiveLoss(cost=unsquared, reduction="active"),
            peers.ContrastiveLoss(distance=plain),
        ),
        "triplet": (TripletLoss(margin=0.05), peers.TripletMarginLoss(distance=plain)),
        "supervised contrastive": (SupervisedContrastiveLoss(), peers.SupConLoss()),
        "multi-similarity": (MultiSimilarityLoss(), peers.MultiSimilarityLoss()),
        "multi-similarity, mined": (
            MultiSimilarityLoss(miner=informative_pairs),
            lambda rows, labels: theirs_mined(rows, labels, MultiSimilarityMiner()(rows, labels)),
        ),
    }


@pytest.mark.parametrize("name", matched())
@pytest.mark.parametrize("classes", [2, 5, 12])
def test_with_the_same_settings_it_is_pytorch_metric_learnings(name, classes):
    ours, theirs = matched()[name]
    embeddings, labels = batch(24, classes)
    mine, other = embeddings.clone().requires_grad_(), embeddings.clone().requires_grad_()
    found, expected = ours(mine, labels), theirs(other, labels)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    found.backward()
    expected.backward()
    torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-9)


def test_normalized_embeddings_are_the_cosine_distance_in_the_order_of_triplets():
    embeddings, labels = batch(12, 3)
    theirs = peers.TripletMarginLoss(margin=0.1, distance=LpDistance(power=2))  # squared, of normalized ones: twice
    found = triplet_loss(embeddings, labels, margin=0.05, distance=CosineDistance())
    assert 2 * found.item() == pytest.approx(theirs(embeddings, labels).item())


# What is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3, 2), torch.zeros(4, dtype=torch.int64)), r"embeddings have shape \(3, 2\) and labels \(4,\)"),
        ((torch.zeros(3), torch.zeros(3, dtype=torch.int64)), r"embeddings have shape \(3,\)"),
        ((torch.zeros(3, 2), torch.zeros(3), torch.zeros(3, 2)), "one is None; give both or neither"),
        ((torch.zeros(3, 2), torch.zeros(3), torch.zeros(3, 4), torch.zeros(3)), r"have 4 numbers each.*are 2"),
        ((torch.zeros(3, 2), torch.zeros(3), torch.zeros(3, 2), torch.zeros(3, 5)), "allowed are whole numbers"),
    ],
)
@named
def test_shapes_that_do_not_fit_are_named(loss, arguments, message):
    with pytest.raises(ValueError, match=message):
        unhooked(loss)(*arguments)


def test_another_reduction_is_refused():
    with pytest.raises(ValueError, match="TripletLoss: reduction='mean'; allowed are 'all' and 'active'"):
        unhooked(TripletLoss)(reduction="mean")


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_forward_and_backward_derivatives_agree(loss):
    embeddings, labels = batch(6, 3, seed=4)[0].double(), torch.tensor([0, 0, 1, 1, 2, 2])

    def of(rows):
        return loss(rows, labels)

    expected = torch.autograd.functional.hessian(of, embeddings)
    torch.testing.assert_close(torch.func.jacfwd(of)(embeddings), torch.func.jacrev(of)(embeddings))
    torch.testing.assert_close(torch.func.hessian(of)(embeddings), expected)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e19, 1e30])
def test_a_loss_of_very_long_or_short_embeddings_is_finite(loss, scale):
    embeddings = (batch(64, 4, seed=5)[0].float().clamp(-2, 2) * scale).requires_grad_()
    found = loss(embeddings, torch.arange(64) // 4)
    (slope,) = torch.autograd.grad(found, embeddings)
    assert torch.isfinite(found)
    assert torch.isfinite(slope).all()


def test_costs_want_truth_values_and_promote_half_precision():
    distances, same = torch.rand(3, 4, requires_grad=True), torch.tensor([True, False, True, False])
    for cost in (contrastive_cost, chopra_cost):
        torch.testing.assert_close(cost(distances, same), cost(distances, same.expand(3, 4)))
        assert cost(distances, same).sum().backward() is None
        with pytest.raises(ValueError, match=r"cost: same has type torch.int64; allowed is torch.bool"):
            unhooked(cost)(distances, same.long())
        with pytest.raises(ValueError, match=r"cost: distances \(3, 4\) and same \(3,\) do not broadcast"):
            unhooked(cost)(distances, same[:3])
        assert torch.isfinite(cost(torch.tensor([300.0]).half(), torch.tensor([True]))).all()
    assert triplet_cost(torch.tensor(1.0).half(), torch.tensor(0.5).half(), margin=1e5).item() == 100_000.5
