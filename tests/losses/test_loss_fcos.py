"""FCOS's loss: three sums over the positives of the batch, and scores that are a geometric mean."""

import math

import pytest
import torch
from dense_rows import assigned_to
from torch import Tensor

from detkit.anchors import centerness
from detkit.boxes import DistanceCoder
from detkit.losses import FCOSLoss, generalized_box_iou_loss, sigmoid_focal_loss
from detkit.structures import DensePredictions

POINT = (40.0, 70.0)  # wherever the points lie


def judge(
    criterion: FCOSLoss,
    logits: Tensor,
    distances: Tensor,
    center: Tensor,
    labels: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
) -> dict[str, Tensor]:
    """The losses of distances that should be ``targets``."""
    points = torch.tensor([POINT], dtype=targets.dtype).expand(distances.shape[1], 2)
    assigned = assigned_to(labels, DistanceCoder().decode(targets, points), weights)
    return criterion(DensePredictions(logits, distances, center), assigned, points, DistanceCoder())


@pytest.fixture
def batch(generator) -> list[Tensor]:
    """Logits, distances, centerness logits, labels and targets of two images with 5 points; 3 are positive."""
    logits = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    distances, targets = (torch.rand(2, 5, 4, generator=generator, dtype=torch.float64) * 3 for _ in range(2))
    center = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    return [logits, distances, center, torch.tensor([[0, -1, 2, -2, -1], [-1, -1, 1, -2, -1]]), targets]


def test_all_sums_are_divided_by_the_positives_of_the_batch(batch):
    logits, distances, center, labels, targets = batch
    losses = judge(FCOSLoss(alpha=0.6, gamma=1.5, box_weight=2.0, centerness_weight=3.0), *batch)
    focal = box = entropy = 0.0
    for image, point in (labels >= 0).nonzero().tolist():
        x, y = POINT
        sides = [rows[image, point].tolist() for rows in (distances, targets)]
        boxes = [torch.tensor([[x - left, y - top, x + right, y + low]]) for left, top, right, low in sides]
        box += generalized_box_iou_loss(*boxes).item()
        p = 1 / (1 + math.exp(-center[image, point].item()))
        q = centerness(targets[image, point]).item()
        entropy -= q * math.log(p) + (1 - q) * math.log(1 - p)
    focal = sigmoid_focal_loss(logits, labels, alpha=0.6, gamma=1.5).sum().item()
    assert losses["classification"].item() == pytest.approx(focal / 3)
    assert losses["box"].item() == pytest.approx(2 * box / 3, rel=1e-5)
    assert losses["centerness"].item() == pytest.approx(3 * entropy / 3)


def test_a_perfect_prediction_costs_no_box(batch):
    logits, _, center, labels, targets = batch
    assert judge(FCOSLoss(), logits, targets, center, labels, targets)["box"].item() == pytest.approx(0, abs=1e-12)


def test_only_positives_teach_boxes_and_centerness(batch):
    learned = [rows.requires_grad_() for rows in batch[:3]]
    sum(judge(FCOSLoss(), *batch).values()).backward()
    negative = batch[3] < 0
    assert not learned[1].grad[negative].any()
    assert not learned[2].grad[negative].any()
    assert learned[2].grad[~negative].all()
    assert not learned[0].grad[batch[3] == -2].any()
    assert learned[0].grad[batch[3] >= -1].all()


def test_sums_are_divided_by_the_weight_of_the_positives(batch):
    weights = torch.rand(2, 5, dtype=torch.float64) + 0.5
    losses = judge(FCOSLoss(), *batch, weights)
    focal, positive = sigmoid_focal_loss(batch[0], batch[3]).sum(-1), batch[3] >= 0
    assert positive.sum() == 3
    expected = (focal * weights).sum() / weights[positive].sum()
    assert losses["classification"].item() == pytest.approx(expected.item())


@pytest.mark.parametrize("count", [0, 4])
def test_no_positives_cost_nothing_but_background_and_keep_gradients(count):
    shapes = (2, count, 3), (2, count, 4), (2, count)
    learned = [torch.zeros(shape, requires_grad=True) for shape in shapes]
    losses = judge(FCOSLoss(), *learned, torch.full((2, count), -1), torch.zeros(2, count, 4))
    assert losses["box"] == losses["centerness"] == 0
    assert losses["classification"].item() == pytest.approx(2 * count * 3 * 0.75 * 0.25 * math.log(2))
    sum(losses.values()).backward()
    assert all(rows.grad is not None and torch.isfinite(rows.grad).all() for rows in learned)


def test_predictions_without_area_and_huge_logits_stay_finite(batch):
    logits, distances, center, labels, targets = batch
    learned = [(logits * 1e4).requires_grad_(), torch.zeros_like(distances).requires_grad_(), center * 1e4]
    losses = judge(FCOSLoss(), *learned, labels, torch.zeros_like(targets))
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert torch.isfinite(learned[0].grad).all()
    assert torch.isfinite(learned[1].grad).all()


def test_half_precision_is_promoted(batch):
    logits, distances, center, labels, targets = batch
    losses = judge(FCOSLoss(), logits.half(), distances.bfloat16(), center.half(), labels, targets.float())
    assert {loss.dtype for loss in losses.values()} == {torch.float32}


def test_scores_are_the_geometric_mean_of_class_and_centerness():
    quality = torch.tensor([[math.log(0.04 / 0.96)]])
    predictions = DensePredictions(torch.tensor([[[0.0, 100.0]]]), torch.zeros(1, 1, 4), quality)
    scores = FCOSLoss().scores(predictions)
    torch.testing.assert_close(scores, torch.tensor([[[math.sqrt(0.5 * 0.04), 0.2]]]))


def test_a_centerness_for_each_point_is_asked_for(batch):
    for quality, found in ((batch[2][:, :4], r"\(2, 4\)"), (None, "None")):
        with pytest.raises(ValueError, match=rf"^FCOSLoss: quality has shape {found}"):
            judge(FCOSLoss(), *batch[:2], quality, *batch[3:])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_prediction_that_is_not_judged_has_no_gradient(batch, bad):
    logits, distances, center, labels, targets = batch
    expected = judge(FCOSLoss(), *batch)
    bad_distances = torch.where(labels[..., None] >= 0, distances, bad).requires_grad_()
    losses = judge(FCOSLoss(), logits, bad_distances, center, labels, targets)
    assert {name: loss.item() for name, loss in losses.items()} == {
        name: loss.item() for name, loss in expected.items()
    }
    losses["box"].backward()
    assert (bad_distances.grad[labels < 0] == 0).all()
    assert (bad_distances.grad[labels >= 0] != 0).any()
