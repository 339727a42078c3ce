"""SSD7: default boxes, encoder, neutral boxes and mining, as the source states them."""

import math

import pytest
import torch

from detkit.anchors import gather_assigned
from detkit.detectors import ssd7
from detkit.detectors.dense import assign, predict
from detkit.structures import IGNORED, NEGATIVE, Images, pad_targets

SIZE = (96, 128)


def outputs_of(detector, size, count=1):
    batch = Images(torch.rand(count, 3, *size), torch.tensor([size] * count))
    with torch.no_grad():
        return predict(detector.dense, detector.trunk(batch.tensors), batch)


@pytest.mark.parametrize(("size", "count"), [((300, 480), 11_692), ((224, 224), 4_152), ((300, 300), 7_160)])
def test_default_boxes_are_as_many_as_published(size, count):
    assert len(outputs_of(ssd7(5, size=size).eval(), size).anchors.boxes) == count


def test_a_cell_has_a_tall_box_two_squares_and_a_wide_box_around_its_center():
    """At 300 x 480 level 1 has 37 x 60 cells, of 300 / 37 x 8 pixels: sizes are rounded down, cells cover the image."""
    boxes = outputs_of(ssd7(5).eval(), (300, 480)).anchors.boxes
    side, following = 0.08 * 300, 0.16 * 300
    centers, sides = (boxes[:4, :2] + boxes[:4, 2:]) / 2, boxes[:4, 2:] - boxes[:4, :2]
    torch.testing.assert_close(centers, torch.tensor([[4.0, 150 / 37]]).expand(4, 2))
    square = math.sqrt(side * following)
    expected = [[side * 0.5**0.5, side / 0.5**0.5], [side, side], [square, square], [side * 2**0.5, side / 2**0.5]]
    torch.testing.assert_close(sides, torch.tensor(expected))
    last = boxes[-3]  # the first square of the last cell
    assert (last[2:] - last[:2]).tolist() == pytest.approx([0.64 * 300] * 2)
    assert ((last[:2] + last[2:]) / 2).tolist() == pytest.approx([480 - 480 / 14, 300 - 300 / 8])


def test_scales_are_fractions_of_the_shorter_side():
    detector = ssd7(2, size=(96, 128), scales=(0.1, 0.3, 0.5, 0.7, 0.9))
    boxes = outputs_of(detector.eval(), SIZE).anchors.boxes
    assert (boxes[1, 2:] - boxes[1, :2]).tolist() == pytest.approx([9.6] * 2)


@pytest.mark.parametrize("scales", [(0.1, 0.3, 0.5, 0.7), (0.1,) * 6])
def test_each_level_needs_its_scale_and_the_last_one_more(scales):
    with pytest.raises(ValueError, match=r"ssd7: scales=\(0\.1, .*must be five"):
        ssd7(2, scales=scales)


def test_it_has_the_published_number_of_parameters():
    detector = ssd7(5)
    assert sum(parameter.numel() for parameter in detector.parameters()) == 213_232


# The encoder


def iou(one, other):
    width, height = (min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1))
    shared = max(width, 0) * max(height, 0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return shared / (areas - shared)


def encoded(boxes, labels, anchors):
    """The source's encoder in three steps: the class of each default box, and its four offsets where it is positive."""
    overlaps = [[iou(anchor, box) for box in boxes] for anchor in anchors]
    matched = [NEGATIVE] * len(anchors)
    for _ in boxes:  # 1: each object takes its best free default box, the best pair first
        pairs = [
            (value, -n, -t)
            for n, row in enumerate(overlaps)
            for t, value in enumerate(row)
            if matched[n] == NEGATIVE and t not in matched
        ]
        _, n, t = max(pairs)
        matched[-n] = -t
    for n, row in enumerate(overlaps):
        if matched[n] == NEGATIVE and max(row) >= 0.5:  # 2: so does every default box that fits an object
            matched[n] = row.index(max(row))
        elif matched[n] == NEGATIVE and max(row) >= 0.3:  # 3: the rest is neutral from .3
            matched[n] = IGNORED
    offsets = {}
    for n, t in enumerate(matched):
        if t >= 0:
            (x1, y1, x2, y2), (a1, b1, a2, b2) = boxes[t], anchors[n]
            shift = ((x1 + x2 - a1 - a2) / 2 / (a2 - a1), (y1 + y2 - b1 - b2) / 2 / (b2 - b1))
            offsets[n] = [*shift, math.log((x2 - x1) / (a2 - a1)), math.log((y2 - y1) / (b2 - b1))]
    return [labels[t] if t >= 0 else t for t in matched], offsets


def test_the_encoder_is_the_sources():
    detector = ssd7(3, size=SIZE).eval()
    boxes, labels = [[10.0, 12, 60, 70], [20, 10, 66, 74], [70, 50, 86, 66], [3, 80, 9, 95]], [2, 0, 1, 1]
    outputs = outputs_of(detector, SIZE)
    anchors = outputs.anchors.boxes
    expected, offsets = encoded(boxes, labels, anchors.double().tolist())
    targets = pad_targets([{"boxes": torch.tensor(boxes), "labels": torch.tensor(labels)}])
    assigned = gather_assigned(assign(detector.dense, outputs, targets), targets)
    assert assigned.labels[0].tolist() == expected
    assert set(expected) == {0, 1, 2, NEGATIVE, IGNORED}
    deltas = detector.dense.coder.encode(assigned.boxes[0], anchors)
    found = {n: deltas[n].tolist() for n in offsets}
    assert all(found[n] == pytest.approx(offsets[n], abs=1e-5) for n in offsets)


# Mining


def taught(scope, target):
    """Default boxes of each of two images, the second without objects, whose class learns something."""
    torch.manual_seed(0)
    detector = ssd7(3, size=SIZE, scope=scope).eval()
    outputs = outputs_of(detector, SIZE, 2)
    logits = outputs.predictions.logits.clone().requires_grad_()
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    targets = pad_targets([target, nothing])
    outputs = outputs._replace(predictions=outputs.predictions._replace(logits=logits))
    sum(detector.dense.loss(outputs, targets).values()).backward()
    labels = gather_assigned(assign(detector.dense, outputs, targets), targets).labels
    return labels, logits.grad.abs().sum(-1) > 0, -logits.log_softmax(-1)[..., -1]


@pytest.mark.parametrize("scope", ["batch", "image"])
def test_hard_negatives_are_the_worst_of_the_batch_or_of_each_image(scope):
    target = {"boxes": torch.tensor([[10.0, 12, 60, 70], [70, 50, 86, 66]]), "labels": torch.tensor([2, 1])}
    labels, learning, costs = taught(scope, target)
    positives = int((labels >= 0).sum())
    assert positives > 0
    assert learning[labels >= 0].all()
    assert not learning[labels == IGNORED].any()
    mined = learning & (labels == NEGATIVE)
    assert mined.sum() == 3 * positives
    left = (labels == NEGATIVE) & ~learning
    if scope == "image":
        assert not mined[1].any()
        left[1] = False
    else:
        assert mined.any(1).all()
    assert costs[mined].min() > costs[left].max()


def test_a_batch_without_objects_teaches_nothing():
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    assert not taught("batch", nothing)[1].any()


@pytest.mark.slow(2)
def test_it_learns_one_image_by_heart():
    torch.manual_seed(0)
    detector, image = ssd7(2, size=(64, 64)), torch.zeros(3, 64, 64)
    image[0, 8:32, 8:32] = 1.0
    image[1, 30:60, 24:60] = 1.0
    target = {"boxes": torch.tensor([[8.0, 8, 32, 32], [24, 30, 60, 60]]), "labels": torch.tensor([0, 1])}
    optimizer = torch.optim.Adam(detector.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        sum(detector([image, image], [target, target]).values()).backward()
        optimizer.step()
    found, _ = detector([image, image])  # with the statistics of the batch: running ones, of momentum .01, lag behind
    order = found["labels"][:2].argsort()
    assert found["labels"][:2][order].tolist() == [0, 1]
    torch.testing.assert_close(found["boxes"][:2][order], target["boxes"], rtol=0, atol=3)
