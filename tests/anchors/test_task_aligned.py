"""Task-aligned and SimOTA matching against plain loops over objects and anchors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import assert_refused, boxes, random_boxes, targets_of
from thorough import sweep

from detkit.anchors import IGNORED, NEGATIVE
from detkit.anchors.task_aligned import SimOTAMatcher, TaskAlignedMatcher
from detkit.boxes import box_centers, box_iou
from detkit.structures import Anchors, Predictions, Targets

CLASSES = 3


def grid(side: float = 8, cells: int = 4) -> torch.Tensor:
    """Cells of a square grid, as xyxy boxes, row after row."""
    steps = torch.arange(cells) * side
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    corner = torch.stack((x, y), -1).reshape(-1, 2).float()
    return torch.cat((corner, corner + side), 1)


def scene(images: int, *, seed: int, most: int = 3):
    """Scores and boxes predicted for a grid of 16 cells, near the cells, and objects; many numbers tie."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(1, 16, (images, 16, CLASSES), generator=generator) / 16
    moved = torch.randint(-12, 13, (images, 16, 4), generator=generator).float()
    predicted = grid() + torch.cat((moved[..., :2].clamp(max=0), moved[..., 2:].clamp(min=0)), -1)
    counts = torch.randint(0, most + 1, (images,), generator=generator).tolist()
    objects = []
    for count in counts:
        corner = torch.randint(0, 24, (count, 2), generator=generator).float()
        sides = torch.randint(0, 24, (count, 2), generator=generator).float()
        objects.append(torch.cat((corner, corner + sides), 1))
    return scores, predicted, objects


def slow_task_aligned(scores, predicted, cells, objects, *, candidates=13, alpha=1.0, beta=6.0):
    """One image: (matched, quality) as the definition spells it. Labels of the objects are 0, 1, ..."""
    overlaps, middles = box_iou(objects, predicted), box_centers(cells).tolist()
    alignment = (scores.T[: len(objects)] ** alpha * overlaps**beta).tolist()  # in float32, as the matcher computes
    overlaps, claims = overlaps.tolist(), [[] for _ in cells]
    for target, row in enumerate(alignment):
        x1, y1, x2, y2 = objects[target].tolist()
        inside = [a for a, (x, y) in enumerate(middles) if x1 < x < x2 and y1 < y < y2 and row[a] > 0]
        for anchor in sorted(inside, key=lambda anchor: (-row[anchor], anchor))[:candidates]:
            claims[anchor].append((-overlaps[target][anchor], target))
    matched = [min(claim)[1] if claim else NEGATIVE for claim in claims]
    quality = [0.0] * len(cells)
    for target in set(matched) - {NEGATIVE}:
        kept = [anchor for anchor, taken in enumerate(matched) if taken == target]
        scale = max(overlaps[target][a] for a in kept) / max(alignment[target][a] for a in kept)
        for anchor in kept:
            quality[anchor] = alignment[target][anchor] * scale
    return matched, quality


def slow_simota(scores, predicted, cells, objects, *, candidates=10, radius=2.5, iou_weight=3.0):
    """One image: (matched, quality). Costs of the pairs in float64, compared with a tolerance by the caller."""
    overlaps, middles = box_iou(objects, predicted).tolist(), box_centers(cells).tolist()
    sides, scores = (cells[:, 2:] - cells[:, :2]).tolist(), scores.tolist()
    claims: list[list[tuple]] = [[] for _ in cells]
    for target, (x1, y1, x2, y2) in enumerate(objects.tolist()):
        ranked = []
        for anchor, (x, y) in enumerate(middles):
            inside = x1 < x < x2 and y1 < y < y2
            near = (
                abs(x - (x1 + x2) / 2) < radius * sides[anchor][0]
                and abs(y - (y1 + y2) / 2) < radius * sides[anchor][1]
            )
            if not (inside or near):
                continue
            cost = -iou_weight * math.log(overlaps[target][anchor] + 1e-8)
            for label, p in enumerate(scores[anchor]):
                cost -= max(-100, math.log(p) if p > 0 else -math.inf) if label == target else 0
                cost -= max(-100, math.log1p(-p) if p < 1 else -math.inf) if label != target else 0
            ranked.append((not (inside and near), np.float32(round(cost, 4)), anchor))
        best = sorted((overlaps[target][anchor] for *_, anchor in ranked), reverse=True)[:candidates]
        for far, cost, anchor in sorted(ranked)[: max(1, int(math.fsum(best)))]:
            claims[anchor].append((far, cost, target))
    matched = [min(claim)[2] if claim else NEGATIVE for claim in claims]
    quality = [overlaps[target][anchor] if target >= 0 else 0.0 for anchor, target in enumerate(matched)]
    return matched, quality


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{}, {"candidates": 2}, {"candidates": 1, "alpha": 0.5, "beta": 2.0}, {"alpha": 2.0, "beta": 0.0}]
)
def test_task_aligned_matches_many_images_as_the_loop(settings):
    matcher, cells, positives = TaskAlignedMatcher(**settings), grid(), 0
    for batch in range(sweep(10)):
        scores, predicted, objects = scene(100, seed=batch)
        assignment = matcher(cells, targets_of(*objects), Predictions(predicted, scores))
        for image, rows in enumerate(objects):
            matched, quality = slow_task_aligned(scores[image], predicted[image], cells, rows, **settings)
            assert assignment.matched[image].tolist() == matched
            torch.testing.assert_close(assignment.quality[image], torch.tensor(quality), rtol=1e-4, atol=1e-6)
            positives += sum(target >= 0 for target in matched)
    assert positives > 40 * sweep(10)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"candidates": 2}, {"radius": 0.75}, {"iou_weight": 0.0}])
def test_simota_matches_many_images_as_the_loop(settings):
    matcher, cells, same, positives = SimOTAMatcher(**settings), grid(), 0, 0
    for batch in range(sweep(10)):
        scores, predicted, objects = scene(100, seed=batch)
        scores = scores + torch.rand(scores.shape, generator=torch.Generator().manual_seed(batch)) / 100 - 0.01
        assignment = matcher(cells, targets_of(*objects), Predictions(predicted, scores))
        for image, rows in enumerate(objects):
            matched, quality = slow_simota(scores[image], predicted[image], cells, rows, **settings)
            positives += sum(target >= 0 for target in matched)
            if assignment.matched[image].tolist() == matched:
                same += 1
                torch.testing.assert_close(assignment.quality[image], torch.tensor(quality))
    assert positives > 80 * sweep(10)
    assert same >= 99.8 * sweep(10)  # of 100 a batch: costs that differ by less than 1e-4 tie in the loop


def test_exact_numbers_of_task_alignment():
    objects = torch.tensor([[0.0, 0, 16, 16]])
    predicted = torch.tensor([[[0.0, 0, 16, 16], [0, 0, 16, 8], [0, 0, 8, 8], [0, 0, 16, 16]]])
    scores = torch.tensor([[[0.25], [1.0], [1.0], [0.5]]])
    points = grid(cells=3)[[0, 1, 3, 2]]
    assignment = TaskAlignedMatcher(alpha=1.0, beta=1.0)(points, targets_of(objects), Predictions(predicted, scores))
    assert assignment.matched.tolist() == [[0, 0, 0, -1]]
    torch.testing.assert_close(assignment.quality, torch.tensor([[0.5, 1.0, 0.5, 0.0]]))
    assignment = TaskAlignedMatcher(candidates=1)(points, targets_of(objects), Predictions(predicted, scores))
    assert assignment.matched.tolist() == [[0, -1, -1, -1]]
    torch.testing.assert_close(assignment.quality, torch.tensor([[1.0, 0.0, 0.0, 0.0]]))


def test_an_anchor_of_two_objects_goes_to_the_higher_overlap_in_task_alignment():
    objects = torch.tensor([[0.0, 0, 16, 8], [0, 0, 16, 16]])
    scores = torch.tensor([[[1.0, 0.1]]])  # aligned better with the first, overlapping the second more
    predicted, points = torch.tensor([[[0.0, 0, 16, 14]]]), grid()[:1]
    assert TaskAlignedMatcher(beta=1.0)(
        points, targets_of(objects), Predictions(predicted, scores)
    ).matched.tolist() == [[1]]
    twice = targets_of(objects[[0, 0]])
    assert TaskAlignedMatcher()(points, twice, Predictions(predicted, scores)).matched.tolist() == [[0]]


def test_objects_without_a_center_inside_go_without_in_task_alignment_but_not_in_simota():
    small = torch.tensor([[5.0, 5, 7, 7]])
    scores, predicted = torch.full((1, 16, CLASSES), 0.5), grid()[None] + torch.tensor([2.0, 2, -2, -2])
    predicted[0, 0] = torch.tensor([5.0, 5, 7, 8])
    assert (TaskAlignedMatcher()(grid(), targets_of(small), Predictions(predicted, scores)).matched == NEGATIVE).all()
    matched = SimOTAMatcher()(grid(), targets_of(small), Predictions(predicted, scores)).matched[0]
    assert matched.tolist() == [0] + [NEGATIVE] * 15
    far = torch.tensor([[100.0, 100, 102, 102]])
    assert (SimOTAMatcher()(grid(), targets_of(far), Predictions(predicted, scores)).matched == NEGATIVE).all()


def test_predictions_that_overlap_nothing_are_no_positives_of_task_alignment():
    objects = torch.tensor([[0.0, 0, 32, 32]])
    scores, predicted = torch.full((1, 16, CLASSES), 0.5), grid()[None] + 100
    assignment = TaskAlignedMatcher()(grid(), targets_of(objects), Predictions(predicted, scores))
    assert (assignment.matched == NEGATIVE).all()
    assert (assignment.quality == 0).all()
    assert int((SimOTAMatcher()(grid(), targets_of(objects), Predictions(predicted, scores)).matched == 0).sum()) == 1


def test_simota_takes_as_many_anchors_as_the_overlaps_add_up_to():
    objects = torch.tensor([[0.0, 0, 32, 32]])
    scores, predicted = torch.full((1, 16, CLASSES), 0.5), objects.expand(1, 16, 4)
    matcher = SimOTAMatcher()
    assert int((matcher(grid(), targets_of(objects), Predictions(predicted, scores)).matched == 0).sum()) == 10
    half = predicted * torch.tensor([1.0, 1, 1, 0.5])
    matched = matcher(grid(), targets_of(objects), Predictions(half, scores)).matched[0]
    assert matched.tolist() == [0] * 5 + [NEGATIVE] * 11  # the lower anchors of equal cost
    tiny = predicted * torch.tensor([1.0, 1, 1, 0.0625])
    assert int((matcher(grid(), targets_of(objects), Predictions(tiny, scores)).matched == 0).sum()) == 1


def test_simota_takes_candidates_outside_the_center_only_after_those_inside():
    objects = torch.tensor([[0.0, 0, 16, 32]])  # the first two columns of the grid
    scores = torch.full((1, 16, CLASSES), 0.9)
    predicted = objects.expand(1, 16, 4).clone()
    predicted[0, 0] = torch.tensor([0.0, 0, 16, 30])  # inside, but the most expensive of all
    scores[0, 0] = 0.01
    matched = SimOTAMatcher()(grid(), targets_of(objects), Predictions(predicted, scores)).matched[0]
    assert [anchor for anchor in range(16) if matched[anchor] == 0] == [0, 1, 2, 4, 5, 6, 8, 9, 12, 13]
    near_only = SimOTAMatcher(radius=0.75)(grid(), targets_of(objects), Predictions(predicted, scores)).matched[0]
    # Both inside and within 6 pixels of the center (8, 16): anchors 4, 5, 8, 9; then the others inside, by cost.
    assert [anchor for anchor in range(16) if near_only[anchor] == 0] == [1, 4, 5, 8, 9, 12, 13]


def test_the_center_area_ends_at_radius_cells():
    objects = torch.tensor([[19.5, 19.5, 20.5, 20.5]])  # its center lies 16 pixels right of and below that of cell 0
    scores, predicted = torch.full((1, 1, CLASSES), 0.5), torch.tensor([[[0.0, 0, 8, 8]]])
    for radius, matched in ((2.0, NEGATIVE), (2.01, 0)):
        ours = SimOTAMatcher(radius=radius)(grid()[:1], targets_of(objects), Predictions(predicted, scores)).matched
        assert ours.tolist() == [[matched]]


def test_an_anchor_of_two_objects_goes_to_the_lower_cost_in_simota():
    objects = torch.tensor([[0.0, 0, 16, 8], [0, 0, 16, 16]])
    predicted, cells = torch.tensor([[[0.0, 0, 16, 9]]]), grid()[:1]
    likely_second = torch.tensor([[[0.1, 0.9, 0.5]]])
    assert SimOTAMatcher()(cells, targets_of(objects), Predictions(predicted, likely_second)).matched.tolist() == [[1]]
    assert (
        SimOTAMatcher(iou_weight=20.0)(cells, targets_of(objects), Predictions(predicted, likely_second)).matched.item()
        == 0
    )
    assert (
        SimOTAMatcher()(
            cells, targets_of(objects[[1, 1]]), Predictions(predicted, likely_second[..., [2, 2, 2]])
        ).matched
        == 0
    )


def test_certain_scores_cost_at_most_one_hundred_a_class():
    objects, cells = torch.tensor([[0.0, 0, 16, 8]]), grid()[:2]
    scores = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 1.0, 0.0]]])  # both 100 wrong in one class
    predicted = torch.tensor([[[0.0, 0, 16, 7], [0, 0, 16, 8]]])
    assert SimOTAMatcher()(cells, targets_of(objects), Predictions(predicted, scores)).matched.tolist() == [[-1, 0]]
    assert (
        SimOTAMatcher()(cells, targets_of(objects), Predictions(predicted[:, [1, 0]], scores[:, [1, 0]])).matched[0, 0]
        == 0
    )


MATCHERS = pytest.mark.parametrize(
    "matcher", [TaskAlignedMatcher(beta=2.0), SimOTAMatcher()], ids=["aligned", "simota"]
)


@MATCHERS
@given(predicted=boxes(most=8), objects=boxes(most=3), data=st.data())
def test_hostile_predictions_give_numbers_in_range(matcher, predicted, objects, data):
    unit = st.sampled_from([0.0, 1e-30, 0.5, 0.9, 1.0])
    scores = data.draw(st.lists(unit, min_size=4 * len(predicted), max_size=4 * len(predicted)))
    scores = torch.tensor(scores).reshape(1, -1, 4)
    cells = grid(8, 3)[: len(predicted)]
    assignment = matcher(cells, targets_of(objects), Predictions(predicted[None], scores))
    assert ((assignment.matched >= NEGATIVE) & (assignment.matched < max(1, len(objects)))).all()
    assert ((assignment.quality >= 0) & (assignment.quality <= 1)).all()
    assert (assignment.quality[assignment.matched < 0] == 0).all()


@given(seed=st.integers(0, 2**20))
def test_the_best_positive_of_an_object_has_its_highest_overlap_as_quality(seed):
    scores, predicted, objects = scene(4, seed=seed)
    assignment = TaskAlignedMatcher()(grid(), targets_of(*objects), Predictions(predicted, scores))
    for image, rows in enumerate(objects):
        overlaps = box_iou(rows, predicted[image])
        for target in set(assignment.matched[image].tolist()) - {NEGATIVE}:
            kept = assignment.matched[image] == target
            torch.testing.assert_close(assignment.quality[image][kept].max(), overlaps[target][kept].max())


@MATCHERS
@given(seed=st.integers(0, 2**20), data=st.data())
@pytest.mark.slow
def test_the_order_of_the_images_only_reorders_the_result(matcher, seed, data):
    scores, predicted, objects = scene(3, seed=seed)
    order = data.draw(st.permutations(range(3)))
    expected = matcher(grid(), targets_of(*objects), Predictions(predicted, scores))
    mixed = matcher(
        grid(), targets_of(*(objects[i] for i in order)), Predictions(predicted[list(order)], scores[list(order)])
    )
    assert torch.equal(mixed.matched, expected.matched[list(order)])


@MATCHERS
@given(seed=st.integers(0, 2**20), shift=st.integers(-100, 100))
def test_moving_everything_by_whole_pixels_changes_nothing(matcher, seed, shift):
    scores, predicted, objects = scene(2, seed=seed)
    expected = matcher(grid(), targets_of(*objects), Predictions(predicted, scores))
    moved = matcher(
        grid() + shift, targets_of(*(rows + shift for rows in objects)), Predictions(predicted + shift, scores)
    )
    assert torch.equal(moved.matched, expected.matched)


@MATCHERS
def test_a_batch_equals_a_loop_with_shared_anchors_and_with_those_of_each_image(matcher):
    scores, predicted, objects = scene(4, seed=5)
    batch = matcher(grid(), targets_of(*objects), Predictions(predicted, scores))
    own = matcher(grid().expand(4, -1, 4).contiguous(), targets_of(*objects), Predictions(predicted, scores))
    assert torch.equal(batch.matched, own.matched)
    for image, rows in enumerate(objects):
        alone = matcher(grid(), targets_of(rows), Predictions(predicted[image : image + 1], scores[image : image + 1]))
        assert torch.equal(batch.matched[image], alone.matched[0])
        assert torch.equal(batch.quality[image], alone.quality[0])
    assert (batch.matched >= 0).any()


@MATCHERS
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("field", ["scores", "boxes"])
def test_a_prediction_that_is_not_finite_is_ignored_and_spoils_no_other(matcher, bad, field):
    scores, predicted, objects = scene(3, seed=6)
    others = [anchor for anchor in range(16) if anchor != 5]
    expected = matcher(grid()[others], targets_of(*objects), Predictions(predicted[:, others], scores[:, others]))
    (scores if field == "scores" else predicted)[:, 5, 2] = bad
    ours = matcher(grid(), targets_of(*objects), Predictions(predicted, scores))
    assert ours.matched[:, 5].tolist() == [IGNORED] * 3
    assert (ours.quality[:, 5] == 0).all()
    assert torch.equal(ours.matched[:, others], expected.matched)
    assert torch.equal(ours.quality[:, others], expected.quality)


@MATCHERS
def test_objects_and_anchors_that_are_not_finite_match_nothing_and_spoil_no_other(matcher):
    scores, predicted, objects = scene(1, seed=7, most=0)
    objects = torch.tensor([[0.0, 0, 17, 15]])
    expected = matcher(grid(), targets_of(objects), Predictions(predicted, scores)).matched
    spoilt = torch.cat((objects, torch.full((1, 4), torch.nan)))
    assert torch.equal(matcher(grid(), targets_of(spoilt), Predictions(predicted, scores)).matched, expected)
    cells = grid()
    cells[0] = torch.nan
    assert matcher(cells, targets_of(objects), Predictions(predicted, scores)).matched[0, 0] == NEGATIVE


@MATCHERS
def test_anchors_with_their_center_in_a_crowd_are_ignored_unless_positive(matcher):
    objects = torch.tensor([[0.0, 0, 8, 8], [0, 0, 20.1, 8], [24, 24, 32, 32]])
    targets = targets_of(objects, iscrowd=[torch.tensor([0, 1, 0])])
    targets = targets._replace(valid=targets.valid & torch.tensor([True, True, False, True]))
    scores = torch.full((1, 16, CLASSES), 0.5)
    matched = matcher(grid(), targets, Predictions(grid()[None], scores)).matched[0]
    assert matched.tolist() == [0, IGNORED, IGNORED] + [NEGATIVE] * 13


@MATCHERS
def test_no_anchors_give_an_empty_and_no_objects_a_negative_assignment(matcher):
    targets = targets_of(random_boxes(3), random_boxes(0))
    empty = matcher(torch.zeros(0, 4), targets, Predictions(torch.zeros(2, 0, 4), torch.zeros(2, 0, 3)))
    assert empty.matched.shape == empty.quality.shape == (2, 0)
    scores, predicted, _ = scene(2, seed=8)
    nothing = matcher(grid(), targets_of(random_boxes(0), random_boxes(0)), Predictions(predicted, scores))
    assert (nothing.matched == NEGATIVE).all()
    assert (nothing.quality == 0).all()


@MATCHERS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_predictions_of_other_types_match_as_their_promoted_numbers(matcher, dtype):
    scores, predicted, objects = scene(4, seed=9)
    expected = matcher(grid(), targets_of(*objects), Predictions(predicted, scores))
    ours = matcher(grid().to(dtype), targets_of(*objects), Predictions(predicted.to(dtype), scores.to(dtype)))
    assert torch.equal(ours.matched, expected.matched)
    assert ours.quality.dtype == torch.float32


@pytest.mark.slow
def test_the_center_area_of_simota_counts_in_strides_of_the_anchors():
    scores, predicted, objects = scene(40, seed=10)
    cells, targets, given = grid(), targets_of(*objects), Predictions(predicted, scores)
    wide = Anchors(cells + torch.tensor([-4.0, -4, 4, 4]), cells[:, 2:] - cells[:, :2], (len(cells),))
    doubled = wide._replace(strides=2 * wide.strides)
    matcher, half = SimOTAMatcher(radius=1.0), SimOTAMatcher(radius=0.5)
    expected = matcher(cells, targets, given).matched
    assert torch.equal(matcher(wide, targets, given).matched, expected)
    assert torch.equal(half(doubled, targets, given).matched, expected)
    assert torch.equal(half(wide.boxes, targets, given).matched, expected)
    assert not torch.equal(half(wide, targets, given).matched, expected)


@MATCHERS
@pytest.mark.parametrize("predictions", [None, Predictions(torch.zeros(1, 16, 4), logits=torch.zeros(1, 16, 3))])
def test_a_call_without_scores_is_refused_with_the_repair(matcher, predictions):
    assert matcher.reads_predictions
    with pytest.raises(ValueError, match=rf"{type(matcher).__name__}: .* call it as .*Predictions\(boxes, scores="):
        matcher(grid(), targets_of(random_boxes(1)), predictions)


@MATCHERS
def test_shapes_that_disagree_are_refused(matcher):
    forward = type(matcher).forward
    scores, predicted, objects = scene(2, seed=11)
    good = {"scores": scores, "boxes": predicted, "anchors": grid(), "targets": targets_of(*objects)}
    nobody = Targets(*(entry[:, :0] for entry in good["targets"][:4]))
    for message, changed in {
        "scores (16, 3) boxes (2, 16, 4) (2, 16, C)": {"scores": scores[0]},
        "scores (2, 16, 0) boxes (2, 16, 4) (2, 16, C)": {"scores": scores[..., :0]},
        "scores (2, 3, 3) boxes (2, 16, 4) (2, 16, C)": {"scores": scores[:, :3]},
        "scores (1, 16, 3) boxes (1, 16, 4)": {"scores": scores[:1], "boxes": predicted[:1]},
        "scores (2, 16, 3) boxes (2, 3, 4)": {"boxes": predicted[:, :3]},
        "boxes (2, 16, 3) (..., 4)": {"boxes": predicted[..., :3]},
        "anchors (1, 16, 4) (N, 4) (2, N, 4)": {"anchors": grid()[None]},
        "anchors (16, 2) (..., 4)": {"anchors": grid()[:, :2]},
        "scores (2, 16, 3) boxes (2, 16, 4) (2, 5, C)": {"anchors": grid()[:5]},
        "targets 0 rows": {"targets": nobody},
    }.items():
        words = {**good, **changed}
        predictions = Predictions(words["boxes"], words["scores"])
        said = f"{type(matcher).__name__}: {message}"
        assert_refused(said, forward, matcher, words["anchors"], words["targets"], predictions)


@MATCHERS
def test_full_checks_name_what_is_wrong(matcher, monkeypatch):
    name = type(matcher).__name__
    scores, predicted, _ = scene(1, seed=13)
    targets = targets_of(torch.tensor([[0.0, 0, 8, 8], [0, 0, 9, 9]]))

    def spoilt(values, index, number):
        values = values.clone()
        values[index] = number
        return values

    strange = targets._replace(labels=torch.tensor([[0, 3]]))
    negative = targets._replace(labels=torch.tensor([[-1, 3]]))
    inverted = targets._replace(boxes=spoilt(targets.boxes, (0, 1, 0), 99))
    wrong = [
        (
            spoilt(scores, (0, 2, 1), torch.nan),
            predicted,
            grid(),
            targets,
            "scores[0, 2, 1]=nan 1 48",
        ),
        (
            spoilt(scores, (0, 2, 1), 1.5),
            predicted,
            grid(),
            targets,
            "scores[0, 2, 1]=1.5 [0, 1] 1",
        ),
        (
            spoilt(scores, (0, 2), -0.5),
            predicted,
            grid(),
            targets,
            "scores[0, 2, 0]=-0.5 [0, 1] 3",
        ),
        (
            scores,
            spoilt(predicted, (0, 1, 3), torch.inf),
            grid(),
            targets,
            "boxes[0, 1, 3]=inf 1 64",
        ),
        (
            scores,
            predicted,
            spoilt(grid(), (4, 0), torch.nan),
            targets,
            "anchors[4, 0]=nan 1 64",
        ),
        (scores, predicted, grid(), inverted, "targets.boxes[0, 1] x2 < x1 (9 < 99) 1"),
        (scores, predicted, grid(), strange, "image 0 target 1 label 3 0..2"),
        (scores, predicted, grid(), negative, "image 0 target 0 label -1 0..2"),
    ]
    for rows, found, anchors, truth, _ in wrong:
        matcher(anchors, truth, Predictions(found, rows))
    monkeypatch.setenv("DETKIT_CHECKS", "full")
    matcher(grid(), targets._replace(labels=torch.tensor([[0, 2]])), Predictions(predicted, scores))
    matcher(grid(), targets, Predictions(predicted, spoilt(spoilt(scores, (0, 2), 0), (0, 3), 1)))
    for rows, found, anchors, truth, message in wrong:
        assert_refused(f"{name}: {message}", matcher, anchors, truth, Predictions(found, rows))


@pytest.mark.parametrize(
    ("matcher", "message", "settings"),
    [
        (TaskAlignedMatcher, "candidates=0 1", {"candidates": 0}),
        (TaskAlignedMatcher, "alpha=-1 0", {"alpha": -1}),
        (TaskAlignedMatcher, "beta=inf 0", {"beta": math.inf}),
        (SimOTAMatcher, "candidates=-3 1", {"candidates": -3}),
        (SimOTAMatcher, "radius=nan 0", {"radius": math.nan}),
        (SimOTAMatcher, "iou_weight=-0.5 0", {"iou_weight": -0.5}),
    ],
)
def test_settings_that_make_no_sense_are_refused(matcher, message, settings):
    assert_refused(f"{matcher.__name__}: {message}", matcher.__init__, matcher(), **settings)


def test_printing_shows_the_settings():
    assert repr(TaskAlignedMatcher()) == "TaskAlignedMatcher(candidates=13, alpha=1.0, beta=6.0)"
    assert repr(SimOTAMatcher()) == "SimOTAMatcher(candidates=10, radius=2.5, iou_weight=3.0)"
