"""The stage of selected queries: who votes for which object, what noised queries cost, and what they leave alone."""

import pytest
import torch
from contracts import two_images
from torch import Tensor

from detkit.anchors import HungarianMatcher, ThresholdMatcher
from detkit.boxes import EdgeCoder
from detkit.detectors import EdgeQueryLosses, QueryLosses, small_d_fine, small_rt_detr
from detkit.detectors.selected_queries import layers_of, united_layers, weight_of
from detkit.layers import EdgePredictions, Proposed
from detkit.losses import EdgeLoss, VarifocalSetLoss
from detkit.structures import Assignment, pad_targets

BUILDS = {"rt detr": small_rt_detr, "d fine": small_d_fine}


def by_votes(matched: list[list[int]]) -> list[int]:
    """The most frequent object of each query over all layers, query by query; of several the lowest."""
    found = []
    for votes in zip(*matched, strict=True):
        objects = [vote for vote in votes if vote >= 0]
        rest = -2 if -2 in votes else -1
        found.append(min(objects, key=lambda one: (-objects.count(one), one)) if objects else rest)
    return found


def test_a_query_learns_the_object_that_most_layers_match_it_with():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        matched = torch.randint(-2, 4, (5, 2, 6), generator=generator)
        united = united_layers(Assignment(matched.flatten(0, 1), torch.zeros(10, 6)), 2).matched
        assert united.tolist() == [by_votes(matched[:, image].tolist()) for image in range(2)]


def test_the_weight_of_an_assignment_counts_an_object_as_often_as_it_is_matched():
    target = {"boxes": torch.zeros(2, 4), "labels": torch.tensor([0, 1]), "weights": torch.tensor([1.0, 0.25])}
    matched = torch.tensor([[0, 1, 1, -1, -2]])
    assert weight_of(Assignment(matched, torch.zeros(1, 5)), pad_targets([target])) == 1.5


def test_layers_are_in_order_cells_first():
    rows = [torch.full((1, 1, 5, 2), float(i)) for i in range(4)]
    boxes = torch.zeros(2, 1, 5, 4)
    found = EdgePredictions(torch.cat(rows[2:]), boxes, boxes, rows[1][0], boxes[0])
    names, logits, _ = layers_of(found, Proposed(boxes[0], boxes[0], rows[0][0], boxes[0]))
    assert names == ["proposals", "first", "layer0"]
    assert logits[:, 0, 0, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.slow
def test_noised_queries_leave_plain_ones_alone(name):
    torch.manual_seed(0)
    detector = BUILDS[name](3, size=(96, 128), channels=32, depth=2, queries=8).eval()
    images, targets = two_images()
    batch, padded = detector.preprocess(images, targets)
    features = detector.trunk(batch.tensors)
    with torch.no_grad():
        alone = detector.objects(features, batch, None)
        beside = detector.objects(features, batch, None, padded)
    for one, other in zip(beside.found, alone.found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert beside.noised[0].shape[2] == beside.assignment.matched.shape[1]


@pytest.mark.parametrize("name", BUILDS)
def test_without_denoising_there_are_only_plain_queries(name):
    detector = BUILDS[name](3, size=(96, 128), channels=32, depth=2, queries=8)
    detector.objects.denoising = None
    losses = detector(*two_images())
    assert not any("denoising" in loss for loss in losses)


def test_losses_of_noised_queries_are_divided_by_the_objects_of_all_groups():
    torch.manual_seed(0)
    criterion, boxes = VarifocalSetLoss(), torch.rand(2, 1, 6, 4) * 0.3 + 0.3
    targets = pad_targets([{"boxes": torch.tensor([[0.2, 0.2, 0.6, 0.6]]), "labels": torch.tensor([1])}])
    known = Assignment(torch.tensor([[0, -1, 0, -1, 0, -1]]), torch.zeros(1, 6))
    losses = QueryLosses(HungarianMatcher(class_cost="focal"), criterion)
    logits = torch.randn(2, 1, 6, 3)
    found = losses((logits, boxes), targets, known=known)
    expected = criterion(logits, boxes, targets, known, count=torch.tensor(3.0))
    assert found.keys() == expected.keys()
    for key, loss in found.items():
        torch.testing.assert_close(loss, expected[key])


@pytest.mark.parametrize("kind", [QueryLosses, EdgeQueryLosses])
def test_a_matcher_that_needs_anchors_is_refused(kind):
    more: list[Tensor | EdgeLoss] = [EdgeLoss(EdgeCoder(bins=4))] if kind is EdgeQueryLosses else []
    matcher = ThresholdMatcher(positive_iou=0.5, negative_iou=0.4)
    with pytest.raises(ValueError, match=f"{kind.__name__}: matcher is a ThresholdMatcher"):
        kind(matcher, VarifocalSetLoss(), *more)


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.slow
def test_a_detector_in_half_precision_learns_and_finds(name):
    """All weights are rounded; boxes stay in float32."""
    detector = BUILDS[name](3, size=(64, 64), channels=32, depth=1, queries=5).bfloat16()
    images, targets = two_images()
    images = [image.bfloat16() for image in images]
    assert all(loss.isfinite() for loss in detector(images, targets).values())
    assert detector.eval()(images)[0]["boxes"].dtype == torch.float32
