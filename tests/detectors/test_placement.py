"""Letterboxes: as large as fits, in the middle of gray, and exactly back."""

import pytest
import torch

from detkit.detectors import Preprocess
from detkit.detectors.placement import fitted, places_of
from detkit.structures import VOID, Detections, Images, Target

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "letterbox": True}


@pytest.mark.parametrize(
    ("size", "frame", "expected"),
    [
        ((480, 640), (416, 416), (312, 416)),
        ((640, 480), (416, 416), (416, 312)),
        ((49, 49), (416, 416), (416, 416)),  # 49 * (416 / 49) is 415.99...
        ((333, 500), (320, 608), (320, 480)),
        ((1, 9999), (32, 32), (1, 32)),
    ],
)
def test_an_image_is_as_large_as_fits(size, frame, expected):
    assert fitted(*size, frame) == expected


def test_the_places_of_images_are_read_as_they_were_made():
    images = [torch.ones(3, 10, 20), torch.zeros(3, 21, 10)]
    inside, _ = Preprocess((20, 20), **PLAIN)(images)
    assert places_of(inside) == [((10, 20), (10, 20), (5, 0)), ((20, 9), (21, 10), (0, 5))]
    plain, _ = Preprocess((20, 30))(images)
    assert places_of(plain) == [((20, 30), (10, 20), (0, 0)), ((20, 30), (21, 10), (0, 0))]
    assert places_of(Images(plain.tensors, plain.sizes)) == [((20, 30), (20, 30), (0, 0))] * 2


def test_an_image_stands_in_the_middle_of_gray():
    wide, high = torch.ones(3, 10, 20), torch.zeros(3, 21, 10)
    batch, _ = Preprocess((20, 20), **PLAIN)([wide, high])
    assert batch.tensors.shape == (2, 3, 20, 20)
    assert (batch.tensors[0, :, 5:15] == 1).all()
    assert (batch.tensors[0, :, :5] == 0.5).all()
    assert (batch.tensors[0, :, 15:] == 0.5).all()
    assert batch.offsets.tolist() == [[5, 0], [0, 5]]
    assert batch.sizes.tolist() == [[15, 20], [20, 14]]  # 9 wide: 5 pixels of gray at the left, 6 at the right
    assert (batch.tensors[1, :, :, 14:] == 0.5).all()
    normalized, _ = Preprocess((20, 20), mean=(0.5,) * 3, std=(0.25,) * 3, letterbox=True)([wide])
    assert not normalized.tensors[0, :, :5].any()


def whole(size):
    height, width = size
    return Target(
        boxes=torch.tensor([[0.0, 0, width, height], [width / 4, height / 4, width / 2, height / 2]]),
        labels=torch.tensor([0, 1]),
        keypoints=torch.tensor([[[width / 4, height / 2, 1.0]]] * 2),
        masks=torch.ones(2, *size, dtype=torch.uint8),
        segmentation=torch.ones(size, dtype=torch.uint8),
    )


@pytest.mark.parametrize("size", [(16, 32), (32, 16), (10, 10), (7, 13)])
def test_what_moves_with_the_pixels_goes_in_and_comes_back(size):
    preprocess = Preprocess((64, 64), multiple_of=48, **PLAIN)  # in a frame of 96
    batch, targets = preprocess([torch.ones(3, *size)], [whole(size)])
    (top, left), (bottom, right) = batch.offsets[0].tolist(), batch.sizes[0].tolist()
    assert targets.boxes[0, 0].tolist() == [left, top, right, bottom]
    inside = batch.tensors[0, 0, :64, :64] > 0.75
    assert torch.equal(inside.nonzero().aminmax(dim=0).min, batch.offsets[0])
    assert torch.equal(targets.masks[0, 0, :64, :64].bool()[:bottom, :right], inside[:bottom, :right])
    segmentation = targets.segmentation[0]
    assert segmentation.shape == (96, 96)
    assert torch.equal(segmentation == 1, torch.nn.functional.pad(inside, (0, 32, 0, 32)))
    assert ((segmentation == 1) | (segmentation == VOID)).all()
    rows = torch.ones(1, 2)
    found = Detections(
        targets.boxes,
        rows,
        rows.long(),
        rows.bool(),
        keypoints=targets.keypoints,
        masks=torch.ones(1, 2, 8, 8),
        segmentation=(segmentation[None] == 1).long(),
    )
    (back,) = preprocess.undo(found, batch)
    torch.testing.assert_close(back["boxes"], whole(size)["boxes"], rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(back["keypoints"], whole(size)["keypoints"], rtol=1e-6, atol=1e-5)
    assert back["masks"].shape == (2, *size)
    assert back["masks"][0].float().mean() > 0.75  # pasting rounds the corners off
    assert torch.equal(back["segmentation"], torch.ones(size).long())
    scores = found._replace(segmentation=(segmentation[None, None] == 1).float())
    assert preprocess.undo(scores, batch)[0]["segmentation"].shape == (1, *size)


def test_boxes_found_on_the_gray_are_cut_at_the_image():
    preprocess = Preprocess((20, 20), **PLAIN)
    batch, _ = preprocess([torch.ones(3, 20, 40)])
    rows = torch.ones(1, 1)
    found = Detections(torch.tensor([[[5.0, 0, 10, 20]]]), rows, rows.long(), rows.bool())
    assert preprocess.undo(found, batch)[0]["boxes"].tolist() == [[10, 0, 20, 20]]


def test_proposals_go_where_targets_go():
    preprocess, boxes = Preprocess((20, 20), **PLAIN), torch.tensor([[10.0, 0, 20, 20]])
    batch, targets = preprocess([torch.ones(3, 20, 40)], [Target(boxes=boxes, labels=torch.tensor([0]))])
    assert torch.equal(preprocess.proposals([{"boxes": boxes, "scores": torch.ones(1)}], batch).boxes, targets.boxes)
    assert targets.boxes[0, 0].tolist() == [5, 5, 10, 15]


@pytest.mark.parametrize("size", [None, 20])
def test_a_letterbox_needs_two_sides(size):
    with pytest.raises(ValueError, match=rf"Preprocess: letterbox .*\(height, width\); size={size}"):
        Preprocess(size, letterbox=True)
    assert "letterbox=True" in repr(Preprocess((4, 6), letterbox=True))
