"""Threshold matching against the loop its definition spells and against torchvision, by matrix and by search."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import assert_refused, boxes, random_boxes, targets_of
from thorough import sweep
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou as torchvision_box_iou

from detkit.anchors import matrix, threshold
from detkit.anchors.search import groups, overlap_index
from detkit.anchors.search import threshold as search
from detkit.anchors.threshold import ThresholdMatcher
from detkit.boxes import box_iou
from detkit.structures import IGNORED, NEGATIVE, Targets


@pytest.fixture(params=["matrix", "batch", "search"])
def way(request, monkeypatch):
    """All ways to the result, on inputs of any size: of an image, of a batch as on a device, by search."""
    if request.param == "batch":
        monkeypatch.setattr(threshold, "_compare", threshold._compare_batch)
    monkeypatch.setattr(groups, "_SMALLEST_SEARCH", 1 if request.param == "search" else 2**60)
    return request.param


def slow_match(
    overlaps: torch.Tensor, positive_iou=0.5, negative_iou=0.4, low_quality=True
) -> tuple[list[int], list[float]]:
    """``overlaps`` (objects, anchors) of one image: the rule, literally."""
    table, matched, quality = overlaps.tolist(), [], []
    for anchor in range(overlaps.shape[1]):
        column = [row[anchor] for row in table]
        best = max(column, default=-1.0)
        forced = low_quality and any(row[anchor] == max(row) and row[anchor] > 0 for row in table)
        enough = best >= torch.tensor(positive_iou).item() and bool(column)
        unsure = best >= torch.tensor(negative_iou).item() and bool(column)
        matched.append(column.index(best) if enough or forced else IGNORED if unsure else NEGATIVE)
        quality.append(best if enough or forced else 0.0)
    return matched, quality


def torchvision_match(overlaps: torch.Tensor, positive_iou=0.5, negative_iou=0.4, low_quality=True) -> torch.Tensor:
    """As torchvision, but for the divergence "matching-zero-overlap": objects that touch no anchor are left out."""
    rows = (overlaps.amax(1) > 0).nonzero().squeeze(1)
    if len(rows) == 0:
        return torch.full((overlaps.shape[1],), NEGATIVE)
    matched = Matcher(positive_iou, negative_iou, allow_low_quality_matches=low_quality)(overlaps[rows])
    return torch.where(matched >= 0, rows[matched.clamp(min=0)], matched)


def assert_as_slow(anchors, objects, **settings) -> None:
    found = ThresholdMatcher(**settings)(anchors, targets_of(objects))
    matched, quality = slow_match(box_iou(objects, anchors), **settings)
    assert found.matched[0].tolist() == matched
    assert found.quality[0].tolist() == quality


RULES = [
    {},
    {"low_quality": False},
    {"positive_iou": 0.7, "negative_iou": 0.3},
    {"positive_iou": 0.5, "negative_iou": 0.5},
    {"positive_iou": 1.0, "negative_iou": 0.0},
    {"positive_iou": 0.0, "negative_iou": 0.0},
    {"positive_iou": 0.0, "negative_iou": 0.0, "low_quality": False},
]


@pytest.mark.parametrize("rule", RULES, ids=str)
@given(anchors=boxes(most=12), objects=boxes(most=5))
def test_hostile_boxes_match_as_the_slow_loop(rule, anchors, objects):
    for least in (1, 2**60):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(groups, "_SMALLEST_SEARCH", least)
            assert_as_slow(anchors, objects, **rule)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_random_boxes_match_as_the_slow_loop(way, rule):
    for seed in range(5):
        assert_as_slow(random_boxes(300, seed=seed), random_boxes(9, seed=90 + seed), **rule)


WHOLE = st.integers(0, 6)


@pytest.mark.slow(3)
@given(
    anchors=st.lists(st.tuples(WHOLE, WHOLE, WHOLE, WHOLE), min_size=1, max_size=20),
    objects=st.lists(st.tuples(WHOLE, WHOLE, WHOLE, WHOLE), min_size=1, max_size=6),
    rule=st.sampled_from(RULES),
)
@settings(max_examples=sweep(150))
def test_boxes_full_of_ties_match_as_the_slow_loop(anchors, objects, rule):
    rows = [torch.tensor([(x, y, x + w, y + h) for x, y, w, h in some]).float() for some in (anchors, objects)]
    for least in (1, 2**60):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(groups, "_SMALLEST_SEARCH", least)
            assert_as_slow(*rows, **rule)


def whole_boxes(count: int, generator: torch.Generator, *, extent: int, longest: int) -> torch.Tensor:
    low = torch.randint(0, extent, (count, 2), generator=generator)
    return torch.cat((low, low + torch.randint(1, longest, (count, 2), generator=generator)), dim=1).float()


@pytest.mark.slow(2)
@pytest.mark.parametrize("rule", [{}, {"low_quality": False}, {"positive_iou": 0.7, "negative_iou": 0.3}], ids=str)
def test_thousands_of_random_images_match_as_in_torchvision(way, rule):
    generator = torch.Generator().manual_seed(0)
    matcher = ThresholdMatcher(**rule)
    for _ in range(sweep(34)):
        anchors = whole_boxes(30, generator, extent=12, longest=9)
        images = [whole_boxes(1 + i % 4, generator, extent=14, longest=9) for i in range(100)]
        found = matcher(anchors, targets_of(*images)).matched
        expected = torch.stack([torchvision_match(torchvision_box_iou(rows, anchors), **rule) for rows in images])
        assert torch.equal(found, expected)


def retinanet_anchors(extent: int) -> torch.Tensor:
    """Nine anchors at every cell of four levels, rounded to whole pixels as torchvision's generator does."""
    levels = []
    for stride in (8, 16, 32, 64):
        sides = [int(stride * 4 * 2 ** (k / 3)) for k in range(3)]
        shapes = torch.tensor([(s / r**0.5, s * r**0.5) for r in (0.5, 1.0, 2.0) for s in sides])
        corners = torch.cat((-shapes / 2, shapes / 2), dim=1).round()
        steps = torch.arange(0, extent, stride).float()
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        levels.append((torch.stack((x, y, x, y), dim=-1)[:, :, None] + corners).reshape(-1, 4))
    return torch.cat(levels)


@pytest.mark.parametrize("seed", range(48))
def test_batches_as_retinanet_has_them_match_as_in_torchvision_ties_included(monkeypatch, seed):
    generator = torch.Generator().manual_seed(seed)
    anchors = retinanet_anchors(224 + 32 * (seed % 3))
    if seed % 2:
        anchors = torch.cat((anchors, anchors[::5]))[torch.randperm(len(anchors), generator=generator)]
    images = [
        whole_boxes(1 + (seed + 5 * i) % 17, generator, extent=220, longest=(9, 60, 200)[i % 3]) for i in range(4)
    ]
    images = [torch.cat((rows, rows[: len(rows) // 2], anchors[i : i + 2])) for i, rows in enumerate(images)]
    monkeypatch.setattr(groups, "_SMALLEST_SEARCH", 1)
    found = ThresholdMatcher()(anchors, targets_of(*images)).matched
    for row, rows in zip(found, images, strict=True):
        assert torch.equal(row, torchvision_match(torchvision_box_iou(rows, anchors)))


def test_thresholds_are_reached_at_equality():
    anchors = torch.tensor([[0.0, 0, 10, 5], [0, 0, 10, 4], [0, 0, 10, 3.9], [0, 0, 10, 4.9], [0, 0, 10, 10]])
    targets = targets_of(torch.tensor([[0.0, 0, 10, 10]]))
    assert ThresholdMatcher()(anchors, targets).matched.tolist() == [[0, IGNORED, NEGATIVE, IGNORED, 0]]
    quality = torch.tensor([[0.5, 0, 0, 0, 1]])
    torch.testing.assert_close(ThresholdMatcher()(anchors, targets).quality, quality, rtol=0, atol=0)


def test_every_anchor_that_ties_for_the_best_of_an_object_is_positive(way):
    anchors = torch.tensor([[0.0, 0, 8, 8], [1, 1, 9, 9], [50, 50, 58, 58], [0, 0, 8, 9]])
    targets = targets_of(torch.tensor([[2.0, 2, 4, 4]]))
    assert ThresholdMatcher()(anchors, targets).matched.tolist() == [[0, 0, -1, -1]]
    assert ThresholdMatcher(low_quality=False)(anchors, targets).matched.tolist() == [[-1] * 4]


def test_an_anchor_that_is_an_objects_best_takes_the_object_that_it_fits_best_itself(way):
    anchors = torch.tensor([[0.0, 0, 10, 10], [30, 30, 40, 40]])
    targets = targets_of(torch.tensor([[0.0, 0, 3, 10], [0, 0, 2, 1]]))
    assert ThresholdMatcher()(anchors, targets).matched.tolist() == [[0, -1]]
    assert ThresholdMatcher()(anchors, targets).quality.tolist() == [[pytest.approx(0.3), 0]]


def test_an_object_that_touches_no_anchor_makes_nothing_positive(way):
    anchors, objects = random_boxes(20), torch.tensor([[200.0, 200, 210, 210], [50, 50, 50, 50]])
    assert (ThresholdMatcher()(anchors, targets_of(objects)).matched == NEGATIVE).all()
    overlaps = torchvision_box_iou(objects, anchors)
    assert (Matcher(0.5, 0.4, allow_low_quality_matches=True)(overlaps) == 0).all()  # "matching-zero-overlap"


def test_a_batch_equals_a_loop_and_padding_changes_nothing(way):
    images = [random_boxes(count, seed=count) for count in (5, 0, 2)]
    anchors = torch.stack([random_boxes(60, seed=seed) for seed in (10, 11, 12)])
    matcher = ThresholdMatcher()
    batch, shared = matcher(anchors, targets_of(*images)), matcher(anchors[0], targets_of(*images))
    for i, rows in enumerate(images):
        alone, first = matcher(anchors[i], targets_of(rows)), matcher(anchors[0], targets_of(rows))
        for k in range(2):
            assert torch.equal(batch[k][i], alone[k][0])
            assert torch.equal(shared[k][i], first[k][0])
    assert (batch.matched[1] == NEGATIVE).all()
    assert (batch.quality[1] == 0).all()


def test_rows_that_are_not_valid_match_nothing(way):
    targets = targets_of(random_boxes(3))
    targets = targets._replace(boxes=torch.cat((targets.boxes[:, :3], torch.tensor([[[0.0, 0, 60, 60]]])), dim=1))
    anchors = torch.cat((random_boxes(40, seed=1), torch.tensor([[0.0, 0, 60, 60]])))
    assert torch.equal(
        ThresholdMatcher()(anchors, targets).matched, ThresholdMatcher()(anchors, targets_of(random_boxes(3))).matched
    )


def test_order_of_the_anchors_only_reorders_the_result(way):
    anchors, objects = random_boxes(400, seed=1), random_boxes(6, seed=2)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    found, expected = (ThresholdMatcher()(rows, targets_of(objects)) for rows in (anchors[order], anchors))
    assert torch.equal(found.matched[0], expected.matched[0, order])
    assert torch.equal(found.quality[0], expected.quality[0, order])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_is_no_positive_and_spoils_no_other(way, bad):
    anchors, objects = random_boxes(40, seed=1), random_boxes(3, seed=2)
    expected = ThresholdMatcher()(anchors, targets_of(objects)).matched[0]
    worse = torch.cat((anchors, torch.tensor([[0, 0, bad, bad]])))
    matched = ThresholdMatcher()(worse, targets_of(objects)).matched[0]
    assert matched.tolist() == [*expected.tolist(), NEGATIVE]
    spoilt = torch.cat((objects, torch.full((1, 4), bad)))
    assert torch.equal(ThresholdMatcher()(anchors, targets_of(spoilt)).matched[0], expected)


def test_anchors_mostly_inside_a_crowd_are_ignored_unless_positive(way):
    objects = torch.tensor([[0.0, 0, 10, 10], [20, 0, 120, 100]])
    anchors = torch.tensor([[0.0, 0, 10, 10], [30, 30, 40, 40], [15, 0, 25, 10], [15, 0, 25.1, 10], [25, 0, 15, 10]])
    targets = targets_of(objects, iscrowd=[torch.tensor([0, 1])])
    assert ThresholdMatcher()(anchors, targets).matched.tolist() == [[0, -2, -1, -2, -1]]
    only_crowd = targets_of(objects[1:], iscrowd=[torch.tensor([1])])
    assert ThresholdMatcher()(objects[1:], only_crowd).matched.tolist() == [[IGNORED]]


def test_no_anchors_give_an_empty_assignment(way):
    for anchors in (torch.zeros(0, 4), torch.zeros(2, 0, 4)):
        found = ThresholdMatcher()(anchors, targets_of(random_boxes(3), random_boxes(0)))
        assert found.matched.shape == found.quality.shape == (2, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.uint8])
def test_anchors_of_other_types_match_as_their_promoted_numbers(way, dtype):
    anchors, targets = random_boxes(40, seed=1).to(dtype), targets_of(random_boxes(4, seed=2))
    found, expected = (ThresholdMatcher()(rows, targets) for rows in (anchors, anchors.double()))
    assert torch.equal(found.matched, expected.matched)
    assert found.quality.dtype == torch.float32
    assert found.matched.dtype == torch.int64


def retinanet_batch() -> tuple[torch.Tensor, Targets]:
    anchors, images = retinanet_anchors(256), [random_boxes(12, seed=i, extent=250) for i in range(4)]
    return anchors, targets_of(*images)


@pytest.mark.slow
def test_all_ways_through_the_search_agree(monkeypatch):
    anchors, targets = retinanet_batch()
    expected = ThresholdMatcher()(anchors, targets)
    for module, name, value in (
        (groups, "_SMALLEST_SEARCH", 2**60),
        (matrix, "_ENTRIES", 5000),
        (groups, "_OBJECTS_TOGETHER", 20),
        (overlap_index, "_MOST_LEAVES", 0),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(groups, "_SMALLEST_SEARCH", 1)
            patch.setattr(module, name, value)
            if name == "_ENTRIES":
                patch.setattr(groups, "_SMALLEST_SEARCH", 2**60)
            found = ThresholdMatcher()(anchors, targets)
        assert torch.equal(found.matched, expected.matched)
        assert torch.equal(found.quality, expected.quality)


@pytest.mark.slow
@pytest.mark.parametrize("entries", [2**20, 700], ids=["whole", "in pieces"])
def test_tiny_objects_that_tie_on_many_anchors_match_as_in_torchvision(way, monkeypatch, entries):
    """Each has its highest IoU, far below the thresholds, with every smallest anchor around it."""
    monkeypatch.setattr(matrix, "_ENTRIES", entries)
    anchors, images = retinanet_anchors(64), [random_boxes(60, seed=seed, extent=60) for seed in (0, 1)]
    images = [torch.cat((rows[:, :2], rows[:, :2] + 2), dim=1).round() for rows in images]
    found = ThresholdMatcher()(anchors, targets_of(*images))
    for image, rows in enumerate(images):
        overlaps = torchvision_box_iou(rows, anchors)
        assert torch.equal(found.matched[image], torchvision_match(overlaps))
        assert (found.matched[image] >= 0).sum() > 100
        best = torch.where(found.matched[image] >= 0, overlaps.amax(0), 0)
        assert torch.equal(found.quality[image], best)


def test_anchors_that_a_tiny_object_claims_are_compared_with_all_objects_only_once(monkeypatch):
    """Once for each anchor, not for each pair of an object and an anchor: that was objects squared."""
    monkeypatch.setattr(groups, "_SMALLEST_SEARCH", 1)
    seen, count = [], search.best_matches
    monkeypatch.setattr(search, "best_matches", lambda rows, own: seen.append(own.area.numel()) or count(rows, own))
    anchors, rows = retinanet_anchors(64), random_boxes(60, extent=60)
    ThresholdMatcher()(anchors, targets_of(torch.cat((rows[:, :2], rows[:, :2] + 2), dim=1)))
    assert 0 < sum(seen) <= len(anchors)


def test_large_batches_never_make_the_matrix(monkeypatch):
    anchors, targets = retinanet_batch()
    monkeypatch.setattr(groups, "_SMALLEST_SEARCH", 1)
    monkeypatch.setattr(threshold, "_compare", lambda *rows, **rule: pytest.fail("the matrix"))
    found = ThresholdMatcher(positive_iou=0.5, negative_iou=0.4)(anchors, targets)
    assert (found.matched >= 0).any(1).all()


def test_shapes_that_do_not_fit_are_refused():
    assert_refused(
        "ThresholdMatcher: anchors (3, 5, 4) (N, 4) (1, N, 4)",
        ThresholdMatcher.forward,
        ThresholdMatcher(),
        torch.zeros(3, 5, 4),
        targets_of(random_boxes(1)),
    )


def test_printing_shows_the_settings():
    assert repr(ThresholdMatcher()) == "ThresholdMatcher(positive_iou=0.5, negative_iou=0.4, low_quality=True)"


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("settings", [{"positive_iou": 0.0, "negative_iou": 0.0}, {}])
def test_rows_that_are_not_finite_match_nothing_even_where_overlap_zero_would_do(settings, bad):
    good, broken = torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([[0.0, 0, bad, 9]])
    assert ThresholdMatcher(**settings)(broken, targets_of(good)).matched.tolist() == [[NEGATIVE]]
    assert ThresholdMatcher(**settings)(good, targets_of(broken)).matched.tolist() == [[NEGATIVE]]
