"""RPNLoss and RCNNLoss against plain loops and torchvision's own losses; the goldens of the two stages."""

import math
from functools import partial

import pytest
import torch
from dense_rows import judge
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import fastrcnn_loss

from detkit.losses import RCNNLoss, RPNLoss, smooth_l1_cost
from detkit.structures import DensePredictions

BOTH = pytest.mark.parametrize("kind", [RPNLoss, RCNNLoss])
CLASSES = 3


def batch(kind: type, *, images: int = 2, rows: int = 12, dtype: torch.dtype = torch.float64, seed: int = 0):
    """Logits, deltas, labels of all kinds, and delta targets on both sides of the bend."""
    generator = torch.Generator().manual_seed(seed)
    outputs = 1 if kind is RPNLoss else CLASSES + 1
    labels = torch.randint(-2, CLASSES, (images, rows), generator=generator)
    logits = torch.randn(images, rows, outputs, generator=generator, dtype=torch.float64) * 3
    deltas, wanted = torch.randn(2, images, rows, 4, generator=generator, dtype=torch.float64) * 0.3
    return logits.to(dtype), deltas.to(dtype), labels, wanted.to(dtype)


def weights_for(labels: Tensor) -> Tensor:
    return torch.rand(labels.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64) * 2


def smooth_l1(difference: float, beta: float) -> float:
    size = abs(difference)
    return size * size / (2 * beta) if size < beta else size - beta / 2


def slow(kind: type, logits, deltas, labels, wanted, weights=None, *, box_weight: float, beta: float):
    """(classification, box) by loops."""
    first = second = count = 0.0
    for b, row in enumerate(labels.tolist()):
        for n, label in enumerate(row):
            if label == -2:
                continue
            share = 1.0 if weights is None else weights[b, n].item()
            count += share
            own = logits[b, n].tolist()
            if kind is RPNLoss:
                probability = 1 / (1 + math.exp(-own[0]))
                first -= share * math.log(probability if label >= 0 else 1 - probability)
            else:
                truth = CLASSES if label == -1 else label
                first += share * (math.log(sum(math.exp(value) for value in own)) - own[truth])
            if label >= 0:
                pairs = zip(deltas[b, n].tolist(), wanted[b, n].tolist(), strict=True)
                second += share * sum(smooth_l1(one - other, beta) for one, other in pairs)
    return first / max(count, 1), box_weight * second / max(count, 1)


@BOTH
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("box_weight", "beta"), [(1.0, 1 / 9), (2.5, 1.0)])
def test_losses_are_those_of_loops(kind, weighted, box_weight, beta):
    arguments = batch(kind)
    if weighted:
        arguments = (*arguments, weights_for(arguments[2]))
    found = judge(kind(partial(smooth_l1_cost, beta=beta), box_weight=box_weight), *arguments)
    expected = slow(kind, *arguments, box_weight=box_weight, beta=beta)
    assert [loss.item() for loss in found.values()] == pytest.approx(expected, rel=1e-12)
    assert min(expected) > 0


def test_the_second_stages_losses_and_gradients_are_torchvisions():
    logits, deltas, labels, wanted = batch(RCNNLoss)
    labels = labels.clamp(min=-1)  # torchvision has no ignored rows
    ours = logits.clone().requires_grad_(), deltas.clone().requires_grad_()
    theirs = logits.clone().requires_grad_(), deltas.clone().requires_grad_()
    found = judge(RCNNLoss(), *ours, labels, wanted)
    sum(found.values()).backward()
    background_first = theirs[0].flatten(0, 1).roll(1, dims=1)
    every_class = theirs[1].flatten(0, 1).repeat(1, CLASSES + 1)
    expected = fastrcnn_loss(background_first, every_class, list(labels + 1), list(wanted))
    sum(expected).backward()
    assert list(found) == ["classification", "box"]
    for one, other in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-10, atol=1e-14)


def test_the_first_stages_losses_and_gradients_are_torchvisions():
    """RegionProposalNetwork.compute_loss needs a whole network: these are its three lines."""
    logits, deltas, labels, wanted = batch(RPNLoss)
    ours = logits.clone().requires_grad_(), deltas.clone().requires_grad_()
    theirs = logits.clone().requires_grad_(), deltas.clone().requires_grad_()
    found = judge(RPNLoss(), *ours, labels, wanted)
    sum(found.values()).backward()
    sampled, positive = (labels != -2).flatten(), (labels >= 0).flatten()
    chosen = [values.flatten(0, 1)[positive] for values in (theirs[1], wanted)]
    box = F.smooth_l1_loss(*chosen, beta=1 / 9, reduction="sum") / sampled.sum()
    objectness = F.binary_cross_entropy_with_logits(theirs[0].flatten()[sampled], positive[sampled].double())
    (objectness + box).backward()
    assert list(found) == ["objectness", "box"]
    torch.testing.assert_close(torch.stack(list(found.values())), torch.stack((objectness, box)), rtol=1e-12, atol=0)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-10, atol=1e-14)


@pytest.mark.slow
@BOTH
def test_gradients_are_those_of_differences(kind):
    logits, deltas, labels, wanted = batch(kind, rows=5)
    rows = logits.requires_grad_(), deltas.requires_grad_()
    assert torch.autograd.gradcheck(lambda *both: tuple(judge(kind(), *both, labels, wanted).values()), rows)


def test_the_four_losses_of_an_image_without_objects_are_two_and_two_zeros():
    """All anchors are background: a logit of 0 costs log 2, and of C + 1 equal logits each costs log(C + 1)."""
    nothing = torch.full((1, 6), -1)
    for kind, outputs, cost in ((RPNLoss, 1, math.log(2)), (RCNNLoss, CLASSES + 1, math.log(CLASSES + 1))):
        deltas = torch.ones(1, 6, 4, requires_grad=True)
        classification, box = judge(kind(), torch.zeros(1, 6, outputs), deltas, nothing, torch.zeros(1, 6, 4)).values()
        assert classification.item() == pytest.approx(cost)
        assert box == 0
        box.backward()
        assert not deltas.grad.any()


def test_the_bend_is_at_a_ninth_in_both_stages():
    for kind, outputs in ((RPNLoss, 1), (RCNNLoss, 2)):
        for difference, cost in ((1 / 18, 0.5 * 9 / 18**2), (1 / 9, 1 / 18), (1.0, 1 - 1 / 18), (-3.0, 3 - 1 / 18)):
            deltas = torch.tensor([[[difference, 0, 0, 0]]])
            losses = judge(kind(), torch.zeros(1, 1, outputs), deltas, torch.tensor([[0]]), torch.zeros(1, 1, 4))
            assert losses["box"].item() == pytest.approx(cost, rel=1e-5)


@BOTH
@pytest.mark.parametrize("rows", [0, 4])
def test_with_nothing_sampled_losses_are_zero_and_have_a_gradient(kind, rows):
    logits, deltas, labels, wanted = batch(kind, rows=rows)
    logits.requires_grad_(), deltas.requires_grad_()
    losses = judge(kind(), logits, deltas, torch.full_like(labels, -2), wanted)
    sum(losses.values()).backward()
    assert [loss.item() for loss in losses.values()] == [0, 0]
    for values in (logits, deltas):
        assert values.grad is not None
        assert not values.grad.any()


@BOTH
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_ignored_row_that_is_not_finite_changes_no_loss_and_no_gradient(kind, bad):
    logits, deltas, labels, wanted = batch(kind)
    labels[0, 3] = -2
    labels[1, 2] = -1  # the deltas of a negative are not read either

    def learned(*arguments: Tensor) -> list[Tensor]:
        rows = [values.clone().requires_grad_() for values in arguments[:2]]
        losses = judge(kind(), *rows, labels, arguments[2])
        sum(losses.values()).backward()
        return [*losses.values(), *(values.grad for values in rows)]

    expected = learned(logits, deltas, wanted)
    logits, deltas, wanted = logits.clone(), deltas.clone(), wanted.clone()
    logits[0, 3] = deltas[0, 3] = wanted[0, 3] = deltas[1, 2] = wanted[1, 2] = bad
    for one, other in zip(learned(logits, deltas, wanted), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


@BOTH
def test_logits_as_large_as_they_come_stay_finite(kind):
    logits, deltas, labels, wanted = batch(kind)
    losses = judge(kind(), (logits * 1e6).requires_grad_(), deltas * 1e6, labels, wanted)
    assert all(torch.isfinite(loss) for loss in losses.values())


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_promoted_before_any_sum(kind, dtype):
    logits, deltas, labels, wanted = batch(kind, rows=900, dtype=dtype)
    found = judge(kind(), logits, deltas, labels, wanted)
    exact = judge(kind(), logits.double(), deltas.double(), labels, wanted.double())
    for name, loss in found.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(exact[name].item(), rel=1e-5)


@BOTH
def test_an_image_more_of_padding_changes_nothing_and_a_batch_twice_as_long_nothing_either(kind):
    logits, deltas, labels, wanted = batch(kind)
    expected = judge(kind(), logits, deltas, labels, wanted)
    ignored = torch.cat((labels, torch.full_like(labels, -2)))
    padded = judge(kind(), *(torch.cat((v, v)) for v in (logits, deltas)), ignored, wanted.repeat(2, 1, 1))
    doubled = judge(kind(), *(torch.cat((v, v)) for v in (logits, deltas, labels, wanted)))
    for name, loss in expected.items():
        torch.testing.assert_close(padded[name], loss, rtol=1e-12, atol=0)
        torch.testing.assert_close(doubled[name], loss, rtol=1e-12, atol=0)


def test_what_object_it_is_makes_no_difference_to_the_first_stage():
    logits, deltas, labels, wanted = batch(RPNLoss)
    assert judge(RPNLoss(), logits, deltas, labels, wanted) == judge(
        RPNLoss(), logits, deltas, labels.clamp(max=0), wanted
    )


def test_scores_are_probabilities_of_the_classes_without_background():
    predictions = DensePredictions(
        torch.tensor([[[0.0, math.log(2), math.log(5)], [200, -200, 0]]]), torch.zeros(1, 2, 4)
    )
    torch.testing.assert_close(RCNNLoss().scores(predictions), torch.tensor([[[1 / 8, 2 / 8], [1.0, 0]]]))
    assert RCNNLoss().scores(predictions._replace(logits=predictions.logits.half())).dtype == torch.float32
    assert RCNNLoss().num_classes(predictions) == 2
    objectness = predictions._replace(logits=predictions.logits[..., 1:2])
    assert RPNLoss().num_classes(objectness) == 1
    assert RPNLoss().scores(objectness)[0, :, 0].tolist() == [pytest.approx(2 / 3), 0]


def test_more_than_one_objectness_and_labels_outside_are_refused():
    logits, deltas, labels, wanted = batch(RCNNLoss)
    with pytest.raises(ValueError, match=r"^RPNLoss: logits have shape \(2, 12, 4\)"):
        judge(RPNLoss(), logits, deltas, labels, wanted)
    for bad in (CLASSES, -3):
        labels[1, 4] = bad
        with pytest.raises(ValueError, match=rf"^RCNNLoss: labels\[1, 4\]={bad}.*0..{CLASSES - 1}"):
            judge(RCNNLoss(), logits, deltas, labels, wanted)


@BOTH
def test_printing_shows_the_settings(kind):
    rest = ", label_smoothing=0.0" if kind is RCNNLoss else ""
    assert repr(kind(smooth_l1_cost, box_weight=2.0)) == f"{kind.__name__}(smooth_l1_cost, box_weight=2.0{rest})"


@BOTH
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_weight_of_a_row_that_was_not_sampled_counts_for_nothing(kind, bad):
    logits, deltas, labels, wanted = batch(kind)
    weights = weights_for(labels)
    expected = judge(kind(), logits, deltas, labels, wanted, weights)
    assert (labels == -2).any()
    found = judge(kind(), logits, deltas, labels, wanted, torch.where(labels == -2, bad, weights))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
