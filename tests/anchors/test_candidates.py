"""Objects in pieces, with the anchors that may be theirs: no pair is lost, and no matrix of all pairs is made."""

from functools import partial
from typing import Any

import pytest
import torch
from allocations import allocations
from hypothesis import given
from hypothesis import strategies as st
from strategies import boxes

from detkit.anchors import (
    ATSSMatcher,
    BipartiteMatcher,
    CenterMatcher,
    HungarianMatcher,
    ShapeMatcher,
    SimOTAMatcher,
    TaskAlignedMatcher,
    ThresholdMatcher,
)
from detkit.anchors.candidates import inside_boxes, near_centers, pieces_of, points_in_crowds
from detkit.boxes import box_centers, points_in_boxes
from detkit.structures import Anchors, Predictions, pad_targets

SIDE, OBJECTS = 320, 1000


def cells(side: int = SIDE, strides=(8, 16, 32)) -> Anchors:
    levels = []
    for stride in strides:
        steps = torch.arange(0, side, stride)
        corner = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).reshape(-1, 2).float()
        levels.append(torch.cat((corner, corner + stride), 1))
    every = torch.cat(levels)
    return Anchors(every, every[:, 2:] - every[:, :2], tuple(map(len, levels)))


def crowd(count: int, *, low: float, high: float):
    """Targets of one image: ``count`` objects with sides from ``low`` to ``high`` pixels."""
    generator = torch.Generator().manual_seed(0)
    sides = low + torch.rand(count, 2, generator=generator) * (high - low)
    corner = torch.rand(count, 2, generator=generator) * (SIDE - sides)
    return pad_targets([{"boxes": torch.cat((corner, corner + sides), 1), "labels": torch.zeros(count).long()}])


def predictions(anchors: Anchors, images: int = 1) -> Predictions:
    scores = torch.rand(images, len(anchors.boxes), 3, generator=torch.Generator().manual_seed(1))
    return Predictions(anchors.boxes.expand(images, -1, -1), scores, scores)


@given(rows=boxes(most=200), radius=st.sampled_from([0.5, 4.0, 100.0]))
def test_every_pair_that_may_match_is_in_a_piece_once(rows, radius):
    anchors = cells(64).boxes[None]
    points, near = box_centers(anchors), torch.full((1, anchors.shape[1], 2), radius)
    truth, objects = rows[None], torch.arange(len(rows))[None] % 3 > 0
    own = points_in_boxes(points[:, None], truth[:, :, None])
    close = ((points[:, None] - box_centers(truth)[:, :, None]).abs() < radius).all(-1)
    for find, pairs in (
        (partial(inside_boxes, points), own),
        (partial(near_centers, points, near), close),
        (partial(near_centers, points, near, or_inside=True), own | close),
    ):
        seen = torch.zeros_like(own, dtype=torch.int64)
        pieces: Any = pieces_of(truth, objects, points.shape[1], find)
        for piece in pieces:
            seen[0, piece.rows[:, None], piece.columns] += 1
            assert all((places.diff() > 0).all() for places in (piece.rows, piece.columns))
        assert seen.amax() <= 1 if seen.numel() else True
        assert (seen > 0)[pairs & objects[..., None]].all()
        assert not seen[~objects].any()


@given(rows=boxes(most=8))
def test_points_in_crowds_are_those_inside_any_of_them(rows):
    points = box_centers(cells(64).boxes)[None]
    crowds = torch.arange(len(rows))[None] % 2 == 0
    expected = (points_in_boxes(points[:, None], rows[None, :, None]) & crowds[..., None]).any(1)
    assert torch.equal(points_in_crowds(points, rows[None], crowds), expected)


@pytest.mark.parametrize(
    "matcher",
    [ThresholdMatcher(), BipartiteMatcher(), ATSSMatcher(), SimOTAMatcher()],
    ids=lambda matcher: type(matcher).__name__,
)
def test_matching_many_objects_holds_no_matrix_of_all_pairs(matcher):
    anchors, targets = cells(), crowd(OBJECTS, low=3, high=50)
    matrix = 4e-6 * OBJECTS * len(anchors.boxes)  # MB
    found = allocations(lambda: matcher(anchors, targets, predictions(anchors)))
    assert found.peak < matrix


@pytest.mark.parametrize(
    "matcher", [CenterMatcher(), ShapeMatcher(), TaskAlignedMatcher()], ids=lambda matcher: type(matcher).__name__
)
@pytest.mark.slow
def test_small_objects_are_compared_with_the_anchors_around_them_only(matcher):
    anchors, targets = cells(), crowd(OBJECTS, low=4, high=8)
    matrix = 4e-6 * OBJECTS * len(anchors.boxes)
    found = allocations(lambda: matcher(anchors, targets, predictions(anchors)))
    assert found.peak < matrix
    assert found.total < 8 * matrix  # the rule on all pairs takes some forty


def test_sets_of_queries_are_compared_some_images_at_a_time(monkeypatch):
    anchors, targets, images = cells(), crowd(200, low=3, high=50), 8  # the layers of a decoder are as images
    targets = type(targets)._make(None if rows is None else rows.expand(images, *rows.shape[1:]) for rows in targets)
    targets = targets._replace(boxes=targets.boxes / SIDE)
    seen = predictions(anchors, images)
    assert seen.scores is not None
    seen = Predictions(seen.boxes[:, :50] / SIDE, logits=seen.scores[:, :50])
    matcher, expected = HungarianMatcher(class_cost="focal"), []
    whole = allocations(lambda: expected.append(matcher(None, targets, seen)))
    monkeypatch.setattr("detkit.anchors.hungarian._PAIRS_AT_ONCE", 3 * 50 * 256)
    assert allocations(lambda: expected.append(matcher(None, targets, seen))).peak < 0.5 * whole.peak
    for one, other in zip(*expected, strict=True):
        assert torch.equal(one, other)
    labels = targets.labels.clone()
    labels[7, 3] = 7
    with pytest.raises(ValueError, match=r"image 7, target 3: label 7 must lie in 0\.\.2"):
        matcher(None, targets._replace(labels=labels), seen)
