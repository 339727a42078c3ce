"""Label smoothing in every family: each classification loss against one written out class by class."""

import math

import pytest
import torch
from dense_rows import Plain, assigned_to
from strategies import assert_refused

from detkit.detectors import ClassificationStage
from detkit.detectors.classification import ClassificationOutputs
from detkit.losses import FCOSLoss, MultiBoxLoss, ObjectnessLoss, RCNNLoss, RetinaNetLoss, SetPredictionLoss, YOLOLoss
from detkit.structures import IGNORED, NEGATIVE, Assignment, DensePredictions, pad_targets

S = 0.1
SIGMOIDS = {
    "RetinaNetLoss": lambda s: RetinaNetLoss(alpha=0.3, gamma=1.5, scope="batch", label_smoothing=s),
    "FCOSLoss": lambda s: FCOSLoss(alpha=0.3, gamma=1.5, label_smoothing=s),
    "ObjectnessLoss": lambda s: ObjectnessLoss(soft_classes=False, label_smoothing=s),
    "soft ObjectnessLoss": lambda s: ObjectnessLoss(label_smoothing=s),
    "YOLOLoss": lambda s: YOLOLoss().smooth_labels(s),
}
SOFTMAXES = {
    "MultiBoxLoss": lambda s: MultiBoxLoss(negatives_per_positive=100, label_smoothing=s),
    "RCNNLoss": lambda s: RCNNLoss(label_smoothing=s),
    "softmax YOLOLoss": lambda s: YOLOLoss(classes="softmax").smooth_labels(s),
}
CRITERIA = SIGMOIDS | SOFTMAXES
LABELS = torch.tensor([[0, 2, NEGATIVE, IGNORED, 1]])
QUALITY = torch.tensor([[0.75, 0.5, 0.0, 0.0, 1.0]], dtype=torch.float64)


def rows(name: str) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    columns = 4 if name in ("MultiBoxLoss", "RCNNLoss") else 3
    logits = torch.randn(1, 5, columns, generator=generator, dtype=torch.float64)
    corners = torch.tensor([0.0, 0, 4, 4], dtype=torch.float64).expand(1, 5, 4)
    return logits, corners.clone(), LABELS, corners


def loss_of(name: str, smoothing: float, logits: torch.Tensor) -> torch.Tensor:
    _, deltas, labels, wanted = rows(name)
    predictions, assigned = DensePredictions(logits, deltas, QUALITY), assigned_to(labels, wanted, quality=QUALITY)
    return CRITERIA[name](smoothing)(predictions, assigned, wanted[0], Plain())["classification"]


def sigmoid_cost(name: str, x: float, y: float) -> float:
    p = 1 / (1 + math.exp(-x))
    cost = -(y * math.log(p) + (1 - y) * math.log(1 - p))
    if "Objectness" in name or "YOLO" in name:
        return cost
    return (0.3 * y + 0.7 * (1 - y)) * (y * (1 - p) + (1 - y) * p) ** 1.5 * cost


def slow(name: str, logits: torch.Tensor, s: float) -> float:
    """The sum over rows that learn a class, by the formula, one class after the other; then the loss' normalizer."""
    total, columns = 0.0, logits.shape[-1]
    for row, label, quality in zip(logits[0].tolist(), LABELS[0].tolist(), QUALITY[0].tolist(), strict=True):
        if label == IGNORED or (
            label == NEGATIVE and name not in ("RetinaNetLoss", "FCOSLoss", "MultiBoxLoss", "RCNNLoss")
        ):
            continue
        if name in SOFTMAXES:
            norm, true = math.log(sum(math.exp(x) for x in row)), columns - 1 if label == NEGATIVE else label
            total += sum((1 - s if c == true else s / (columns - 1)) * (norm - x) for c, x in enumerate(row))
        else:
            hit = quality if name == "soft ObjectnessLoss" else 1.0
            targets = [hit * (1 - s) + (1 - hit) * s if c == label else s for c in range(columns)]
            total += sum(
                sigmoid_cost(name, x, 0 if label == NEGATIVE else y) for x, y in zip(row, targets, strict=True)
            )
    return total / (1 if "YOLO" in name else 4 if name == "RCNNLoss" else 3)


@pytest.mark.parametrize("smoothing", [0.0, S, 0.5])
@pytest.mark.parametrize("name", CRITERIA)
def test_the_loss_is_that_of_the_smoothed_classes(name, smoothing):
    logits = rows(name)[0]
    assert loss_of(name, smoothing, logits).item() == pytest.approx(slow(name, logits, smoothing), rel=1e-6)


@pytest.mark.parametrize("name", CRITERIA)
def test_gradients_are_finite_differences_and_ignored_rows_have_none(name):
    logits = rows(name)[0].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss_of(name, S, x), logits)
    with torch.no_grad():
        logits[0, 3] = torch.nan
    (gradient,) = torch.autograd.grad(loss_of(name, S, logits), logits)
    assert gradient.isfinite().all()
    assert (gradient[0, 3] == 0).all()


def test_set_prediction_shares_with_no_object():
    targets = pad_targets([{"boxes": torch.tensor([[0.0, 0, 0.5, 1]]), "labels": torch.tensor([1])}])
    boxes, logits = (
        torch.full((1, 1, 2, 4), 0.5).double(),
        torch.tensor([[[[0.3, -1.0, 2.0], [0.1, 0.2, 0.3]]]]).double(),
    )
    assignment = Assignment(torch.tensor([[0, NEGATIVE]]), torch.ones(1, 2))
    found = SetPredictionLoss(label_smoothing=S)(logits, boxes, targets, assignment)["classification"]
    scores = logits[0, 0].log_softmax(-1)
    first = -(0.9 * scores[0, 1] + 0.05 * (scores[0, 0] + scores[0, 2]))
    second = -(0.9 * scores[1, 2] + 0.05 * (scores[1, 0] + scores[1, 1]))
    torch.testing.assert_close(found, (first + 0.1 * second) / 1.1)


def test_image_classification_is_smoothed_too():
    stage = ClassificationStage(torch.nn.Identity(), label_smoothing=0.1)
    logits = torch.linspace(-1, 1, 10)[None]
    targets = pad_targets([{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}])
    targets = targets._replace(image_labels=torch.tensor([3]))
    losses = stage.loss(ClassificationOutputs(logits), targets)
    assert losses["classification"].item() == pytest.approx(2.7947262, abs=1e-6)


@pytest.mark.parametrize("kind", [RetinaNetLoss, FCOSLoss, ObjectnessLoss, RCNNLoss, SetPredictionLoss])
def test_a_smoothing_outside_0_to_1_is_refused(kind):
    assert_refused(f"{kind.__name__}: label_smoothing=1.5 [0, 1]", kind, label_smoothing=1.5)
    assert_refused("YOLOLoss.smooth_labels: smoothing=-0.1 [0, 1]", YOLOLoss().smooth_labels, -0.1)
