"""ObjectnessLoss against loops: YOLOX's three sums."""

import math

import pytest
import torch
from dense_rows import Plain, assigned_to

from detkit.losses import ObjectnessLoss, box_iou_loss
from detkit.structures import DensePredictions

LABELS = torch.tensor([[0, -1, 1, -2], [-1, -1, 1, -1]])


def entropy(logit: float, target: float) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -target * math.log(p) - (1 - target) * math.log(1 - p)


@pytest.mark.parametrize("soft", [True, False])
def test_its_sums_are_those_of_loops_per_positive(soft):
    generator = torch.Generator().manual_seed(0)
    logits, objectness = (torch.randn(2, 4, *more, generator=generator, dtype=torch.float64) for more in ((2,), ()))
    boxes = torch.tensor([0.0, 0, 5, 5]).double() + torch.rand(2, 4, 4, generator=generator, dtype=torch.float64)
    wanted, quality = torch.tensor([0.0, 0, 5, 5]).double().expand(2, 4, 4), torch.full((2, 4), 0.75)
    first = second = third = 0.0
    for image, anchor in ((b, n) for b in range(2) for n in range(4)):
        label = LABELS[image, anchor].item()
        if label == -2:
            continue
        first += entropy(objectness[image, anchor].item(), float(label >= 0))
        if label >= 0:
            hit = 0.75 if soft else 1.0
            second += sum(entropy(logits[image, anchor, c].item(), hit * (c == label)) for c in range(2))
            third += box_iou_loss(boxes[image, anchor], wanted[image, anchor]).item()
    criterion = ObjectnessLoss(box_weight=5.0, objectness_weight=2.0, class_weight=3.0, soft_classes=soft)
    predictions = DensePredictions(logits, boxes, objectness)
    losses = criterion(predictions, assigned_to(LABELS, wanted, quality=quality), torch.zeros(4, 4), Plain())
    assert list(losses) == ["objectness", "classification", "box"]
    assert [loss.item() for loss in losses.values()] == pytest.approx([2 * first / 3, second, 5 * third / 3])


def test_scores_are_objectness_times_class():
    logits, objectness = torch.tensor([[[0.0, math.log(3)]]]), torch.tensor([[math.log(0.25)]])
    scores = ObjectnessLoss().scores(DensePredictions(logits, torch.zeros(1, 1, 4), objectness))
    torch.testing.assert_close(scores, torch.tensor([[[0.1, 0.15]]]))
