"""The index of anchors finds exactly the pairs that the whole matrix holds, whatever the anchors are."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import boxes, random_boxes
from thorough import sweep

from detkit.anchors.search import overlap_index as module
from detkit.anchors.search.overlap_index import OverlapIndex, Pairs, overlap_index
from detkit.boxes import box_iou, sides_of


def grid(*strides: int, extent: int = 256, ratios=(0.5, 1.0, 2.0)) -> torch.Tensor:
    """Anchors of several shapes at every cell of every level, cells row by row, as detectors lay them."""
    levels = []
    for stride in strides:
        shapes = torch.tensor([(4 * stride * r**0.5, 4 * stride / r**0.5) for r in ratios]).round()
        steps = torch.arange(0, extent, stride).float()
        centers = torch.cartesian_prod(steps, steps).flip(1)[:, None]
        levels.append(torch.cat((centers - shapes / 2, centers + shapes / 2), dim=-1).reshape(-1, 4))
    return torch.cat(levels)


def pairs_of(anchors: torch.Tensor, objects: torch.Tensor, least: torch.Tensor) -> Pairs:
    found = OverlapIndex(anchors).pairs(sides_of(objects), least)
    assert found is not None
    return found


def assert_finds_all(anchors: torch.Tensor, objects: torch.Tensor, least: torch.Tensor) -> None:
    overlaps = box_iou(objects, anchors).float()
    expected = (overlaps >= least[:, None]) & (overlaps > 0)
    found = pairs_of(anchors, objects, least)
    pairs = list(zip(found.objects.tolist(), found.anchors.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    assert sorted(pairs) == [tuple(pair) for pair in expected.nonzero().tolist()]
    assert torch.equal(found.overlaps, overlaps[found.objects, found.anchors])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("column", range(4))
def test_boxes_that_are_not_finite_overlap_as_in_box_iou(bad, column):
    one, other = random_boxes(5, seed=1), random_boxes(4, seed=2)
    one[2, column] = bad
    assert_finds_all(one, other, torch.zeros(4))


@pytest.mark.slow(2)
@given(anchors=boxes(most=40), objects=boxes(), data=st.data())
@settings(max_examples=sweep(150))
def test_hostile_anchors_are_found_like_any_others(anchors, objects, data):
    if len(anchors) and len(objects):
        floors = st.sampled_from([0.0, 1e-7, 0.1, 0.4, 0.5, 1.0])
        least = data.draw(st.lists(floors, min_size=len(objects), max_size=len(objects)))
        assert_finds_all(anchors, objects, torch.tensor(least))


@pytest.mark.slow
@pytest.mark.parametrize("least", [0.0, 0.05, 0.4, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("shuffled", [False, True])
def test_anchors_on_grids_are_found(least, shuffled):
    anchors = grid(8, 16, 32)
    anchors = anchors[torch.randperm(len(anchors), generator=torch.Generator().manual_seed(0))] if shuffled else anchors
    objects = torch.cat((random_boxes(140, extent=256, seed=3), anchors[::97]))
    assert_finds_all(anchors, objects, torch.full((len(objects),), least))


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 255, 256, 257, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_number_of_anchors_of_many_shapes_is_found(count, dtype):
    anchors, objects = random_boxes(count, seed=count, dtype=dtype), random_boxes(9, seed=1)
    assert_finds_all(anchors, objects, torch.linspace(0, 0.8, 9))
    assert_finds_all(anchors, objects.double(), torch.linspace(0, 0.8, 9))


def test_an_overlap_equal_to_the_least_is_found_and_the_next_smaller_is_not():
    anchors, objects = grid(8), random_boxes(20, extent=256, seed=5)
    best = box_iou(objects, anchors).amax(1)
    assert_finds_all(anchors, objects, best)
    assert set(pairs_of(anchors, objects, best).objects.tolist()) == set(range(20))
    above = torch.nextafter(best, torch.tensor(2.0))
    assert len(pairs_of(anchors, objects, above).objects) == 0


@given(anchors=boxes(most=40), objects=boxes())
def test_what_is_reachable_is_an_overlap_with_some_anchor(anchors, objects):
    if len(anchors) and len(objects):
        overlaps = torch.cat((box_iou(objects, anchors), torch.zeros(len(objects), 1)), dim=1)  # or with none
        reached = OverlapIndex(anchors).reachable(sides_of(objects))
        assert (overlaps == reached[:, None]).any(1).all()


def test_what_is_reachable_on_grids_is_mostly_the_best():
    anchors, objects = grid(8, 16, 32), random_boxes(300, extent=250, seed=4)
    reached, best = OverlapIndex(anchors).reachable(sides_of(objects)), box_iou(objects, anchors).amax(1)
    assert (reached <= best).all()
    assert (reached == best).float().mean() > 0.6
    assert (reached > 0.8 * best).float().mean() > 0.9


def test_a_search_looks_at_few_pairs_only():
    anchors, objects = grid(8, 16, 32, 64, extent=800), random_boxes(200, extent=790, seed=4)
    promising = OverlapIndex(anchors)._promising(sides_of(objects), torch.full((200,), 0.4))
    assert promising is not None
    assert 16 * len(promising[0]) < 0.02 * len(anchors) * len(objects)


def test_a_search_that_would_skip_nothing_says_so(monkeypatch):
    anchors, objects = torch.tensor([[0.0, 0, 9, 9]]).expand(256, 4), random_boxes(30, extent=9)
    monkeypatch.setattr(module, "_MOST_LEAVES", 480)
    assert len(pairs_of(anchors, objects, torch.zeros(30)).objects) == 30 * 256
    monkeypatch.setattr(module, "_MOST_LEAVES", 479)
    assert OverlapIndex(anchors).pairs(sides_of(objects), torch.zeros(30)) is None


@pytest.mark.parametrize(("share", "given_up"), [(1.0, False), (1 / 3, True)])
def test_a_search_gives_up_once_the_matrix_would_cost_less(share, given_up, monkeypatch):
    monkeypatch.setattr(module, "_MOST_SHARE", share)
    anchors, objects = torch.tensor([[0.0, 0, 9, 9]]).expand(2000, 4), random_boxes(300, extent=9)
    assert (OverlapIndex(anchors).pairs(sides_of(objects), torch.zeros(300)) is None) == given_up
    assert OverlapIndex(grid(8, 16)).pairs(sides_of(objects), torch.full((300,), 0.4)) is not None


def test_searches_in_pieces_find_the_same(monkeypatch):
    monkeypatch.setattr(module, "_OBJECTS_AT_ONCE", 7)
    monkeypatch.setattr(module, "_LEAVES_AT_ONCE", 11)
    assert_finds_all(grid(16, 32), random_boxes(40, extent=256, seed=2), torch.full((40,), 0.2))


def test_nodes_hold_one_shape_each_where_shapes_are_few():
    shapes = torch.tensor([5] * 300 + [7] * 256 + [9])
    places, filling = module._whole_nodes(shapes)
    assert len(places) == 512 + 256 + 256
    assert torch.equal(places[~filling], torch.arange(557))
    assert all(len(node.unique()) == 1 for node in shapes[places].view(-1, 256))
    places, filling = module._whole_nodes(torch.arange(300))
    assert places.tolist() == [*range(300), *[299] * 212]
    assert filling.sum() == 212


def test_neighbors_have_one_shape_and_lie_along_a_curve_of_zs():
    square = [(0, 0), (1, 0), (0, 1), (1, 1)]  # of four neighbors, and of four such squares
    centers = 16.0 * torch.tensor([(2 * x + dx, 2 * y + dy) for x, y in square for dx, dy in square])
    shapes = torch.tensor([[4.0, 4], [4, 8], [8, 4]])[:, None]  # by width, then by height
    expected = torch.cat((centers - shapes / 2, centers + shapes / 2), dim=-1).flatten(0, 1)
    anchors = expected[torch.randperm(48, generator=torch.Generator().manual_seed(0))]
    numbers, order = module._neighbors(sides_of(anchors))
    assert torch.equal(anchors[order], expected)
    assert numbers.unique_consecutive(return_counts=True)[1].tolist() == [16, 16, 16]


def test_the_scales_of_places_and_sides():
    numbers = torch.arange(4096, dtype=torch.int32)
    assert module._every_other_bit(numbers).tolist() == [int(f"{number:b}", 4) for number in range(4096)]
    assert module._cells(torch.tensor([-8.0, 0, 8, 4087])).tolist() == [0, 8, 16, 4095]
    assert module._cells(torch.tensor([0.0, 8, 8 * 4095])).tolist() == [0, 1, 4095]
    assert module._cells(torch.tensor([5.0, 5])).tolist() == [0, 0]
    sides = torch.tensor([0, 2.0**-15, 1, 2 - 1e-6, 2, 2 + 1e-6, 2.0**15, 1e30])
    assert module._octave_eighths(sides).tolist() == [0, 0, 120, 128, 128, 128, 240, 240]


def test_the_last_index_is_kept_and_used_for_equal_anchors_only():
    anchors = torch.tensor([[0.0, 0, 10, 10], [5, 5, 30, 20]])
    index = overlap_index(anchors)
    assert overlap_index(anchors.clone()) is index
    assert overlap_index(anchors.double()) is not index
    assert overlap_index(anchors[:1]) is not overlap_index(anchors)


def test_anchors_that_change_in_place_get_an_index_of_their_own():
    anchors = torch.tensor([[0.0, 0, 10, 10]])
    overlap_index(anchors)
    anchors += 20
    assert overlap_index(anchors).pairs(sides_of(anchors), torch.tensor([0.5])).overlaps.tolist() == [1.0]
