"""Center sampling against a slow reference in plain Python, and its documented corners."""

import math

import pytest
import torch
from strategies import assert_refused

from detkit.anchors.center import CenterMatcher, centerness
from detkit.structures import IGNORED, NEGATIVE, Target, Targets, pad_targets


def target(boxes: list[list[float]], **more: torch.Tensor) -> Target:
    return Target(boxes=torch.tensor(boxes).reshape(-1, 4), labels=torch.zeros(len(boxes), dtype=torch.int64), **more)


def cells(stride: int, count: int) -> torch.Tensor:
    """The squares of ``count`` x ``count`` cells of one level."""
    y, x = torch.meshgrid(torch.arange(count) * stride, torch.arange(count) * stride, indexing="ij")
    corners = torch.stack((x, y), dim=-1).reshape(-1, 2).float()
    return torch.cat((corners, corners + stride), dim=1)


LEVELS = torch.cat((cells(8, 16), cells(16, 8), cells(32, 4)))


def expected_row(anchor: list[float], boxes: list[list[float]], *, radius=1.5, reach=(4.0, 8.0)) -> int:
    """What the definition says, in doubles and words."""
    x, y = (anchor[0] + anchor[2]) / 2, (anchor[1] + anchor[3]) / 2
    stride = anchor[2] - anchor[0]
    low = 0 if stride == 8 else reach[0] * stride
    high = math.inf if stride == 32 else reach[1] * stride
    best, best_area = NEGATIVE, math.inf
    for row, (x1, y1, x2, y2) in enumerate(boxes):
        sides = x - x1, y - y1, x2 - x, y2 - y
        central = max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2)) < radius * stride
        area = (x2 - x1) * (y2 - y1)
        if min(sides) > 0 and central and low < max(sides) < high and area < best_area:
            best, best_area = row, area
    return best


@pytest.mark.parametrize("settings", [{}, {"radius": 0.7}, {"reach": (2.0, 3.0)}])
def test_it_does_what_its_definition_says(settings):
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(2, 24, 2, generator=generator) * 128
    boxes = torch.cat((corners.amin(0), corners.amax(0)), dim=1)
    found = CenterMatcher(**settings)(LEVELS, pad_targets([target(boxes.tolist())])).matched[0]
    expected = [expected_row(anchor, boxes.tolist(), **settings) for anchor in LEVELS.tolist()]
    assert found.tolist() == expected
    assert len({row for row in expected if row >= 0}) > 8  # many objects are learned


def test_every_image_is_matched_on_its_own_and_padding_matches_nothing():
    many, none = target([[10, 10, 60, 60], [70, 20, 100, 50]]), target([])
    together = CenterMatcher()(LEVELS, pad_targets([many, none]))
    alone = CenterMatcher()(LEVELS, pad_targets([many]))
    assert together.matched[0].tolist() == alone.matched[0].tolist()
    assert (together.matched[1] == NEGATIVE).all()
    assert (together.quality[1] == 0).all()


def test_of_several_objects_the_smallest_wins_then_the_lower_row():
    boxes = [[0, 0, 40, 40], [4, 4, 36, 36], [4, 4, 36, 36]]
    matched = CenterMatcher()(torch.tensor([[16.0, 16, 24, 24]]), pad_targets([target(boxes)])).matched
    assert matched.tolist() == [[1]]


def test_small_objects_go_to_the_fine_level_and_large_ones_to_the_coarse():
    strides = LEVELS[:, 2] - LEVELS[:, 0]
    for side, stride in ((30, 8), (160, 16), (600, 32)):
        box = [64 - side / 2, 64 - side / 2, 64 + side / 2, 64 + side / 2]
        matched = CenterMatcher()(LEVELS, pad_targets([target([box])])).matched[0]
        assert set(strides[matched >= 0].tolist()) == {stride}


def test_every_bound_is_strict():
    """One point at (8, 8) of a level with stride 16, between a finer and a coarser level: it reaches 64 to 128."""
    point, others = [0.0, 0, 16, 16], [[400.0, 400, 408, 408], [400, 400, 432, 432]]

    def learns(*box: float) -> bool:
        matched = CenterMatcher()(torch.tensor([point, *others]), pad_targets([target([list(box)])])).matched
        return matched[0, 0].item() == 0

    assert learns(-57, -57, 73, 73)  # 65 to every side
    assert not learns(-56, -56, 72, 72)  # 64
    assert learns(-119, -119, 135, 135)  # 127
    assert not learns(-120, -120, 136, 136)  # 128
    assert learns(-57 + 23, -57, 73 + 23, 73)  # 23 from the center of the box
    assert not learns(-57 + 24, -57, 73 + 24, 73)  # one and a half strides


def test_quality_is_the_centerness_of_the_match():
    boxes = torch.tensor([[0.0, 0, 30, 40]])
    result = CenterMatcher()(torch.tensor([[8.0, 12, 16, 20]]), pad_targets([target(boxes.tolist())]))
    expected = math.sqrt(12 / 18 * 16 / 24)
    assert result.matched.tolist() == [[0]]
    assert result.quality.item() == pytest.approx(expected)


def test_points_of_a_crowd_are_ignored_unless_they_have_an_object():
    boxes = [[0, 0, 64, 64], [10, 10, 40, 40]]
    matched = CenterMatcher()(cells(8, 16), pad_targets([target(boxes, iscrowd=torch.tensor([1, 0]))])).matched
    inside = (cells(8, 16)[:, 2:] <= 64).all(1)
    assert set(matched[0, inside].tolist()) == {IGNORED, 1}
    assert set(matched[0, ~inside].tolist()) == {NEGATIVE}


@pytest.mark.parametrize("bad", [[20, 20, 20, 60], [40, 40, 10, 10], [math.nan, 0, 9, 9], [0, 0, math.inf, 9]])
def test_a_box_without_area_or_number_matches_nothing_and_disturbs_nobody(bad):
    good = [10.0, 10, 60, 60]
    alone = CenterMatcher()(LEVELS, pad_targets([target([good])])).matched
    both = CenterMatcher()(LEVELS, pad_targets([target([good, bad])])).matched
    assert both.tolist() == alone.tolist()


def test_no_points_match_no_objects():
    result = CenterMatcher()(torch.zeros(0, 4), pad_targets([target([[0, 0, 9, 9]])]))
    assert result.matched.shape == result.quality.shape == (1, 0)


def test_pieces_of_the_objects_make_no_difference(monkeypatch):
    truth = pad_targets([target([[10, 10, 60, 60], [30, 30, 120, 110]])])
    whole = CenterMatcher()(LEVELS, truth)
    monkeypatch.setattr("detkit.anchors.candidates.PAIRS_IN_CACHE", 20)
    pieces = CenterMatcher()(LEVELS, truth)
    assert (whole.matched >= 0).any()
    assert pieces.matched.tolist() == whole.matched.tolist()
    assert pieces.quality.tolist() == whole.quality.tolist()


def test_wrong_arguments_are_named():
    for radius in (0.0, -1.0, math.inf, math.nan):
        assert_refused(f"CenterMatcher: radius={radius} 0", CenterMatcher, radius=radius)
    for reach in ((8.0, 4.0), (4.0, 4.0)):
        assert_refused(f"CenterMatcher: reach={reach} lower", CenterMatcher, reach=reach)
    assert_refused("CenterMatcher: reach[0]=0.0 0", CenterMatcher, reach=(0.0, 4.0))
    assert CenterMatcher(radius=0.5, reach=(0.5, math.inf)).reach == (0.5, math.inf)
    someone, nobody = pad_targets([target([[0, 0, 9, 9]])]), torch.zeros(1, 0, dtype=torch.bool)
    empty = Targets(torch.zeros(1, 0, 4), torch.zeros(1, 0, dtype=torch.int64), nobody, nobody)
    assert_refused(
        "CenterMatcher: targets 0 rows 1 pad_targets",
        CenterMatcher(),
        LEVELS,
        empty,
    )
    assert_refused(
        "CenterMatcher: anchors (1, 336, 4) (N, 4)",
        CenterMatcher.forward,
        CenterMatcher(),
        LEVELS[None],
        someone,
    )


def test_centerness_is_one_in_the_middle_and_nothing_on_a_side():
    distances = torch.tensor([[5.0, 5, 5, 5], [0, 5, 10, 5], [-3, 5, 5, 5], [-3, -3, -3, -3], [1, 2, 4, 8]])
    assert centerness(distances).tolist() == [1, 0, 0, 0, 0.25]
    for unit in (7, 1 / 64):
        torch.testing.assert_close(centerness(distances * unit), centerness(distances))


def test_it_prints_its_settings():
    assert repr(CenterMatcher(radius=2.0)) == "CenterMatcher(radius=2.0, reach=(4.0, 8.0))"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_anchor_that_is_not_finite_changes_no_other(bad):
    targets = pad_targets([target([[1.0, 1, 9, 9], [0, 0, 100, 100]])])
    expected = CenterMatcher()(LEVELS, targets)
    assert (expected.matched >= 0).any()
    found = CenterMatcher()(torch.cat((LEVELS, torch.tensor([[0.0, 0, bad, 8]]))), targets)
    assert torch.equal(found.matched[:, :-1], expected.matched)
    assert found.matched[0, -1] == NEGATIVE


def test_objects_of_nearly_one_size_do_not_tie():
    """torchvision's FCOS compares 1e8 - area in float32, whose steps are 8: entry fcos-equal-areas."""
    found = CenterMatcher()(LEVELS, pad_targets([target([[0.0, 0, 30, 30], [0, 0, 30, 29.9]])]))
    assert set(found.matched[found.matched >= 0].tolist()) == {1}
