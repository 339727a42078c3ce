"""Bipartite matching against the loop its definition spells: flat argmax over the whole matrix, round by round."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import assert_refused, boxes, random_boxes, targets_of, unhooked
from thorough import sweep
from torchvision.models.detection._utils import SSDMatcher

from detkit.anchors import IGNORED, NEGATIVE, BipartiteMatcher, bipartite, gather_assigned
from detkit.anchors.bipartite import match_bipartite
from detkit.anchors.search import groups, overlap_index
from detkit.boxes import box_iou
from detkit.structures import Assignment, Targets


@pytest.fixture(params=["matrix", "search"])
def way(request, monkeypatch):
    """Both ways to the result, on inputs of any size."""
    monkeypatch.setattr(groups, "_SMALLEST_SEARCH", 1 if request.param == "search" else 2**60)
    return request.param


def slow_match(overlaps: torch.Tensor, positive_iou=0.5, negative_iou=None, force_match_zero=False) -> list[int]:
    """``overlaps`` (objects, anchors) of one image: the rule of the paper, literally."""
    table = overlaps.T.tolist()  # anchor major
    matched = []
    for row in table:
        best = max(row, default=-1)
        unsure = best >= (positive_iou if negative_iou is None else negative_iou) and bool(row)
        matched.append(row.index(best) if best >= positive_iou and row else IGNORED if unsure else NEGATIVE)
    for _ in range(len(overlaps)):
        flat = [value for row in table for value in row]
        best = max(flat, default=-1)
        if best < 0 or (best <= 1e-6 and not force_match_zero):
            break
        anchor, target = divmod(flat.index(best), len(overlaps))
        matched[anchor] = target
        table[anchor] = [-1] * len(overlaps)
        for row in table:
            row[target] = -1
    return matched


def match_table(table: list[list[float]], *, positive_iou=0.5, negative_iou=None, **settings) -> Assignment:
    """The definition on a table (anchors, objects) of overlaps, and a padded row."""
    overlaps = torch.tensor([[*row, -1.0] for row in table]).T[None]
    negative_iou = positive_iou if negative_iou is None else negative_iou
    return match_bipartite(overlaps, positive_iou=positive_iou, negative_iou=negative_iou, **settings)


CONFLICT = [[0.7, 0.6], [0.4, 0.3], [0.1, 0.2]]


def test_conflict_is_settled_greedily_or_by_torchvisions_rule():
    assert match_table(CONFLICT).matched.tolist() == [[0, 1, NEGATIVE]]
    assert match_table(CONFLICT, greedy=False).matched.tolist() == [[1, NEGATIVE, NEGATIVE]]
    assert SSDMatcher(0.5)(torch.tensor(CONFLICT).T).tolist() == [1, -1, -1]


def test_slide_example():
    table = torch.full((9, 4), 0.05)
    table[1, 2], table[6, 0], table[4, 3], table[8, 1] = 0.9, 0.8, 0.7, 0.6  # x23, x71, x54, x92
    table[1, 0], table[6, 3], table[4, 1], table[1, 1] = 0.85, 0.75, 0.65, 0.88  # better, but taken by then
    matched = match_table(table.tolist(), positive_iou=0.95).matched[0].tolist()
    assert matched == [-1, 2, -1, -1, 3, -1, 0, -1, 1]


def test_quality_is_the_overlap_of_the_match_and_0_without_one():
    quality = match_table(CONFLICT).quality
    torch.testing.assert_close(quality, torch.tensor([[0.7, 0.3, 0]]), rtol=0, atol=0)


def test_targets_of_the_anchor_chapter():
    truth = torch.tensor([[0.1, 0.08, 0.52, 0.92], [0.55, 0.2, 0.9, 0.88]])
    anchors = [[0, 0.1, 0.2, 0.3], [0.15, 0.2, 0.4, 0.4], [0.63, 0.05, 0.88, 0.98], [0.66, 0.45, 0.8, 0.8]]
    anchors = torch.tensor([*anchors, [0.57, 0.3, 0.92, 0.9]])
    assignment = BipartiteMatcher(positive_iou=0.5)(anchors, targets_of(truth))
    assert gather_assigned(assignment, targets_of(truth)).labels.tolist() == [[-1, 0, 1, -1, 1]]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("negative", [None, 0.3])
@given(
    table=st.integers(1, 5).flatmap(
        lambda objects: st.lists(
            st.lists(st.sampled_from([0.0, 1e-7, 0.1, 0.3, 0.4, 0.5, 0.5, 0.9]), min_size=objects, max_size=objects),
            min_size=1,
            max_size=9,
        )
    )
)
def test_tables_full_of_ties_match_as_the_flat_argmax_loop(table, negative, force):
    ours = match_table(table, negative_iou=negative, force_match_zero=force)
    with pytest.MonkeyPatch.context() as patch:  # as on a device, and with no more than a pair at a time
        patch.setattr(bipartite, "greedy_claims", lambda rows, **rule: bipartite._claims_in_turn(rows, *rule.values()))
        device = match_table(table, negative_iou=negative, force_match_zero=force)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bipartite, "_PAIRS_AT_ONCE", 1)
        assert match_table(table, negative_iou=negative, force_match_zero=force).matched.equal(ours.matched)
    assert device.matched.equal(ours.matched)
    assert ours.matched[0].tolist() == slow_match(torch.tensor(table).T, 0.5, negative, force)


def assert_as_slow(anchors: torch.Tensor, objects: torch.Tensor, **settings) -> None:
    overlaps = box_iou(objects, anchors)
    found = BipartiteMatcher(**settings)(anchors, targets_of(objects))
    matched = found.matched[0]
    assert matched.tolist() == slow_match(overlaps, **settings)
    expected = torch.cat((overlaps, torch.zeros(1, len(anchors))))[matched.clamp(min=-1), torch.arange(len(anchors))]
    assert torch.equal(found.quality[0], expected)


@pytest.mark.parametrize("force", [False, True])
@given(anchors=boxes(most=9), objects=boxes(most=5))
@pytest.mark.slow
def test_hostile_boxes_match_as_the_flat_argmax_loop(anchors, objects, force):
    for least in (1, 2**60):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(groups, "_SMALLEST_SEARCH", least)
            assert_as_slow(anchors, objects, force_match_zero=force)


WHOLE = st.integers(0, 6)
WHOLE_BOXES = st.lists(st.tuples(WHOLE, WHOLE, WHOLE, WHOLE), min_size=1, max_size=14)


@pytest.mark.slow(4)
@given(anchors=WHOLE_BOXES, objects=WHOLE_BOXES, negative_iou=st.sampled_from([0.0, 0.3, 0.5]))
@settings(max_examples=sweep(150))
def test_boxes_full_of_ties_and_rivals_match_as_the_flat_argmax_loop(anchors, objects, negative_iou):
    rows = [torch.tensor([(x, y, x + w, y + h) for x, y, w, h in some]).float() for some in (anchors, objects)]
    for least in (1, 2**60):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(groups, "_SMALLEST_SEARCH", least)
            assert_as_slow(*rows, negative_iou=negative_iou)


def test_many_objects_in_one_place_take_ever_worse_anchors(way):
    steps = torch.arange(0, 64, 4).float()
    corners = torch.cartesian_prod(steps, steps)
    anchors = torch.cat((corners, corners + 16), dim=1)
    objects = torch.tensor([[20.0, 20, 24, 24]]).repeat(40, 1)  # 0.06 of an anchor: far below both thresholds
    objects[20:] += torch.arange(20)[:, None] / 8
    assert_as_slow(anchors, objects)
    touched = box_iou(objects, anchors).amax(0) > 1e-6
    assert 12 < touched.sum() < 40
    assert torch.equal(BipartiteMatcher()(anchors, targets_of(objects)).matched[0] >= 0, touched)


@pytest.mark.parametrize("greedy", [True, False])
def test_all_ways_through_the_search_agree(monkeypatch, greedy):
    anchors, images = random_boxes(3000, seed=1), [random_boxes(12, seed=2 + i) for i in range(4)]
    targets, matcher = targets_of(*images), BipartiteMatcher(positive_iou=0.6, negative_iou=0.4, greedy=greedy)
    monkeypatch.setattr(groups, "_SMALLEST_SEARCH", 1)
    expected = matcher(anchors, targets)
    for place, name, value in (
        (groups, "_SMALLEST_SEARCH", 2**60),
        (groups, "_OBJECTS_TOGETHER", 20),
        (overlap_index, "_MOST_LEAVES", 0),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, value)
            found = matcher(anchors, targets)
        assert torch.equal(found.matched, expected.matched)
        assert torch.equal(found.quality, expected.quality)
    monkeypatch.setattr(bipartite, "overlap_matrix", None)
    assert torch.equal(matcher(anchors, targets).matched, expected.matched)


def test_objects_that_all_want_the_same_anchors_need_few_steps(monkeypatch):
    """300 that claim 300: each step settles all pairs of a level, none takes the objects one by one."""
    steps, offers = [], bipartite.accepted_offers
    monkeypatch.setattr(bipartite, "accepted_offers", lambda *rows: steps.append(len(rows[1])) or offers(*rows))
    monkeypatch.setattr(bipartite, "_PAIRS_AT_ONCE", 5000)
    overlaps = torch.rand(1, 300, 300, generator=torch.Generator().manual_seed(0)) / 9 + torch.linspace(0.1, 0.8, 300)
    claimed = bipartite.greedy_claims(overlaps)
    assert claimed.equal(bipartite._claims_in_turn(overlaps, False))
    assert len(steps) < 20
    assert sum(steps) < 100_000


def test_random_boxes_match_as_the_flat_argmax_loop_and_as_torchvision(way):
    anchors, objects = random_boxes(300, seed=1), random_boxes(12, seed=2)
    overlaps = box_iou(objects, anchors)
    for positive in (0.3, 0.5, 0.9):
        greedy = BipartiteMatcher(positive_iou=positive)(anchors, targets_of(objects)).matched[0]
        assert greedy.tolist() == slow_match(overlaps, positive)
        theirs = BipartiteMatcher(positive_iou=positive, greedy=False)(anchors, targets_of(objects)).matched[0]
        assert theirs.tolist() == SSDMatcher(positive)(overlaps).tolist()


def test_more_objects_than_anchors_leave_some_without(way):
    anchors, objects = random_boxes(3, seed=1), random_boxes(20, seed=2)
    matched = BipartiteMatcher(positive_iou=1.0)(anchors, targets_of(objects)).matched[0]
    assert matched.tolist() == slow_match(box_iou(objects, anchors), 1.0)
    assert len(set(matched.tolist()) - {-1}) == 3


def test_minus_zero_overlap_ties_with_zero():
    assert match_table([[-0.0], [0.0]], force_match_zero=True).matched.tolist() == [[0, -1]]
    assert match_table([[-0.0, -0.0]], force_match_zero=True).matched.tolist() == [[0]]


def test_overlap_of_one_millionth_or_less_is_not_forced_unless_asked():
    for value, matched in ((1e-6, -1), (2e-6, 0), (0.0, -1)):
        assert match_table([[value]]).matched.tolist() == [[matched]]
        assert match_table([[value]], greedy=False).matched.tolist() == [[matched]]
        assert match_table([[value]], force_match_zero=True).matched.tolist() == [[0]]


def test_anchors_between_the_thresholds_are_ignored():
    table = [[0.9], [0.5], [0.49], [0.3], [0.29]]
    assert match_table(table, negative_iou=0.3).matched.tolist() == [[0, 0, -2, -2, -1]]


@pytest.mark.parametrize("greedy", [True, False])
def test_a_batch_equals_a_loop_and_padding_changes_nothing(way, greedy):
    images = [random_boxes(count, seed=count) for count in (5, 0, 2)]
    anchors = torch.stack([random_boxes(60, seed=seed) for seed in (10, 11, 12)])
    matcher = BipartiteMatcher(greedy=greedy, force_match_zero=True)
    batch, shared = matcher(anchors, targets_of(*images)), matcher(anchors[0], targets_of(*images))
    for i, rows in enumerate(images):
        alone = matcher(anchors[i], targets_of(rows))
        assert torch.equal(batch.matched[i], alone.matched[0])
        assert torch.equal(batch.quality[i], alone.quality[0])
        assert torch.equal(shared.matched[i], matcher(anchors[0], targets_of(rows)).matched[0])
    assert (batch.matched[1] == NEGATIVE).all()
    assert (batch.quality[1] == 0).all()


@pytest.mark.parametrize("greedy", [True, False])
def test_no_anchors_give_an_empty_assignment(way, greedy):
    assignment = BipartiteMatcher(greedy=greedy)(torch.zeros(0, 4), targets_of(random_boxes(3), random_boxes(0)))
    assert assignment.matched.shape == assignment.quality.shape == (2, 0)


def test_targets_without_rows_are_refused():
    targets = Targets(
        torch.zeros(1, 0, 4), torch.zeros(1, 0).long(), torch.zeros(1, 0).bool(), torch.zeros(1, 0).bool()
    )
    assert_refused(
        "BipartiteMatcher: targets 0 rows 1 pad_targets",
        BipartiteMatcher(),
        random_boxes(2),
        targets,
    )
    assert_refused(
        "BipartiteMatcher: targets.boxes (1, 1, 5) (..., 4)",
        BipartiteMatcher(),
        random_boxes(2),
        targets._replace(boxes=torch.zeros(1, 1, 5)),
    )


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_is_no_positive_and_spoils_no_other(way, bad):
    anchors, objects = random_boxes(40, seed=1), random_boxes(3, seed=2)
    expected = BipartiteMatcher()(anchors, targets_of(objects)).matched[0]
    worse = torch.cat((anchors, anchors[:1]))
    worse[40] = torch.tensor([0, 0, bad, bad])
    matched = BipartiteMatcher()(worse, targets_of(objects)).matched[0]
    assert torch.equal(matched[:40], expected)
    assert matched[40] == NEGATIVE
    spoilt = torch.cat((objects, torch.full((1, 4), bad)))
    assert torch.equal(BipartiteMatcher()(anchors, targets_of(spoilt)).matched[0], expected)


def test_anchors_mostly_inside_a_crowd_are_ignored_unless_positive(way):
    objects = torch.tensor([[0.0, 0, 10, 10], [20, 0, 120, 100]])
    anchors = torch.tensor([[0.0, 0, 10, 10], [30, 30, 40, 40], [15.5, 0, 24, 10], [15, 0, 24, 10], [24, 0, 15, 10]])
    targets = targets_of(objects, iscrowd=[torch.tensor([0, 1])])
    assert BipartiteMatcher()(anchors, targets).matched.tolist() == [[0, -2, -1, -1, -1]]
    assert BipartiteMatcher()(anchors + torch.tensor([1.0, 0, 1, 0]), targets).matched.tolist() == [[0, -2, -2, -2, -1]]
    only_crowd = targets_of(objects[1:], iscrowd=[torch.tensor([1])])
    assert BipartiteMatcher()(objects[1:], only_crowd).matched.tolist() == [[IGNORED]]


def test_order_of_the_anchors_only_reorders_the_result(way):
    anchors, objects = random_boxes(80, seed=1), random_boxes(6, seed=2)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    matched = BipartiteMatcher()(anchors, targets_of(objects)).matched[0]
    assert torch.equal(BipartiteMatcher()(anchors[order], targets_of(objects)).matched[0], matched[order])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_anchors_of_other_types_match_as_their_promoted_numbers(way, dtype):
    anchors, targets = random_boxes(40, seed=1).to(dtype), targets_of(random_boxes(4, seed=2))
    expected = BipartiteMatcher()(anchors.float(), targets)
    ours = BipartiteMatcher()(anchors, targets)
    assert torch.equal(ours.matched, expected.matched)
    assert ours.quality.dtype == torch.float32


def test_printing_shows_the_settings():
    assert repr(BipartiteMatcher()) == "BipartiteMatcher(positive_iou=0.5, negative_iou=0.5, greedy=True)"
    assert unhooked(BipartiteMatcher.extra_repr)(BipartiteMatcher(greedy=False)).endswith("greedy=False")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize(
    "settings", [{"force_match_zero": True}, {"positive_iou": 0.0}, {"greedy": False, "force_match_zero": True}]
)
def test_rows_that_are_not_finite_match_nothing_even_where_overlap_zero_would_do(settings, bad):
    good, broken = torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([[0.0, 0, bad, 9]])
    assert BipartiteMatcher(**settings)(broken, targets_of(good)).matched.tolist() == [[NEGATIVE]]
    assert BipartiteMatcher(**settings)(good, targets_of(broken)).matched.tolist() == [[NEGATIVE]]
