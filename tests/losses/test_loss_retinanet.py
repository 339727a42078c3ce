"""RetinaNet's loss: its normalizers, what ignored anchors and weights do, and the two costs of boxes."""

import math

import pytest
import torch
from dense_rows import judge
from strategies import assert_refused
from torch import Tensor

from detkit.losses import RetinaNetLoss, giou_cost, l1_cost, sigmoid_focal_loss, smooth_l1_cost
from detkit.structures import DensePredictions


@pytest.fixture
def batch(generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two images of 6 anchors; the second has no positive."""
    logits = torch.randn(2, 6, 3, generator=generator, dtype=torch.float64)
    deltas, targets = (torch.randn(2, 6, 4, generator=generator, dtype=torch.float64) * 0.3 for _ in range(2))
    labels = torch.tensor([[0, 2, -1, -2, 1, -1], [-1, -1, -2, -1, -1, -1]])
    return logits, deltas, labels, targets


def one_image(logits: Tensor, deltas: Tensor, labels: Tensor, targets: Tensor) -> tuple[float, float, int]:
    """Sums of one image, anchor by anchor, and its positives."""
    focal = box = positives = 0.0
    for anchor, label in enumerate(labels.tolist()):
        if label != -2:
            hot = torch.zeros(logits.shape[1], dtype=logits.dtype)
            if label >= 0:
                hot[label] = 1
                box += (deltas[anchor] - targets[anchor]).abs().sum().item()
                positives += 1
            focal += sigmoid_focal_loss(logits[anchor], hot).sum().item()
    return focal, box, int(positives)


def test_each_image_is_divided_by_its_own_positives_then_images_are_averaged(batch):
    losses = judge(RetinaNetLoss(l1_cost), *batch)
    sums = [one_image(*(rows[i] for rows in batch)) for i in range(2)]
    assert [positives for _, _, positives in sums] == [3, 0]
    assert losses["classification"].item() == pytest.approx((sums[0][0] / 3 + sums[1][0]) / 2, rel=1e-12)
    assert losses["box"].item() == pytest.approx(sums[0][1] / 3 / 2, rel=1e-12)  # float64 stays what it is


@pytest.mark.parametrize("positives", [0, 1, 3])
def test_scope_batch_divides_by_the_positives_of_all_images(batch, positives):
    logits, deltas, labels, targets = batch
    labels = torch.where((labels >= 0) & ((labels >= 0).cumsum(1) > positives), -1, labels)
    losses = judge(RetinaNetLoss(l1_cost, scope="batch", box_weight=2.0), logits, deltas, labels, targets)
    sums = [one_image(logits[i], deltas[i], labels[i], targets[i]) for i in range(2)]
    assert [found for _, _, found in sums] == [positives, 0]
    count = max(positives, 1)
    assert losses["classification"].item() == pytest.approx((sums[0][0] + sums[1][0]) / count, rel=1e-12)
    assert losses["box"].item() == pytest.approx(2 * sums[0][1] / count, rel=1e-12)


def test_alpha_and_gamma_are_those_of_the_focal_loss(batch):
    loss = judge(RetinaNetLoss(l1_cost, alpha=0.6, gamma=1.5, scope="batch"), *batch)["classification"]
    assert loss.item() == pytest.approx(sigmoid_focal_loss(*batch[::2], alpha=0.6, gamma=1.5).sum().item() / 3)


@pytest.mark.parametrize("scope", ["image", "batch"])
def test_sums_are_divided_by_the_weight_of_the_positives(batch, scope):
    weights = torch.rand(2, 6, dtype=torch.float64) * 3
    losses = judge(RetinaNetLoss(l1_cost, scope=scope), *batch, weights)
    assert judge(RetinaNetLoss(l1_cost), *batch, torch.zeros(2, 6)) == {"classification": 0, "box": 0}
    logits, _, labels, _ = batch
    sums = (sigmoid_focal_loss(logits, labels).sum(-1) * weights).sum(1)
    counts = [max(weights[i][labels[i] >= 0].sum().item(), 1) for i in range(2)]
    assert counts[0] != counts[1]
    counts = [2 * count for count in counts] if scope == "image" else [max(weights[labels >= 0].sum().item(), 1)] * 2
    expected = sum(one.item() / count for one, count in zip(sums, counts, strict=True))
    assert losses["classification"].item() == pytest.approx(expected)


def test_ignored_anchors_have_no_gradient(batch):
    logits, deltas, labels, targets = batch
    logits, deltas = logits.requires_grad_(), deltas.requires_grad_()
    sum(judge(RetinaNetLoss(l1_cost), logits, deltas, labels, targets).values()).backward()
    assert not logits.grad[labels == -2].any()
    assert not deltas.grad[labels < 0].any()
    assert logits.grad[labels >= -1].all()


@pytest.mark.parametrize("count", [0, 4])
def test_no_positives_cost_no_box_and_keep_a_gradient(count):
    logits, deltas = torch.zeros(2, count, 3, requires_grad=True), torch.zeros(2, count, 4, requires_grad=True)
    labels = torch.full((2, count), -2)
    losses = judge(RetinaNetLoss(l1_cost), logits, deltas, labels, torch.zeros(2, count, 4))
    assert {name: loss.item() for name, loss in losses.items()} == {"classification": 0, "box": 0}
    sum(losses.values()).backward()
    assert logits.grad is not None
    assert deltas.grad is not None


def test_half_precision_is_promoted(batch):
    logits, deltas, labels, targets = batch
    losses = judge(RetinaNetLoss(giou_cost), logits.half(), deltas.bfloat16(), labels, targets.half())
    assert {loss.dtype for loss in losses.values()} == {torch.float32}


def test_scores_are_sigmoids():
    predictions = DensePredictions(torch.tensor([[[0.0, 100.0]]]), torch.zeros(1, 1, 4))
    assert RetinaNetLoss().scores(predictions).tolist() == [[[0.5, 1.0]]]
    assert RetinaNetLoss().num_classes(predictions) == 2


def test_wrong_arguments_are_named(batch):
    logits, deltas, labels, targets = batch
    loss = RetinaNetLoss(l1_cost)
    assert_refused(
        "RetinaNetLoss: scope='level' 'image' 'batch'",
        RetinaNetLoss.__init__,
        loss,
        l1_cost,
        scope="level",
    )
    with pytest.raises(ValueError, match=r"^RetinaNetLoss: labels\[0, 1\]=3.*0..2"):
        judge(loss, logits, deltas, labels.masked_fill(labels == 2, 3), targets)


@pytest.mark.parametrize("cost", [l1_cost, smooth_l1_cost, giou_cost])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_prediction_that_is_not_judged_has_no_gradient(batch, cost, bad):
    logits, deltas, labels, targets = batch
    bad_deltas = torch.where(labels[..., None] >= 0, deltas, bad).requires_grad_()
    loss = judge(RetinaNetLoss(cost), logits, bad_deltas, labels, targets)["box"]
    assert loss.item() == judge(RetinaNetLoss(cost), *batch)["box"].item()
    loss.backward()
    assert (bad_deltas.grad[labels < 0] == 0).all()
    assert (bad_deltas.grad[labels >= 0] != 0).any()
