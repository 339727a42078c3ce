"""``torch.func`` over every loss: vmap gives each image's own, jacrev and grad the gradients that autograd gives."""

from collections.abc import Callable

import pytest
import torch
from dense_rows import judge
from records_losses import LOSSES
from torch import Tensor
from torch.func import grad, jacrev, vmap

from detkit._inputs import full_checks
from detkit.losses import (
    DenseCriterion,
    FCOSLoss,
    MultiBoxLoss,
    ObjectnessLoss,
    QualityLoss,
    RCNNLoss,
    RetinaNetLoss,
    RPNLoss,
    SequenceLoss,
    SetPredictionLoss,
    keypoint_loss,
    mask_loss,
)
from detkit.structures import Assignment, Targets

FAMILIES = (FCOSLoss, MultiBoxLoss, ObjectnessLoss, QualityLoss, RCNNLoss, RetinaNetLoss, RPNLoss)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def corners(*shape: int, seed: int = 0) -> Tensor:
    places = torch.rand(*shape, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return places.sort(-2).values.flatten(-2) * 0.8 + torch.tensor([0.0, 0, 0.1, 0.1])


def assert_transforms(loss: Callable[..., Tensor], *inputs: Tensor) -> None:
    """``loss`` (a sum) of a batch of two in the first dimension: vmap, jacrev and both at once, against autograd."""
    one_by_one = [tuple(part[i] for part in inputs) for i in range(2)]
    expected = torch.stack([loss(*one) for one in one_by_one])
    torch.testing.assert_close(vmap(loss)(*inputs), expected, rtol=1e-9, atol=1e-12)
    gradients = torch.stack(
        [torch.autograd.functional.jacobian(lambda x, o=one: loss(x, *o[1:]), one[0]) for one in one_by_one]
    )
    assert gradients.any()
    torch.testing.assert_close(vmap(grad(loss))(*inputs), gradients, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(jacrev(loss)(*one_by_one[0]), gradients[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("record", LOSSES, ids=lambda record: record.name)
def test_an_elementary_loss(record):
    rows = record.make(6, torch.float64)
    assert_transforms(lambda *inputs: record.op(*inputs).sum(), *(part.unflatten(0, (2, 3)) for part in rows))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_of_a_dense_family(family: type[DenseCriterion]):
    outputs = 1 if family is RPNLoss else 2 + (family in (MultiBoxLoss, RCNNLoss))
    labels = torch.tensor([[0, 1, -1, -2, -1, -1], [-1, -1, -1, -1, 0, -2]])
    criterion = family()

    def loss(logits: Tensor, deltas: Tensor, labels: Tensor, wanted: Tensor, quality: Tensor) -> Tensor:
        return sum(
            judge(criterion, *(x[None] for x in (logits, deltas, labels, wanted)), quality=quality[None]).values()
        )

    wanted = corners(2, 6, seed=1)
    assert_transforms(loss, numbers(2, 6, outputs), corners(2, 6), labels, wanted, numbers(2, 6, seed=2))


def test_the_loss_of_a_set():
    labels, valid = torch.tensor([[0, 2], [1, 0]]), torch.tensor([[True, True], [True, False]])
    matched = torch.tensor([[0, 1, -1, -1, -1], [0, -1, -1, -1, -1]])

    def loss(logits: Tensor, boxes: Tensor, truth: Tensor, labels: Tensor, valid: Tensor, matched: Tensor) -> Tensor:
        targets = Targets(truth[None], labels[None], valid[None], torch.zeros_like(valid)[None])
        assignment = Assignment(matched[None], torch.ones_like(logits[:1, :, 0]))
        return sum(SetPredictionLoss()(logits[:, None], boxes[:, None], targets, assignment).values())

    assert_transforms(loss, numbers(2, 3, 5, 4), corners(2, 3, 5), corners(2, 2, seed=1), labels, valid, matched)


def test_the_losses_of_sequences_masks_and_keypoints():
    tokens, weights = torch.tensor([[1, 2, 0], [3, 0, 0]]), numbers(2, 3, seed=1).abs()

    def sequence(logits: Tensor, tokens: Tensor, weights: Tensor) -> Tensor:
        return sum(SequenceLoss()(logits[None], tokens[None], weights[None]).values())

    assert_transforms(sequence, numbers(2, 3, 5), tokens, weights)
    labels, cells = torch.tensor([[0, 3, -1], [1, 1, 2]]), torch.tensor([[[0, 24]] * 3, [[3, 7]] * 3])
    masks = (numbers(2, 3, 5, 5, seed=1) > 0).double()
    assert_transforms(lambda *inputs: mask_loss(*inputs).sum(), numbers(2, 3, 4, 5, 5), masks, labels)
    usable = torch.tensor([[[True, False]] * 3] * 2)
    assert_transforms(lambda *inputs: keypoint_loss(*inputs).sum(), numbers(2, 3, 2, 5, 5), cells, usable)


def test_values_that_vmap_hides_are_not_looked_at_and_others_are(monkeypatch):
    monkeypatch.setenv("DETKIT_CHECKS", "full")
    seen = []
    vmap(lambda x: seen.append(full_checks()) or x)(torch.zeros(2))
    grad(lambda x: seen.append(full_checks()) or x)(torch.zeros(()))
    vmap(grad(lambda x: seen.append(full_checks()) or x))(torch.zeros(2))
    assert seen == [False, True, False]
    (record,) = (record for record in LOSSES if record.name == "label_smoothed_cross_entropy of labels")
    logits, labels, weights = record.make(3, torch.float64)
    with pytest.raises(ValueError, match=r"targets\[0\]=9 must lie in 0..4"):
        grad(lambda rows: record.op(rows, labels + 9, weights).sum())(logits)
