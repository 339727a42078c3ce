"""HourglassLoss against loops over levels and anchors; gray is a class of its own and never one of the others."""

import math

import pytest
import torch
from dense_rows import Plain, assigned_to
from strategies import assert_refused
from torch import Tensor

from detkit.losses import HourglassLoss
from detkit.structures import Anchors, DensePredictions

COUNTS = (7, 0, 4)


def batch(outputs: int = 3, *, seed: int = 0, gray: bool = True):
    """Logits, deltas, labels of all kinds, and what the deltas should be."""
    generator, rows = torch.Generator().manual_seed(seed), sum(COUNTS)
    labels = torch.randint(-3 if gray else -2, 3, (2, rows), generator=generator)
    logits = torch.randn(2, rows, outputs, generator=generator, dtype=torch.float64) * 3
    deltas, wanted = torch.randn(2, 2, rows, 4, generator=generator, dtype=torch.float64)
    return logits, deltas, labels, wanted


def judge(criterion: HourglassLoss, logits, deltas, labels, wanted, weights=None, counts=COUNTS) -> dict[str, Tensor]:
    rows = logits.shape[1]
    anchors = Anchors(torch.zeros(rows, 4), torch.ones(rows, 2), counts)
    return criterion(DensePredictions(logits, deltas), assigned_to(labels, wanted, weights), anchors, Plain())


def slow(logits, deltas, labels, wanted, weights, *, gray: bool, box_weight: float) -> tuple[float, float]:
    """(objectness, box) of all levels, by loops."""
    totals, start = [0.0, 0.0], 0
    for count in COUNTS:
        costs = judged = boxes = positives = 0.0
        for i in range(2):
            for n in range(start, start + count):
                label, weight, row = int(labels[i, n]), float(weights[i, n]), logits[i, n].tolist()
                if label == -2 or (label == -3 and not gray):
                    continue
                place = 0 if label >= 0 else len(row) - 1 if label == -1 else 1
                costs -= weight * (row[place] - math.log(sum(math.exp(value) for value in row)))
                judged += weight
                if label >= 0:
                    sizes = [abs(d) for d in (deltas[i, n] - wanted[i, n]).tolist()]
                    boxes += weight * sum(d * d / 2 if d < 1 else d - 0.5 for d in sizes)
                    positives += weight
        totals = [totals[0] + costs / max(judged, 1), totals[1] + box_weight * boxes / max(positives, 1)]
        start += count
    return totals[0], totals[1]


@pytest.mark.parametrize("gray", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_sum_over_levels_of_the_means_by_loops(gray, seed):
    parts = batch(2 + gray, seed=seed)
    weights = torch.rand(parts[2].shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64) * 2
    weights = torch.where(parts[2] >= 0, weights, 1)
    losses = judge(HourglassLoss(gray=gray, box_weight=0.3), *parts, weights)
    expected = slow(*parts, weights, gray=gray, box_weight=0.3)
    assert [loss.item() for loss in losses.values()] == pytest.approx(expected, rel=1e-9)


def test_anchors_without_levels_are_one_level():
    logits, deltas, labels, wanted = batch()
    predictions, assigned = DensePredictions(logits, deltas), assigned_to(labels, wanted)
    plain = HourglassLoss()(predictions, assigned, torch.zeros(sum(COUNTS), 4), Plain())
    assert plain == judge(HourglassLoss(), logits, deltas, labels, wanted, counts=(sum(COUNTS),))


def test_gray_anchors_pull_their_own_logit_up_both_others_down_and_no_box():
    logits, deltas, labels, wanted = batch()
    logits, deltas = logits.requires_grad_(), deltas.requires_grad_()
    sum(judge(HourglassLoss(), logits, deltas, labels, wanted).values()).backward()
    gray = labels == -3
    assert gray.any()
    assert (logits.grad[gray][:, 1] < 0).all()
    assert (logits.grad[gray][:, [0, 2]] > 0).all()
    assert not deltas.grad[gray].any()


@pytest.mark.parametrize("gray", [True, False])
def test_what_is_not_judged_teaches_nothing_even_where_it_is_not_finite(gray):
    logits, deltas, labels, wanted = batch(2 + gray)
    left = (labels == -2) | ((labels == -3) & (not gray))
    expected = judge(HourglassLoss(gray=gray), logits, deltas, labels, wanted)
    spoilt = [torch.where(left[..., None], torch.nan, part).requires_grad_() for part in (logits, deltas)]
    losses = judge(HourglassLoss(gray=gray), *spoilt, labels, wanted)
    torch.testing.assert_close(losses, expected)
    sum(losses.values()).backward()
    assert all(torch.isfinite(part.grad).all() and not part.grad[left].any() for part in spoilt)


@pytest.mark.parametrize("label", [-1, -2, -3])
def test_without_positives_boxes_cost_nothing_and_have_a_gradient(label):
    logits, deltas, labels, wanted = batch()
    deltas.requires_grad_()
    losses = judge(HourglassLoss(), logits, deltas, torch.full_like(labels, label), wanted)
    losses["box"].backward()
    assert losses["box"] == 0
    assert (losses["objectness"] == 0) == (label == -2)
    assert not deltas.grad.any()


def test_the_score_is_the_probability_of_an_object():
    logits, deltas, *_ = batch()
    scores = HourglassLoss().scores(DensePredictions(logits, deltas))
    torch.testing.assert_close(scores, logits.softmax(-1)[..., :1])
    assert [HourglassLoss(gray=gray).num_classes(DensePredictions(logits, deltas)) for gray in (True, False)] == [1, 2]


@pytest.mark.slow
def test_gradients_are_those_of_finite_differences():
    logits, deltas, labels, wanted = batch(seed=3)

    def total(*parts: Tensor) -> Tensor:
        return torch.stack([*judge(HourglassLoss(), *parts, labels, wanted).values()]).sum()

    assert torch.autograd.gradcheck(total, (logits.requires_grad_(), deltas.requires_grad_()))


def test_other_logits_are_refused():
    logits, deltas, labels, wanted = batch(2)
    assert_refused("HourglassLoss: logits (2, 11, 2) (B, N, 3)", judge, HourglassLoss(), logits, deltas, labels, wanted)
