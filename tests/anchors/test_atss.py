"""ATSS against the loop of its algorithm 1 in plain Python, and the settling of rival claims."""

import random
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import assert_refused, boxes, random_boxes, targets_of
from thorough import sweep

from detkit.anchors import IGNORED, NEGATIVE
from detkit.anchors import atss as module
from detkit.anchors.atss import ATSSMatcher
from detkit.boxes import box_centers, box_iou, points_in_boxes
from detkit.structures import Anchors, Targets


def levels(*sides: float, extent: int = 32) -> tuple[torch.Tensor, list[int]]:
    """Square anchors of these sides, one a cell of as many pixels, level after level; and how many each level has."""
    parts = []
    for side in sides:
        steps = torch.arange(0, extent, side)
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        corner = torch.stack((x, y), -1).reshape(-1, 2).float()
        parts.append(torch.cat((corner, corner + side), 1))
    return torch.cat(parts), [len(part) for part in parts]


def on_levels(boxes: torch.Tensor, counts: list[int]) -> Anchors:
    """The boxes as anchors of levels with ``counts`` each."""
    return Anchors.of(boxes)._replace(counts=counts)


def slow_match(anchors: torch.Tensor, objects: torch.Tensor, counts: list[int], candidates: int = 9) -> list[int]:
    """Algorithm 1, line by line; overlaps are given by box_iou, which has its own tests."""
    overlaps = box_iou(objects, anchors).float().tolist()
    middles = [((x1 + x2) / 2, (y1 + y2) / 2) for x1, y1, x2, y2 in anchors.tolist()]
    claims: list[list[tuple[float, int]]] = [[] for _ in middles]
    for target, (x1, y1, x2, y2) in enumerate(objects.tolist()):
        near: list[int] = []
        start = 0
        for count in counts:

            def distance(anchor: int) -> float:
                x, y = middles[anchor]
                return (x - (x1 + x2) / 2) ** 2 + (y - (y1 + y2) / 2) ** 2  # noqa: B023

            near += sorted(range(start, start + count), key=lambda anchor: (distance(anchor), anchor))[:candidates]
            start += count
        values = [overlaps[target][anchor] for anchor in near]
        threshold = statistics.mean(values) + (statistics.stdev(values) if len(values) > 1 else 0) if values else 0
        for anchor in near:
            x, y = middles[anchor]
            if overlaps[target][anchor] >= threshold and overlaps[target][anchor] > 0 and x1 < x < x2 and y1 < y < y2:
                claims[anchor].append((-overlaps[target][anchor], target))
    return [min(claim)[1] if claim else NEGATIVE for claim in claims]


def test_an_object_takes_the_anchors_above_mean_plus_deviation_with_a_center_inside():
    anchors, counts = levels(8, 16)
    objects = torch.tensor([[1.0, 1, 17, 15], [20, 20, 27, 30]])
    matched = ATSSMatcher(candidates=4)(on_levels(anchors, counts), targets_of(objects)).matched[0]
    assert matched.tolist() == slow_match(anchors, objects, counts, 4)
    assert matched[16] == 0  # the anchor of 16 pixels that fits the first object
    assert (matched == 1).any()


@pytest.mark.slow
@pytest.mark.parametrize("candidates", [1, 3, 9])
def test_thousands_of_small_images_match_as_in_the_loop(candidates):
    """On whole pixels, where distances and overlaps tie often and float32 computes every distance exactly."""
    rng = random.Random(candidates)
    anchors, counts = levels(8, 16)
    anchors = torch.cat((anchors, anchors[:3]))  # the same anchor twice, on a third level
    counts = [*counts, 3]
    positives = 0
    for _ in range(sweep(16)):
        images = []
        for _ in range(84):
            rows = [[rng.randrange(0, 24) for _ in range(2)] for _ in range(rng.randrange(3))]
            sides = [[rng.randrange(0, 20) for _ in range(2)] for _ in rows]
            images.append(
                torch.tensor([[x, y, x + w, y + h] for (x, y), (w, h) in zip(rows, sides, strict=True)]).float()
            )
        images = [image.reshape(-1, 4) for image in images]
        matched = ATSSMatcher(candidates=candidates)(on_levels(anchors, counts), targets_of(*images)).matched
        for row, image in zip(matched.tolist(), images, strict=True):
            assert row == slow_match(anchors, image, counts, candidates)
            positives += sum(value >= 0 for value in row)
    assert positives > 12 * sweep(16)


@given(anchors=boxes(most=10, huge=1e6), objects=boxes(most=4, huge=1e6), data=st.data())
def test_hostile_boxes_match_within_the_rules(anchors, objects, data):
    cut = data.draw(st.integers(0, len(anchors)))
    counts = [cut, len(anchors) - cut]
    assignment = ATSSMatcher(candidates=2)(on_levels(anchors, counts), targets_of(objects))
    overlaps = box_iou(objects, anchors)
    for anchor, target in enumerate(assignment.matched[0].tolist()):
        assert (assignment.quality[0, anchor] > 0) == (target >= 0)
        if target >= 0:
            assert points_in_boxes(box_centers(anchors[anchor]), objects[target])
            assert assignment.quality[0, anchor] == overlaps[target, anchor]


@given(seed=st.integers(0, 2**20))
def test_every_object_has_at_most_candidates_times_levels_positives(seed):
    anchors, counts = levels(8, 16)
    matched = ATSSMatcher(candidates=2)(on_levels(anchors, counts), targets_of(random_boxes(3, seed=seed, extent=30)))
    for target in range(3):
        assert int((matched.matched == target).sum()) <= 4


@given(seed=st.integers(0, 2**20), shift=st.integers(-64, 64))
def test_moving_everything_by_whole_pixels_changes_nothing(seed, shift):
    anchors, counts = levels(8, 16)
    objects = (random_boxes(3, seed=seed, extent=30) * 4).round() / 4
    expected = ATSSMatcher()(on_levels(anchors, counts), targets_of(objects))
    moved = ATSSMatcher()(on_levels(anchors + shift, counts), targets_of(objects + shift))
    assert torch.equal(moved.matched, expected.matched)


@given(seed=st.integers(0, 2**20), data=st.data())
def test_the_order_of_the_objects_only_renames_them(seed, data):
    anchors, counts = levels(8, 16)
    objects = random_boxes(4, seed=seed, extent=30)
    order = torch.tensor(data.draw(st.permutations(range(4))))
    expected = ATSSMatcher()(on_levels(anchors, counts), targets_of(objects))
    mixed = ATSSMatcher()(on_levels(anchors, counts), targets_of(objects[order]))
    assert torch.equal(mixed.quality, expected.quality)
    assert torch.equal(torch.where(mixed.matched >= 0, order[mixed.matched.clamp(min=0)], NEGATIVE), expected.matched)


def test_a_level_with_fewer_anchors_than_candidates_gives_all_of_them():
    anchors, counts = levels(8, 16, 32)
    objects = torch.tensor([[0.0, 0, 30, 30]])
    matched = ATSSMatcher()(on_levels(anchors, counts), targets_of(objects)).matched[0]
    assert matched.tolist() == slow_match(anchors, objects, counts)
    assert matched[-1] == 0


def test_a_single_candidate_is_its_own_threshold():
    objects = torch.tensor([[0.0, 0, 10, 10]])
    assert ATSSMatcher()(on_levels(objects - 2, [1]), targets_of(objects)).matched.tolist() == [[0]]
    apart = torch.tensor([[4.0, 4, 4, 4]])  # the center is inside, but nothing overlaps
    assert ATSSMatcher()(on_levels(apart, [1]), targets_of(objects)).matched.tolist() == [[NEGATIVE]]


def test_equal_overlaps_reach_their_mean_in_spite_of_rounding():
    anchors = torch.tensor([[0.0, 0, 7, 3]]).repeat(11, 1)
    matched = ATSSMatcher(candidates=11)(on_levels(anchors, [11]), targets_of(torch.tensor([[0.0, 0, 9, 9]]))).matched
    assert matched.tolist() == [[0] * 11]


def test_a_center_on_the_border_is_outside():
    anchors = torch.tensor([[0.0, 0, 10, 10]])
    for objects, matched in (([5.0, 0, 20, 10], -1), ([4.9, 0, 20, 10], 0), ([0, 5, 10, 9], -1), ([0, 4.9, 10, 9], 0)):
        assert ATSSMatcher()(on_levels(anchors, [1]), targets_of(torch.tensor([objects]))).matched.item() == matched
    for objects, matched in (([0.0, 0, 5, 10], -1), ([0.0, 0, 5.1, 10], 0), ([0, 0, 9, 5], -1), ([0, 0, 9, 5.1], 0)):
        assert ATSSMatcher()(on_levels(anchors, [1]), targets_of(torch.tensor([objects]))).matched.item() == matched


def test_nine_candidates_a_level_are_the_default():
    assert ATSSMatcher().candidates == 9
    assert repr(ATSSMatcher(candidates=5)) == "ATSSMatcher(candidates=5)"


def test_few_objects_at_a_time_give_the_same_as_all_at_once(monkeypatch):
    anchors, counts = levels(8, 16)
    targets = targets_of(random_boxes(5, seed=1, extent=30), random_boxes(7, seed=2, extent=30))
    expected = ATSSMatcher()(on_levels(anchors, counts), targets)
    monkeypatch.setattr(module, "PAIRS_IN_CACHE", 70)
    assert torch.equal(ATSSMatcher()(on_levels(anchors, counts), targets).matched, expected.matched)


def test_a_batch_equals_a_loop_with_shared_anchors_and_with_those_of_each_image():
    anchors, counts = levels(8, 16)
    images = [random_boxes(count, seed=count, extent=30) for count in (5, 0, 2)]
    own = torch.stack([anchors, anchors + 1, anchors + 2])
    shared = ATSSMatcher()(on_levels(anchors, counts), targets_of(*images))
    batch = ATSSMatcher()(on_levels(own, counts), targets_of(*images))
    for i, rows in enumerate(images):
        alone = ATSSMatcher()(on_levels(anchors, counts), targets_of(rows))
        assert torch.equal(shared.matched[i], alone.matched[0])
        assert torch.equal(shared.quality[i], alone.quality[0])
        alone = ATSSMatcher()(on_levels(own[i], counts), targets_of(rows))
        assert torch.equal(batch.matched[i], alone.matched[0])
    assert (shared.matched[1] == NEGATIVE).all()
    assert (shared.matched[0] >= 0).any()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_is_no_positive_and_spoils_no_other(bad):
    anchors, counts = levels(8, 16)
    objects = random_boxes(3, seed=2, extent=30)
    expected = ATSSMatcher(candidates=5)(on_levels(anchors, counts), targets_of(objects)).matched[0]
    worse = torch.cat((anchors, torch.tensor([[0, 0, bad, bad], [-bad, -bad, bad, bad]])))
    # The last level has 6 anchors now, two of them bad, for 5 candidates.
    matched = ATSSMatcher(candidates=5)(on_levels(worse, [counts[0], counts[1] + 2]), targets_of(objects)).matched[0]
    assert matched.tolist() == [*expected.tolist(), NEGATIVE, NEGATIVE]
    spoilt = torch.cat((objects, torch.full((1, 4), bad)))
    assert torch.equal(ATSSMatcher(candidates=5)(on_levels(anchors, counts), targets_of(spoilt)).matched[0], expected)


def test_huge_coordinates_stay_finite():
    anchors = torch.tensor([[0.0, 0, 1e38, 1e38], [-3e38, -3e38, 3e38, 3e38], [0, 0, 10, 10]])
    assignment = ATSSMatcher(candidates=1)(on_levels(anchors, [3]), targets_of(torch.tensor([[0.0, 0, 10, 10]])))
    assert assignment.matched.tolist() == [[-1, -1, 0]]
    assert assignment.quality.tolist() == [[0, 0, 1]]


def test_anchors_mostly_inside_a_crowd_are_ignored_unless_positive():
    anchors, counts = levels(8)
    targets = targets_of(torch.tensor([[0.0, 0, 8, 8], [0, 0, 21, 8]]), iscrowd=[torch.tensor([0, 1])])
    matched = ATSSMatcher()(on_levels(anchors, counts), targets).matched[0]
    assert matched[:5].tolist() == [0, IGNORED, IGNORED, NEGATIVE, NEGATIVE]
    only = targets_of(torch.tensor([[0.0, 0, 8, 8]]), iscrowd=[torch.tensor([1])])
    assert ATSSMatcher()(on_levels(anchors, counts), only).matched[0, :2].tolist() == [IGNORED, NEGATIVE]


def test_no_anchors_and_no_levels_give_an_empty_assignment():
    targets = targets_of(random_boxes(3), random_boxes(0))
    for counts in ([], [0], [0, 0]):
        assignment = ATSSMatcher()(on_levels(torch.zeros(0, 4), counts), targets)
        assert assignment.matched.shape == assignment.quality.shape == (2, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.int64])
def test_anchors_of_other_types_match_as_their_promoted_numbers(dtype):
    anchors, counts = levels(8, 16)
    targets = targets_of(random_boxes(4, seed=2, extent=30))
    expected = ATSSMatcher()(on_levels(anchors, counts), targets)
    ours = ATSSMatcher()(on_levels(anchors.to(dtype), counts), targets)
    assert torch.equal(ours.matched, expected.matched)
    assert ours.quality.dtype == torch.float32


def test_what_does_not_fit_together_is_refused():
    anchors, _ = levels(8, 16)
    targets, matcher = targets_of(random_boxes(2)), ATSSMatcher()
    nobody = Targets(*(entry[:, :0] for entry in targets[:4]))
    assert_refused("ATSSMatcher: candidates=0 1", ATSSMatcher, candidates=0)
    for wrong in ([16], [21, -1], []):
        assert_refused(
            f"ATSSMatcher: anchors.counts={wrong} {sum(wrong)} level together 20 anchors",
            matcher,
            on_levels(anchors, wrong),
            targets,
        )
    for message, arguments in {
        "anchors (2, 20, 4) (N, 4) (1, N, 4)": (anchors.expand(2, -1, 4), targets),
        "anchors (1, 1, 20, 4) (N, 4) (1, N, 4)": (anchors[None, None], targets),
        "anchors (20, 3) (..., 4)": (anchors[:, :3], targets),
        "targets.boxes (1, 2, 3) (..., 4)": (
            anchors,
            targets._replace(boxes=targets.boxes[..., :3]),
        ),
        "targets 0 rows 1 pad_targets": (anchors, nobody),
    }.items():
        assert_refused(f"ATSSMatcher: {message}", ATSSMatcher.forward, matcher, *arguments)


@pytest.mark.parametrize("name", ["anchors", "targets.boxes"])
def test_full_checks_name_a_box_that_is_inverted(monkeypatch, name):
    monkeypatch.setenv("DETKIT_CHECKS", "full")
    anchors, counts = levels(8, 16)
    objects = random_boxes(2)
    (anchors if name == "anchors" else objects)[1] = torch.tensor([9.0, 0, 1, 5])
    with pytest.raises(ValueError, match=rf"^ATSSMatcher: {name}\[[0, ]*1\]: x2 < x1 \(1 < 9\)"):
        ATSSMatcher()(on_levels(anchors, counts), targets_of(objects))
