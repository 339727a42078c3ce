"""Postprocess against a slow reference: threshold, best candidates, greedy suppression by class, best K."""

import pytest
import torch
from torch import Tensor

from detkit.detectors import LevelwisePostprocess, Postprocess, SetPostprocess


def overlap(first: list[float], second: list[float]) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    area, other = ((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return width * height / (area + other - width * height)


def reference(
    scores: Tensor,
    boxes: Tensor,
    size: list[float],
    *,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
    candidates_per_class: int | None,
    min_size: float = 0.0,
) -> list[tuple[float, int, int]]:
    """(score, label, box number) of what is found in one image, in plain Python; scores (N, C).

    Boxes are (N, 4), or (N, C, 4) where every class has its own.
    """
    height, width = size
    kept: list[tuple[float, int, int]] = []
    for label in range(scores.shape[1]):
        own = boxes if boxes.ndim == 2 else boxes[:, label]
        rows = [
            [min(max(x, 0), limit) for x, limit in zip(box, (width, height) * 2, strict=False)]
            for box in own.double().tolist()
        ]
        column = scores[:, label].tolist()
        solid = [i for i, row in enumerate(rows) if min(row[2] - row[0], row[3] - row[1]) >= min_size]
        order = sorted(solid, key=lambda i: (-column[i], i))[:candidates_per_class]
        survivors: list[int] = []
        for i in order:
            if column[i] > score_threshold and all(overlap(rows[i], rows[j]) <= iou_threshold for j in survivors):
                survivors.append(i)
        kept += [(column[i], label, i) for i in survivors]
    return sorted(kept, key=lambda found: (-found[0], found[2], found[1]))[:max_detections]


def scene(images: int, count: int, classes: int, *, levels: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Scores out of ``levels`` values, so with many ties, and boxes on a coarse grid, so with many equal overlaps."""
    scores = torch.randint(0, levels, (images, count, classes), generator=generator) / levels
    corners = torch.randint(-2, 12, (images, count, 2), generator=generator) * 4.0
    sides = torch.randint(1, 6, (images, count, 2), generator=generator) * 4.0
    return scores, torch.cat((corners, corners + sides), dim=-1)


SETTINGS = [
    {"score_threshold": 0.2, "iou_threshold": 0.45, "max_detections": 20, "candidates_per_class": 7},
    {"score_threshold": 0.0, "iou_threshold": 0.5, "max_detections": 500, "candidates_per_class": None},
    {"score_threshold": 0.5, "iou_threshold": 0.0, "max_detections": 3, "candidates_per_class": 1000},
    {"score_threshold": 0.25, "iou_threshold": 1.0, "max_detections": 40, "candidates_per_class": 30},
]


@pytest.mark.parametrize("levels", [4, 1000])
@pytest.mark.parametrize("settings", SETTINGS)
def test_it_finds_what_the_reference_finds_ties_included(settings, levels, generator):
    postprocess = Postprocess(**settings)
    sizes = torch.tensor([[40, 44], [37, 60], [10, 10]])
    for classes in (1, 3):
        scores, boxes = scene(3, 60, classes, levels=levels, generator=generator)
        found = postprocess(scores, boxes, sizes)
        candidates = min(settings["candidates_per_class"] or 60, 60) * classes
        assert found.scores.shape == (3, min(settings["max_detections"], candidates))
        for i, size in enumerate(sizes.tolist()):
            expected = reference(scores[i], boxes[i], size, **settings)
            assert expected
            valid = found.valid[i]
            assert valid.sum() == len(expected)
            assert found.labels[i, valid].tolist() == [label for _, label, _ in expected]
            assert found.scores[i, valid].tolist() == [score for score, _, _ in expected]
            limits = torch.tensor([size[1], size[0]] * 2)
            wanted = boxes[i, [number for _, _, number in expected]].clamp(min=0).minimum(limits)
            assert torch.equal(found.boxes[i, valid], wanted)


@pytest.mark.parametrize("min_size", [0.0, 4.0, 12.0])
@pytest.mark.parametrize("settings", SETTINGS)
def test_boxes_of_each_class_and_a_smallest_size_are_those_of_the_reference(settings, min_size, generator):
    postprocess = Postprocess(**settings, min_size=min_size)
    sizes = torch.tensor([[40, 44], [37, 60]])
    scores, boxes = scene(2, 60, 3, levels=7, generator=generator)
    moved = boxes[:, :, None] + torch.randint(-2, 3, (2, 60, 3, 1), generator=generator) * 2.0
    for given in (boxes, moved):
        found = postprocess(scores, given, sizes)
        for i, size in enumerate(sizes.tolist()):
            expected = reference(scores[i], given[i], size, **settings, min_size=min_size)
            assert expected
            valid = found.valid[i]
            assert valid.sum() == len(expected)
            assert found.labels[i, valid].tolist() == [label for _, label, _ in expected]
            assert found.scores[i, valid].tolist() == [score for score, _, _ in expected]
            rows = [given[i, n] if given.ndim == 3 else given[i, n, label] for _, label, n in expected]
            limits = torch.tensor([size[1], size[0]] * 2)
            assert torch.equal(found.boxes[i, valid], torch.stack(rows).clamp(min=0).minimum(limits))


def test_a_box_of_one_class_that_is_not_finite_leaves_the_other_classes_theirs():
    boxes = torch.tensor([[[[0.0, 0, 9, 9], [0, 0, torch.nan, 9]], [[0, 0, torch.inf, 9], [20, 20, 30, 30]]]])
    found = Postprocess()(torch.tensor([[[0.9, 0.8], [0.7, 0.6]]]), boxes, torch.tensor([[40, 40]]))
    assert found.scores[found.valid].tolist() == pytest.approx([0.9, 0.6])
    assert found.labels[found.valid].tolist() == [0, 1]
    assert found.boxes[found.valid].tolist() == [[0, 0, 9, 9], [20, 20, 30, 30]]


def test_a_box_too_small_after_clipping_suppresses_none_and_one_just_large_enough_is_found():
    boxes = torch.tensor([[[39.0, 0, 60, 10], [38, 0, 60, 10], [0, 0, 2, 2], [0, 0, 1.9, 9]]])
    scores = torch.tensor([[[0.9], [0.8], [0.7], [0.6]]])
    found = Postprocess(min_size=2.0, iou_threshold=0.1)(scores, boxes, torch.tensor([[40, 40]]))
    assert found.boxes[found.valid].tolist() == [[38, 0, 40, 10], [0, 0, 2, 2]]


def test_equal_scores_go_to_the_lower_box_even_where_candidates_are_cut():
    boxes = torch.arange(1000.0)[None, :, None] * 10 + torch.tensor([0.0, 0, 5, 5])
    found = Postprocess(candidates_per_class=5, max_detections=5)(
        torch.full((1, 1000, 1), 0.5), boxes, torch.tensor([[20000, 20000]])
    )
    assert found.boxes[0, :, 0].tolist() == [0, 10, 20, 30, 40]


def test_one_box_may_be_found_as_several_classes():
    found = Postprocess()(torch.tensor([[[0.3, 0.7]]]), torch.tensor([[[0.0, 0, 4, 4]]]), torch.tensor([[9, 9]]))
    assert found.labels.tolist() == [[1, 0]]
    assert found.boxes.tolist() == [[[0, 0, 4, 4]] * 2]


def test_a_score_at_the_threshold_is_not_found_and_an_overlap_at_its_threshold_stays():
    scores = torch.tensor([[[0.75], [0.5], [0.25]]])
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 5], [20, 20, 30, 30]]])
    found = Postprocess(score_threshold=0.25, iou_threshold=0.5)(scores, boxes, torch.tensor([[40, 40]]))
    assert found.scores[found.valid].tolist() == [0.75, 0.5]
    tighter = Postprocess(score_threshold=0.0, iou_threshold=0.499)(scores, boxes, torch.tensor([[40, 40]]))
    assert tighter.scores[tighter.valid].tolist() == [0.75, 0.25]


def test_boxes_are_clipped_before_they_are_compared():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 100]]])
    scores = torch.tensor([[[0.9], [0.8]]])
    assert Postprocess()(scores, boxes, torch.tensor([[10, 10]])).valid.sum() == 1
    assert Postprocess()(scores, boxes, torch.tensor([[100, 10]])).valid.sum() == 2


def test_nothing_in_gives_nothing_out():
    found = Postprocess()(torch.zeros(2, 0, 3), torch.zeros(2, 0, 4), torch.tensor([[9, 9], [9, 9]]))
    assert found.boxes.shape == (2, 0, 4)
    assert found.valid.shape == found.scores.shape == found.labels.shape == (2, 0)


def test_a_row_that_is_not_finite_changes_no_other_row():
    scores = torch.tensor([[[0.9], [0.8], [0.7], [0.6]]])
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [float("nan"), 0, 5, 5]]])
    expected = Postprocess()(scores[:, :3], boxes[:, :3], torch.tensor([[40, 40]]))
    spoilt = scores.clone()
    for bad_score in (0.6, 1.0):
        spoilt[0, 3] = bad_score
        found = Postprocess()(spoilt, boxes, torch.tensor([[40, 40]]))
        assert torch.equal(found.boxes[found.valid], expected.boxes[expected.valid])
        assert torch.isfinite(found.boxes).all()


@pytest.mark.parametrize("candidates", [2, None])
def test_a_score_that_is_not_a_number_takes_no_place_among_the_candidates(candidates):
    scores = torch.tensor([[[float("nan")], [0.8], [0.7]]])
    boxes = torch.tensor([[[0.0, 0, 10, 10], [20, 0, 30, 9], [20, 20, 30, 30]]])
    found = Postprocess(candidates_per_class=candidates)(scores, boxes, torch.tensor([[40, 40]]))
    assert found.scores[found.valid].tolist() == pytest.approx([0.8, 0.7])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"score_threshold": -0.1}, r"score_threshold=-0.1 must lie in \[0, 1\]"),
        ({"score_threshold": float("nan")}, "score_threshold=nan"),
        ({"iou_threshold": 50}, "iou_threshold=50"),
        ({"max_detections": 0}, "max_detections=0 must be at least 1"),
        ({"candidates_per_class": 0}, "candidates_per_class=0 must be at least 1"),
        ({"min_size": -1.0}, "min_size=-1.0 must be at least 0"),
        ({"min_size": float("nan")}, "min_size=nan must be at least 0"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=f"Postprocess: {message}"):
        Postprocess(**settings)


def test_it_prints_its_settings():
    assert "max_detections=7" in repr(Postprocess(max_detections=7))
    assert "gradients" not in repr(Postprocess())
    assert repr(Postprocess(class_agnostic=True, gradients=True)).endswith(", class_agnostic=True, gradients=True)")


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_a_box_that_is_not_finite_is_no_detection_and_suppresses_none(bad):
    boxes, scores = torch.tensor([[[0, 0, bad, 9], [0, 0, 10, 9.0]]]), torch.tensor([[[0.9], [0.8]]])
    found = Postprocess(max_detections=2)(scores, boxes, torch.tensor([[10, 10]]))
    assert found.valid.tolist() == [[True, False]]
    assert found.boxes[0, 0].tolist() == [0, 0, 10, 9]


ONE_BOX_TWICE = torch.tensor([[[0.0, 0, 9, 9], [0, 0, 9, 8]]])
TWO_CLASSES = torch.tensor([[[0.9, 0.2], [0.3, 0.8]]])


def test_class_agnostic_suppression_lets_classes_suppress_each_other():
    each = Postprocess(score_threshold=0.1)(TWO_CLASSES, ONE_BOX_TWICE, torch.tensor([[10, 10]]))
    assert each.labels[each.valid].tolist() == [0, 1]
    found = Postprocess(score_threshold=0.1, class_agnostic=True)(TWO_CLASSES, ONE_BOX_TWICE, torch.tensor([[10, 10]]))
    assert found.labels[found.valid].tolist() == [0]
    assert found.scores[found.valid].tolist() == pytest.approx([0.9])


def test_class_agnostic_suppression_of_a_box_of_each_class_reads_that_class():
    boxes = torch.tensor([[[[0.0, 0, 9, 9], [20, 20, 29, 29]]]])
    found = Postprocess(score_threshold=0.1, class_agnostic=True)(
        torch.tensor([[[0.5, 0.9]]]), boxes, torch.tensor([[40, 40]])
    )
    assert found.labels[found.valid].tolist() == [1, 0]
    assert found.boxes[found.valid].tolist() == [[20, 20, 29, 29], [0, 0, 9, 9]]


@pytest.mark.parametrize("own_boxes", [False, True])
def test_class_agnostic_above_a_half_each_box_is_found_as_its_best_class(own_boxes, generator):
    scores, boxes = scene(1, 60, 3, levels=1000, generator=generator)
    scores = scores**4 / (scores**4).sum(2, keepdim=True)
    best, labels = scores.max(2, keepdim=True)
    moved = boxes[:, :, None] + torch.randint(-2, 3, (1, 60, 3, 1), generator=generator) * 2.0
    given, own = (moved, moved[0, torch.arange(60), labels.flatten()]) if own_boxes else (boxes, boxes[0])
    settings = {"score_threshold": 0.5, "iou_threshold": 0.45, "max_detections": 50, "candidates_per_class": 400}
    found = Postprocess(**settings, class_agnostic=True)(scores, given, torch.tensor([[40, 44]]))
    expected = reference(best[0], own, [40, 44], **settings)
    assert 3 < len(expected) < (best > 0.5).sum()
    assert found.scores[found.valid].tolist() == [score for score, _, _ in expected]
    assert found.labels[found.valid].tolist() == [labels[0, number].item() for _, _, number in expected]


def test_class_agnostic_a_score_that_is_not_a_number_leaves_the_other_classes_theirs():
    scores, boxes = torch.tensor([[[torch.nan, 0.7]]]), torch.tensor([[[0.0, 0, 9, 9]]])
    found = Postprocess(class_agnostic=True)(scores, boxes, torch.tensor([[40, 40]]))
    assert found.labels[found.valid].tolist() == [1]
    assert found.scores[found.valid].tolist() == pytest.approx([0.7])


def test_scores_have_a_gradient_where_it_is_asked_for():
    sizes = torch.tensor([[10, 10]])
    for gradients in (False, True):
        scores = TWO_CLASSES.clone().requires_grad_()
        found = Postprocess(score_threshold=0.1, gradients=gradients)(scores, ONE_BOX_TWICE, sizes)
        assert found.scores.requires_grad is gradients
    found.scores[0, 1].backward()
    assert scores.grad.tolist() == [[[0, 0], [0, 1]]]
    with torch.no_grad():
        assert not Postprocess(gradients=True)(scores, ONE_BOX_TWICE, sizes).scores.requires_grad


@pytest.mark.parametrize("kind", [Postprocess, LevelwisePostprocess, SetPostprocess])
def test_rows_say_which_anchor_each_detection_was(kind, generator):
    scores, boxes = scene(2, 40, 3, levels=1000, generator=generator)
    plain, asked = kind(max_detections=9), kind(max_detections=9, rows=True)
    sizes = torch.tensor([[64, 64], [50, 70]])
    found = asked(scores, boxes, sizes)
    assert plain(scores, boxes, sizes).rows is None
    for image, k in found.valid.nonzero().tolist():
        row, label = found.rows[image, k], found.labels[image, k]
        assert scores[image, row, label] == found.scores[image, k]
    assert not found.rows[~found.valid].any()
