"""ShapeMatcher: YOLO's goldens, cells, collisions, what is ignored, and that nothing else matters."""

import math

import pytest
import torch
from strategies import assert_refused

from detkit.anchors import GridAnchors, ShapeMatcher, shape_iou
from detkit.anchors.shape import claim_shapes, last_claims
from detkit.structures import Anchors, Images, Predictions, Target, pad_targets

V3 = [(10, 13), (16, 30), (33, 23), (30, 61), (62, 45), (59, 119), (116, 90), (156, 198), (373, 326)]
STRIDES = (8, 16, 32)


def v3_anchors(side=416):
    features = [torch.zeros(1, 1, side // stride, side // stride) for stride in STRIDES]
    images = Images(torch.zeros(1, 3, side, side), torch.tensor([[side, side]]))
    return GridAnchors(shapes=[V3[i : i + 3] for i in (0, 3, 6)], strides=STRIDES)(features, images)


def centered(*sizes, at=(100.0, 200.0)):
    """Boxes of these (width, height) around a point."""
    return torch.tensor([[at[0] - w / 2, at[1] - h / 2, at[0] + w / 2, at[1] + h / 2] for w, h in sizes])


def match(anchors, boxes, predicted=None, *, crowds=None, **settings):
    target = Target(boxes=boxes, labels=torch.arange(len(boxes)))
    if crowds is not None:
        target["iscrowd"] = torch.tensor(crowds)
    predicted = torch.zeros(len(anchors.boxes), 4) if predicted is None else predicted
    return ShapeMatcher(**settings)(anchors, pad_targets([target]), Predictions(predicted[None]))


@pytest.mark.parametrize(
    ("size", "shape", "overlap"),
    [((12, 14), 0, 0.7738), ((50, 50), 4, 0.7401), ((120, 100), 6, 0.87), ((400, 300), 8, 0.8628)],
)
def test_of_nine_shapes_on_three_levels_the_best_one_learns_the_object_in_its_cell(size, shape, overlap):
    anchors = v3_anchors()
    found = match(anchors, centered(size))
    (row,) = (found.matched[0] >= 0).nonzero().squeeze(1).tolist()
    own = anchors.boxes[row]
    assert (own[2:] - own[:2]).tolist() == list(V3[shape])
    stride = STRIDES[shape // 3]
    assert ((own[:2] + own[2:]) / 2).tolist() == [(100 // stride + 0.5) * stride, (200 // stride + 0.5) * stride]
    assert found.claims[0, 0] == row
    assert shape_iou(torch.tensor([size]), torch.tensor(V3)).max().item() == pytest.approx(overlap, abs=5e-5)


@pytest.mark.parametrize(("x", "column"), [(0.0, 0), (31.999, 0), (32.0, 1), (415.9, 12), (416.0, None), (-0.1, None)])
def test_a_cell_begins_at_its_left_and_ends_before_its_right_side(x, column):
    anchors = GridAnchors(shapes=[[(100, 100)]], strides=(32,))(
        [torch.zeros(1, 1, 13, 13)], Images(torch.zeros(1, 3, 416, 416), torch.tensor([[416, 416]]))
    )
    found = match(anchors, centered((100, 100), at=(x, 10.0)))
    assert found.matched[0].nonzero().shape[0] == 169 - (column is not None)
    assert found.claims[0, 0] == (-1 if column is None else column)


def test_cells_whose_size_is_no_whole_number_have_no_gaps():
    anchors = GridAnchors(shapes=[[(30, 30)]])(
        [torch.zeros(1, 1, 13, 13)], Images(torch.zeros(1, 3, 417, 401), torch.tensor([[417, 401]]))
    )
    edges = [401 / 13 * i for i in range(13)]
    boxes = torch.cat([centered((30, 30), at=(x, 417 / 13 * 3)) for x in edges])
    assert (match(anchors, boxes).claims[0, :13] >= 0).all()


def test_the_later_of_two_objects_in_a_cell_with_one_shape_is_matched_and_both_claim():
    anchors = v3_anchors()
    found = match(anchors, torch.cat((centered((120, 100)), centered((10, 13)), centered((118, 96)))))
    first, other, last = found.claims[0, :3].tolist()
    assert first == last != other
    assert found.matched[0, first] == 2
    assert found.matched[0, other] == 1
    assert last_claims(torch.tensor([[0, 0, 1], [1, -1, -1]]), 3).tolist() == [[1, 2, -1], [-1, 0, -1]]


def test_equal_shapes_and_equal_levels_go_to_the_lower_anchor():
    boxes = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 8], [0, 0, 8, 8]])
    cells = torch.tensor([[8.0, 8], [8, 8], [16, 16]])
    boxes[2] += 4
    assert claim_shapes(torch.tensor([[[0.0, 0, 8, 8]]]), torch.tensor([[True]]), boxes, cells).tolist() == [[0]]


def test_an_anchor_whose_box_overlaps_an_object_more_than_the_threshold_is_ignored_unless_it_is_matched():
    anchors, box = v3_anchors(), centered((120, 100))
    predicted = torch.zeros(len(anchors.boxes), 4)
    predicted[5], predicted[6] = box[0], box[0] + torch.tensor([0.0, 0, 0, 100])  # IoU 1 and 1/2
    half, less = match(anchors, box, predicted, ignore_iou=0.5), match(anchors, box, predicted, ignore_iou=0.49)
    assert half.matched[0, 5:8].tolist() == [-2, -1, -1]  # exactly the threshold is background
    assert less.matched[0, 5:8].tolist() == [-2, -2, -1]
    own = half.claims[0, 0]
    predicted[own] = predicted[6]
    found = match(anchors, box, predicted, ignore_iou=0.0)
    assert found.matched[0, own] == 0
    assert found.quality[0, own] == 0.5
    assert found.quality[0].count_nonzero() == 1


def test_crowds_are_ignored_and_claim_nothing():
    anchors = v3_anchors(64)
    found = match(anchors, torch.tensor([[-500.0, -500, 900, 900]]), crowds=[True])
    assert (found.matched == -2).all()
    assert (found.claims == -1).all()


@pytest.mark.parametrize("box", [[20, 20, 20, 60], [30, 30, 30, 30], [9, 9, 5, 5], [math.nan] * 4, [0, 0, math.inf, 9]])
def test_boxes_without_area_or_not_finite_match_nothing_and_hide_nothing(box):
    anchors = v3_anchors(64)
    boxes = torch.cat((torch.tensor([box], dtype=torch.float32), centered((20, 20), at=(20.0, 30.0))))
    found, alone = match(anchors, boxes), match(anchors, boxes[1:])
    assert found.claims[0, 0] == -1
    assert torch.equal(found.matched.clamp(max=0), alone.matched)


def test_predictions_that_are_not_finite_are_neither_ignored_nor_good():
    anchors, box = v3_anchors(64), centered((20, 20), at=(20.0, 30.0))
    found = match(anchors, box, torch.full((len(anchors.boxes), 4), math.nan))
    assert sorted(found.matched[0].unique().tolist()) == [-1, 0]


def test_a_batch_is_its_images_one_by_one_and_padding_changes_nothing():
    anchors, generator = v3_anchors(96), torch.Generator().manual_seed(0)
    corners = torch.rand(3, 5, 2, 2, generator=generator).sort(2).values.flatten(2) * 96
    predicted = torch.rand(3, len(anchors.boxes), 2, 2, generator=generator).sort(2).values.flatten(2) * 96
    counts = (5, 0, 3)
    rows = [Target(boxes=corners[i, :n], labels=torch.zeros(n).long()) for i, n in enumerate(counts)]
    matcher = ShapeMatcher(ignore_iou=0.3)
    found = matcher(anchors, pad_targets(rows), Predictions(predicted))
    for i, (row, count) in enumerate(zip(rows, counts, strict=True)):
        alone = matcher(anchors, pad_targets([row]), Predictions(predicted[i : i + 1]))
        assert torch.equal(found.matched[i], alone.matched[0])
        assert torch.equal(found.quality[i], alone.quality[0])
        assert torch.equal(found.claims[i, :count], alone.claims[0, :count])
        assert (found.claims[i, count:] == -1).all()
    assert (found.matched == -2).any()
    assert (found.matched[1] == -1).all()


def test_no_anchors_and_plain_boxes():
    targets = pad_targets([Target(boxes=centered((8, 8), at=(4.0, 4.0)), labels=torch.tensor([0]))])
    nothing = Anchors(torch.zeros(0, 4), torch.zeros(0, 2), (0,))
    found = ShapeMatcher()(nothing, targets, Predictions(torch.zeros(1, 0, 4)))
    assert found.matched.shape == (1, 0)
    assert found.claims.tolist() == [[-1]]
    cells = torch.tensor([[0.0, 0, 8, 8], [8, 0, 16, 8]])
    assert ShapeMatcher()(cells, targets, Predictions(cells[None] * 0)).matched.tolist() == [[0, -1]]


def test_objects_are_compared_piece_by_piece_with_the_same_result(monkeypatch):
    anchors, boxes = v3_anchors(), torch.cat((centered((120, 100)), centered((12, 14))))
    whole = match(anchors, boxes)
    monkeypatch.setattr("detkit.anchors.candidates.PAIRS_IN_CACHE", 20)
    for one, other in zip(match(anchors, boxes), whole, strict=True):
        assert torch.equal(one, other)


def test_what_cannot_be_matched_is_refused():
    anchors = v3_anchors(32)
    targets = pad_targets([Target(boxes=centered((8, 8)), labels=torch.tensor([0]))])
    assert_refused(
        "ShapeMatcher predictions Predictions(boxes)", ShapeMatcher.forward, ShapeMatcher(), anchors, targets
    )
    few = Predictions(torch.zeros(1, 3, 4))
    assert_refused(
        "ShapeMatcher predictions.boxes (1, 3, 4) (1, N, 4)",
        ShapeMatcher.forward,
        ShapeMatcher(),
        anchors,
        targets,
        few,
    )
    assert_refused("ShapeMatcher ignore_iou=1.5 [0, 1]", ShapeMatcher, ignore_iou=1.5)
