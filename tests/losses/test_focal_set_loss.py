"""The focal loss of a set: every score by itself, divided by the objects of the batch."""

import pytest
import torch
from torch import nn

from detkit.losses import FocalSetLoss, SetPredictionLoss
from detkit.structures import IGNORED, Assignment, Targets, pad_targets


def two_objects(weights: list[float] | None = None) -> Targets:
    boxes = torch.tensor([[0.2, 0.2, 0.5, 0.6], [0.4, 0.3, 0.8, 0.7]], dtype=torch.float64)
    target = {"boxes": boxes, "labels": torch.tensor([2, 0])}
    return pad_targets([target | ({} if weights is None else {"weights": torch.tensor(weights)})])


@pytest.mark.parametrize("matched", [[0, -1, 1, -1], [-1, -1, -2, 0], [-1] * 4])
@pytest.mark.parametrize("weights", [None, [0.5, 3.0]])
def test_it_is_the_focal_loss_score_by_score(matched, weights):
    torch.manual_seed(0)
    logits, boxes = torch.randn(1, 1, 4, 3, dtype=torch.float64), torch.rand(1, 1, 4, 4, dtype=torch.float64)
    targets, given = two_objects(weights), Assignment(torch.tensor([matched]), torch.zeros(1, 4))
    total = 0.0
    for query, object_ in enumerate(matched):
        for column in range(3):
            hit = object_ >= 0 and targets.labels[0, object_] == column
            x = logits[0, 0, query, column] * (1 if hit else -1)
            share = (1 - x.sigmoid().item()) ** 1.5 * (0.4 if hit else 0.6)
            own = weights[object_] if weights and object_ >= 0 else 1.0
            total -= (object_ != IGNORED) * own * share * nn.functional.logsigmoid(x).item()
    losses = FocalSetLoss(alpha=0.4, gamma=1.5, class_weight=2.0)(logits, boxes, targets, given)
    assert losses["classification"].item() == pytest.approx(2 * total / (sum(weights) if weights else 2))
    plain = SetPredictionLoss()(torch.zeros(1, 1, 4, 4).double(), boxes, targets, given)
    for name in ("l1", "giou"):
        torch.testing.assert_close(losses[name], plain[name])


def test_a_query_with_an_infinite_logit_leaves_no_trace():
    torch.manual_seed(0)
    logits, boxes = torch.randn(1, 1, 4, 3), torch.rand(1, 1, 4, 4)
    given = Assignment(torch.tensor([[0, -1, 1, -1]]), torch.zeros(1, 4))
    for bad in (torch.nan, torch.inf, -torch.inf):
        broken = logits.clone()
        broken[..., 1, 0] = bad
        broken.requires_grad_()
        loss = FocalSetLoss()(broken, boxes, two_objects(), given)["classification"]
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(broken.grad).all()


def test_scores_are_sigmoids_of_all_columns():
    criterion, logits = FocalSetLoss(), torch.randn(2, 3)
    assert torch.equal(criterion.scores(logits), logits.sigmoid())
    assert criterion.num_classes(logits) == 3
    assert "giou_weight=2.0, alpha=0.25, gamma=2.0" in repr(criterion)
