"""ResponsibleMatcher: the best predictor of a cell, the nearest where none overlaps, one object for a cell."""

import math

import pytest
import torch
from strategies import assert_refused

from detkit.anchors import GridAnchors, ResponsibleMatcher
from detkit.structures import Anchors, Images, Predictions, Target, pad_targets


def cells(side=64, count=2, per_cell=2):
    """``count`` x ``count`` cells with anchors of the whole image, as v1 has them."""
    anchors = GridAnchors(shapes=[[(side, side)] * per_cell], strides=(side / count,))
    return anchors([torch.zeros(1, 1, count, count)], Images(torch.zeros(1, 3, side, side), torch.tensor([[side] * 2])))


def match(predicted, boxes, *, crowds=None, anchors=None):
    target = Target(boxes=torch.tensor(boxes).float().reshape(-1, 4), labels=torch.arange(len(boxes)))
    if crowds is not None:
        target["iscrowd"] = torch.tensor(crowds)
    rows = torch.zeros(8, 4)
    for place, box in predicted.items():
        rows[place] = torch.tensor(box).float()
    found = ResponsibleMatcher()(
        cells() if anchors is None else anchors, pad_targets([target]), Predictions(rows[None])
    )
    return found.matched[0].tolist(), found.quality[0].tolist()


BOX = [40, 10, 60, 30]  # its center lies in the second of four cells: anchors 2 and 3


def test_the_predictor_with_the_highest_overlap_is_responsible():
    matched, quality = match({0: BOX, 2: [40, 10, 60, 20], 3: [40, 10, 60, 25]}, [BOX])
    assert matched == [-1, -1, -1, 0, -1, -1, -1, -1]
    assert quality == [0, 0, 0, 0.75, 0, 0, 0, 0]


@pytest.mark.parametrize(("near", "far"), [(2, 3), (3, 2)])
def test_without_overlap_the_nearest_is_responsible_and_any_overlap_beats_it(near, far):
    assert match({near: [61, 10, 81, 30], far: [0, 0, 200, 9]}, [BOX])[0][near] == 0
    matched, quality = match({near: [60.5, 10, 80, 30], far: [0, 0, 200, 10.1]}, [BOX])
    assert matched[far] == 0
    assert quality[far] > 0


def test_distance_is_measured_in_widths_and_heights_of_the_anchors():
    wide = cells()
    wide = wide._replace(boxes=wide.boxes * torch.tensor([4.0, 1, 4, 1]) - torch.tensor([96.0, 0, 96, 0]))
    predicted = {2: [80, 10, 100, 30], 3: [40, 31, 60, 51]}  # 40 pixels to the right, 21 below
    assert match(predicted, [BOX])[0][3] == 0
    shifted = wide._replace(boxes=cells().boxes + torch.tensor([-96.0, 0, 96, 0]))
    assert match(predicted, [BOX], anchors=shifted)[0][2] == 0


def test_equal_predictors_are_chosen_by_their_place():
    assert match({}, [BOX])[0][2:4] == [0, -1]
    assert match({2: BOX, 3: BOX}, [BOX])[0][2:4] == [0, -1]


def test_a_cell_learns_the_first_of_its_objects_only():
    second = [42, 12, 58, 28]
    for boxes in ([BOX, second], [second, BOX]):
        matched, quality = match({2: BOX, 3: second}, [*boxes, [0, 40, 10, 60]])
        assert sorted(matched[:4]) == [-1, -1, -1, 0]
        assert quality[matched.index(0)] == 1
        assert matched[4] == 2


def test_crowds_hide_the_cells_that_they_cover_and_flat_boxes_match_nothing():
    matched, _ = match({}, [[0, 0, 64, 20], BOX], crowds=[True, False])
    assert matched == [-2, -2, 1, -2, -1, -1, -1, -1]  # 20 of 32 rows
    for flat in ([10, 10, 10, 20], [20, 20, 10, 10], [math.nan] * 4, [0, 0, math.inf, 9]):
        matched, _ = match({}, [flat, [2, 2, 22, 22]])
        assert matched == [1, *[-1] * 7]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_prediction_that_is_not_finite_comes_last_in_its_own_cell(bad):
    assert match({2: [bad] * 4}, [BOX])[0] == [-1, -1, -1, 0, -1, -1, -1, -1]
    assert match({2: [bad] * 4, 3: [bad] * 4}, [BOX])[0].index(0) in (2, 3)


def test_no_anchors_and_wrong_shapes():
    targets = pad_targets([Target(boxes=torch.tensor([[0.0, 0, 9, 9]]), labels=torch.tensor([0]))])
    nothing = Anchors(torch.zeros(0, 4), torch.zeros(0, 2), (0,))
    assert ResponsibleMatcher()(nothing, targets, Predictions(torch.zeros(1, 0, 4))).matched.shape == (1, 0)
    call = ResponsibleMatcher.forward, ResponsibleMatcher(), cells(), targets
    assert_refused("ResponsibleMatcher predictions Predictions(boxes)", *call)
    assert_refused("ResponsibleMatcher predictions.boxes (1, 3, 4) (1, N, 4)", *call, Predictions(torch.zeros(1, 3, 4)))
