"""SSD's loss: both published goldens, a slow reference, and batches with nothing to learn."""

import math
from functools import partial

import pytest
import torch
from dense_rows import judge
from strategies import assert_refused

from detkit.anchors import HardNegativeSampler
from detkit.losses import MultiBoxLoss, multibox, smooth_l1_cost
from detkit.structures import DensePredictions

IGNORED, NEGATIVE = -2, -1


def golden():
    """The published example, its background (first there) moved to the last column."""
    logits = 2 * torch.sin(1.3 * torch.arange(48, dtype=torch.float64)).reshape(2, 8, 3)
    deltas = torch.cos(0.7 * torch.arange(64, dtype=torch.float64)).reshape(2, 8, 4)
    labels = torch.full((2, 8), NEGATIVE)
    labels[0, 0], labels[0, 3] = 0, 1  # classes 1 and 2 with background first
    return logits[..., [1, 2, 0]], deltas, labels, torch.zeros_like(deltas)


@pytest.mark.parametrize(("scope", "classification"), [("image", 4.1175133), ("batch", 8.9436872)])
def test_goldens_that_separate_the_scopes_of_mining(scope, classification):
    losses = judge(MultiBoxLoss(scope=scope), *golden())
    assert losses["classification"].item() == pytest.approx(classification, abs=1e-6)
    assert losses["box"].item() == pytest.approx(1.0321018, abs=1e-6)


def random_batch(batch=3, anchors=20, classes=4, *, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, anchors, classes + 1, generator=generator, dtype=dtype)
    deltas, wanted = (torch.randn(batch, anchors, 4, generator=generator, dtype=dtype) for _ in range(2))
    labels = torch.randint(-6, classes, (batch, anchors), generator=generator).clamp(min=-2)
    labels = torch.where(labels == IGNORED, torch.where(deltas[..., 0] > 0, NEGATIVE, IGNORED), labels)
    return logits, deltas, labels, wanted


def slow_loss(logits, deltas, labels, wanted, weights=None, *, ratio=3, beta=1.0, box_weight=1.0):
    classification = box = count = 0.0
    weights = torch.ones(labels.shape) if weights is None else weights
    for image in range(len(labels)):
        costs = []
        for n, label in enumerate(labels[image].tolist()):
            row = logits[image, n].tolist()
            costs.append(math.log(sum(math.exp(v) for v in row)) - row[label if label >= 0 else -1])
        positives = [n for n, label in enumerate(labels[image].tolist()) if label >= 0]
        negatives = [n for n, label in enumerate(labels[image].tolist()) if label == NEGATIVE]
        hard = sorted(negatives, key=lambda n: (-costs[n], n))[: int(ratio * weights[image, positives].sum())]
        count += weights[image, positives].sum().item()
        for n in positives + hard:
            share = weights[image, n].item()
            classification += share * costs[n]
            if n in positives:
                distances = (deltas[image, n] - wanted[image, n]).abs().tolist()
                box += share * sum(d * d / 2 / beta if d < beta else d - beta / 2 for d in distances)
    return classification / max(count, 1), box_weight * box / max(count, 1)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_random_batches_cost_what_the_slow_loss_says(seed, weighted):
    batch = random_batch(seed=seed)
    weights = torch.rand(3, 20, dtype=torch.float64) if weighted else None
    losses = judge(
        MultiBoxLoss(partial(smooth_l1_cost, beta=0.7), negatives_per_positive=2.0, box_weight=0.5), *batch, weights
    )
    expected = slow_loss(*batch, weights, ratio=2, beta=0.7, box_weight=0.5)
    assert (losses["classification"].item(), losses["box"].item()) == pytest.approx(expected, rel=1e-10)


def test_weights_that_add_up_to_one_positive_mine_as_many_negatives_as_it():
    losses, labels = torch.arange(8.0)[None], torch.tensor([[4, 4, 4, -1, -1, -1, -1, -1]])
    for parts in (0.01, 0.78, 0.21), (0.3, 0.3, 0.4), (0.6, 0.3, 0.1):  # the first add up to 1 - 1e-7
        weights = torch.tensor([[*parts, 1, 1, 1, 1, 1]])
        assert HardNegativeSampler(3.0)(losses, labels, weights=weights).sum() == 3


def test_a_single_positive_is_divided_by_one():
    logits, deltas, _, wanted = random_batch(1, 6)
    labels = torch.tensor([[2, -1, -1, -1, -1, -2]])
    losses = judge(MultiBoxLoss(), logits, deltas, labels, wanted)
    expected = slow_loss(logits, deltas, labels, wanted)
    assert (losses["classification"].item(), losses["box"].item()) == pytest.approx(expected, rel=1e-10)


@pytest.mark.slow
def test_gradients_equal_finite_differences():
    logits, deltas, labels, wanted = random_batch(2, 6)
    logits.requires_grad_()
    deltas.requires_grad_()
    criterion = MultiBoxLoss(label_smoothing=0.1)
    assert torch.autograd.gradcheck(
        lambda *inputs: tuple(judge(criterion, *inputs, labels, wanted).values()), (logits, deltas)
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_chosen_rows_alone_learn_what_all_of_them_would(smoothing, dtype, monkeypatch):
    logits, *rest = random_batch(dtype=dtype)
    leaf = logits.requires_grad_()

    def learned() -> list[torch.Tensor]:
        losses = judge(MultiBoxLoss(label_smoothing=smoothing), leaf, *rest)
        return [losses["classification"].detach(), *torch.autograd.grad(losses["classification"], leaf)]

    found = learned()
    monkeypatch.setattr(multibox, "on_host", lambda logits: False)
    for one, other in zip(found, learned(), strict=True):
        torch.testing.assert_close(one, other)


def test_rows_that_are_not_chosen_keep_nothing():
    """Of 16 images of 2,000 anchors with one positive each, 64 rows are learned."""
    logits, deltas = torch.zeros(16, 2000, 81).requires_grad_(), torch.zeros(16, 2000, 4)
    labels = torch.where(torch.arange(2000) == 7, 3, NEGATIVE).expand(16, -1)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda value: kept.append(value.nbytes) or value, lambda value: value
    ):
        judge(MultiBoxLoss(), logits, deltas, labels, deltas)
    assert 0 < sum(kept) < logits.nbytes / 4


@pytest.mark.parametrize("label", [NEGATIVE, IGNORED])
@pytest.mark.parametrize("anchors", [0, 5])
def test_nothing_to_learn_costs_zero_and_keeps_gradients(label, anchors):
    logits, deltas = torch.randn(2, anchors, 3, requires_grad=True), torch.randn(2, anchors, 4, requires_grad=True)
    losses = judge(MultiBoxLoss(), logits, deltas, torch.full((2, anchors), label), torch.zeros(2, anchors, 4))
    total = sum(losses.values())
    assert total.item() == 0
    total.backward()
    assert (logits.grad == 0).all()
    assert (deltas.grad == 0).all()


def test_an_empty_batch_costs_zero():
    shapes = torch.zeros(0, 4, 3, requires_grad=True), torch.zeros(0, 4, 4, requires_grad=True)
    losses = judge(MultiBoxLoss(), *shapes, torch.zeros(0, 4).long(), torch.zeros(0, 4, 4))
    assert sum(losses.values()).item() == 0
    assert sum(losses.values()).grad_fn is not None


def test_ignored_anchors_change_nothing():
    logits, deltas, labels, wanted = random_batch()
    expected = judge(MultiBoxLoss(), logits, deltas, labels, wanted)
    off = labels == IGNORED
    assert off.any()
    logits, deltas = torch.where(off[..., None], 1e4, logits), torch.where(off[..., None], -1e4, deltas)
    changed = judge(MultiBoxLoss(), logits, deltas, labels, wanted)
    assert all(torch.equal(changed[name], expected[name]) for name in expected)


def test_padding_the_batch_with_ignored_anchors_changes_nothing():
    batch = random_batch()
    padded = [torch.cat((rows, rows.new_full((3, 7, *rows.shape[2:]), IGNORED)), dim=1) for rows in batch]
    for name, loss in judge(MultiBoxLoss(), *batch).items():
        assert judge(MultiBoxLoss(), *padded)[name].item() == pytest.approx(loss.item(), rel=1e-12)


def test_order_of_images_and_anchors_does_not_matter():
    batch = random_batch()
    images, anchors = torch.tensor([2, 0, 1]), torch.randperm(20, generator=torch.Generator().manual_seed(0))
    for name, loss in judge(MultiBoxLoss(), *batch).items():
        assert judge(MultiBoxLoss(), *(rows[images][:, anchors] for rows in batch))[name].item() == pytest.approx(
            loss.item()
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_promoted(dtype):
    logits, deltas, labels, wanted = random_batch(dtype=torch.float32)
    halves = [rows.to(dtype) for rows in (logits, deltas, wanted)]
    weights = torch.full_like(labels, 0.5, dtype=dtype)
    ours = judge(MultiBoxLoss(), halves[0], halves[1], labels, halves[2], weights)
    wide = judge(MultiBoxLoss(), halves[0].float(), halves[1].float(), labels, halves[2].float(), weights.float())
    assert all(ours[name].dtype == torch.float32 for name in ours)
    assert all(torch.equal(ours[name], wide[name]) for name in ours)


def test_more_positives_than_half_precision_counts_are_counted():
    labels = torch.zeros(1, 70_000, dtype=torch.int64)
    logits, deltas = torch.zeros(1, 70_000, 2), torch.ones(1, 70_000, 4)
    losses = judge(MultiBoxLoss(), logits, deltas, labels, torch.zeros_like(deltas), torch.ones(1, 70_000).half())
    assert losses["box"].item() == pytest.approx(2, rel=1e-5)
    assert losses["classification"].item() == pytest.approx(math.log(2), rel=1e-5)


def test_extreme_logits_cost_and_teach_finitely():
    logits = torch.tensor([[[1e30, -1e30, 0.0], [-1e30, 1e30, -1e30]]], requires_grad=True)
    deltas = torch.full((1, 2, 4), 1e30, requires_grad=True)
    losses = judge(MultiBoxLoss(), logits, deltas, torch.tensor([[1, -1]]), torch.zeros(1, 2, 4))
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert torch.isfinite(logits.grad).all()
    assert torch.isfinite(deltas.grad).all()


def test_scores_are_softmax_without_background():
    logits, deltas = torch.randn(2, 3, 5), torch.zeros(2, 3, 4)
    assert torch.equal(MultiBoxLoss().scores(DensePredictions(logits, deltas)), logits.softmax(-1)[..., :4])
    assert MultiBoxLoss().scores(DensePredictions(logits.half(), deltas)).dtype == torch.float32
    assert MultiBoxLoss().num_classes(DensePredictions(logits, deltas)) == 4


@pytest.mark.parametrize("fraction", [-0.1, 1.5, math.nan])
def test_label_smoothing_is_a_fraction(fraction):
    assert_refused(f"MultiBoxLoss: label_smoothing={fraction} [0, 1]", MultiBoxLoss, label_smoothing=fraction)
