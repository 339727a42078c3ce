"""YOLOv1Loss: goldens of whole steps, gradients equal to a loop, and scores that stay in [0, 1]."""

import math

import pytest
import torch
from yolo_loops import iou

from detkit.anchors import ResponsibleMatcher, gather_assigned
from detkit.boxes import GridCoder
from detkit.losses import YOLOv1Loss
from detkit.structures import Anchors, DensePredictions, Predictions, Target, pad_targets

CODER = GridCoder(form="root")


def whole_image(count=1, per_cell=2, dtype=torch.float64):
    """The anchors of count x count cells in an image of one pixel."""
    side, places = 1 / count, torch.arange(count, dtype=dtype)
    rows, columns = torch.meshgrid(places, places, indexing="ij")
    centers = (
        torch.stack((columns, rows), dim=-1).reshape(-1, 1, 2).expand(-1, per_cell, -1).reshape(-1, 2) + 0.5
    ) * side
    return Anchors(torch.cat((centers - 0.5, centers + 0.5), dim=-1), torch.full_like(centers, side), (len(centers),))


def learned(anchors, deltas, confidences, classes, objects, **settings):
    """The losses of one image whose ``objects`` are ((cx, cy, w, h), label)."""
    boxes = [[x - w / 2, y - h / 2, x + w / 2, y + h / 2] for (x, y, w, h), _ in objects]
    labels = torch.tensor([label for _, label in objects])
    targets = pad_targets([Target(boxes=torch.tensor(boxes, dtype=torch.float64), labels=labels)])
    criterion, predictions = YOLOv1Loss(**settings), DensePredictions(classes, deltas, confidences)
    seen = Predictions(CODER.decode(deltas.detach(), anchors))
    assigned = gather_assigned(ResponsibleMatcher()(anchors, targets, seen), targets)
    return criterion(predictions, assigned, anchors, CODER)


@pytest.mark.parametrize(("rescore", "expected"), [(True, 6.3), (False, 7.3)])
def test_golden_of_a_prediction_of_zeros(rescore, expected):
    zeros = torch.zeros(1, 2, 4).double(), torch.zeros(1, 2).double(), torch.zeros(1, 2, 2).double()
    losses = learned(whole_image(), *zeros, [((0.3, 0.6, 0.25, 0.36), 1)], rescore=rescore)
    assert sum(losses.values()).item() == pytest.approx(expected)


def test_golden_of_two_boxes_the_better_of_which_is_exact():
    deltas = torch.tensor([[[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 1, 1]]], dtype=torch.float64)
    confidences = torch.tensor([[0.8, 0.3]]).double()
    classes = torch.tensor([[[0.6, 0.4]] * 2]).double()
    losses = learned(whole_image(), deltas, confidences, classes, [((0.5, 0.5, 0.25, 0.25), 0)])
    found = {name: loss.item() for name, loss in losses.items()}
    assert found == pytest.approx({"objectness": 0.04 + 0.045, "classification": 0.32, "box": 0.0})


def test_gradients_are_twice_the_differences_that_a_loop_counts():
    count, per_cell, num_classes = 3, 2, 3
    generator, anchors = torch.Generator().manual_seed(1), whole_image(count)
    rows = count * count * per_cell
    shapes = (1, rows, 4), (1, rows), (1, count * count, num_classes)
    deltas, confidences, cells = (
        torch.rand(*s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes
    )
    objects = [((0.2, 0.45, 0.3, 0.5), 2), ((0.9, 0.9, 0.15, 0.18), 0), ((0.22, 0.4, 0.2, 0.2), 1)]  # two in one cell
    classes = cells.repeat_interleave(per_cell, 1)
    sum(learned(anchors, deltas, confidences, classes, objects).values()).backward()
    raw = [part.detach()[0].tolist() for part in (deltas, confidences, cells)]
    boxes, by_confidence = [[0.0] * 4 for _ in range(rows)], [0.5 * 2 * value for value in raw[1]]
    by_class = [[0.0] * num_classes for _ in range(count * count)]
    for (x, y, w, h), label in objects[:2]:
        column, row = int(x * count), int(y * count)
        cell, best = row * count + column, (-1.0, -1)
        for n in (cell * per_cell, cell * per_cell + 1):
            dx, dy, dw, dh = raw[0][n]
            best = max(best, (iou(((column + dx) / count, (row + dy) / count, dw**2, dh**2), (x, y, w, h)), n))
        overlap, n = best
        wanted = (x * count - column, y * count - row, math.sqrt(w), math.sqrt(h))
        boxes[n] = [2 * 5 * (value - other) for value, other in zip(raw[0][n], wanted, strict=True)]
        by_confidence[n] = 2 * (raw[1][n] - overlap)
        by_class[cell] = [2 * (value - (c == label)) for c, value in enumerate(raw[2][cell])]
    for part, expected in ((deltas, boxes), (confidences, by_confidence), (cells, by_class)):
        torch.testing.assert_close(part.grad[0], torch.tensor(expected).double(), rtol=0, atol=1e-6)


def test_scores_are_held_to_fractions_before_they_are_multiplied():
    predictions = DensePredictions(
        torch.tensor([[[-2.0, 0.5], [3, 0.5]]]), torch.zeros(1, 2, 4), torch.tensor([[-1.0, 2]])
    )
    assert YOLOv1Loss().scores(predictions).tolist() == [[[0, 0], [1, 0.5]]]
