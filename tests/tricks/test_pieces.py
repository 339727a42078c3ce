"""Pieces: what the target says of a part of an image, against loops over objects and pixels."""

import pytest
import torch
from batches import assert_in_step, batches, target_of
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from detkit.structures import FIELDS, VOID
from detkit.structures.rows import complete_rows
from detkit.tricks.pieces import Piece, View, draw_piece, nearest_pixels, place_target, resized

EVERYTHING = View(0.0, 0.0)


@st.composite
def pieces(draw, height, width, canvas):
    """A part of an image, and a place on the canvas."""

    def stretch(length):
        start = draw(st.integers(0, length - 1))
        return start, draw(st.integers(start + 1, length))

    (top, bottom), (left, right) = stretch(height), stretch(width)
    (up, down), (west, east) = stretch(canvas[0]), stretch(canvas[1])
    return Piece((top, left, bottom, right), (up, west, down, east))


def moved_box(box, piece):
    """In plain numbers: where a box lies on the canvas, and what of it is in view."""
    (top, left, bottom, right), (up, west, down, east) = piece
    fx, fy = (east - west) / (right - left), (down - up) / (bottom - top)
    x1, y1, x2, y2 = box
    whole = [(x1 - left) * fx + west, (y1 - top) * fy + up, (x2 - left) * fx + west, (y2 - top) * fy + up]
    ends = [(west, east), (up, down), (west, east), (up, down)]
    return whole, [min(max(value, low), high) for value, (low, high) in zip(whole, ends, strict=True)]


def moved_mask(mask, piece, size):
    (top, left, bottom, right), (up, west, down, east) = piece
    canvas = [[0] * size[1] for _ in range(size[0])]
    for row in range(up, down):
        for column in range(west, east):
            y = top + (row - up + 0.5) * (bottom - top) / (down - up)
            x = left + (column - west + 0.5) * (right - left) / (east - west)
            canvas[row][column] = int(mask[int(y + 1e-9)][int(x + 1e-9)])
    return canvas


@given(batch=batches(), data=st.data())
def test_boxes_and_masks_are_those_of_loops_and_rows_stay_in_step(batch, data):
    images, targets = batch
    (target, *_), keys = complete_rows(targets, where="f")
    size = (data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20)))
    piece = data.draw(pieces(*images[0].shape[1:], size))
    view = View(data.draw(st.sampled_from([0.0, 0.1, 0.5])), data.draw(st.sampled_from([0.0, 1.0])))
    placed = place_target(target, piece, size, keys=keys, view=view)
    assert_in_step([target], placed)
    kept = []
    for row, box in enumerate(target["boxes"].double().tolist()):
        whole, part = moved_box(box, piece)
        sides, all_sides = (part[2] - part[0], part[3] - part[1]), (whole[2] - whole[0], whole[3] - whole[1])
        crowd = "iscrowd" in target and bool(target["iscrowd"][row])
        share = sides[0] * sides[1] - view.min_visible * all_sides[0] * all_sides[1]
        close = abs(share) < 1e-5 * all_sides[0] * all_sides[1] or any(
            abs(side - view.min_size) < 1e-4 for side in sides
        )
        stays = min(sides) > 0 and (crowd or (min(sides) >= view.min_size and share >= 0))
        mask = moved_mask(target["masks"][row], piece, size) if "masks" in target else [[1]]
        stays &= crowd or any(map(any, mask))
        label = int(target["labels"][row])
        if close or min(sides) < 1e-4:
            stays = label in placed["labels"]  # either is right to rounding
        if stays:
            kept.append((label, part, mask))
    assert placed["labels"].tolist() == [label for label, *_ in kept]
    for i, (_, part, mask) in enumerate(kept):
        torch.testing.assert_close(placed["boxes"][i].double(), torch.tensor(part).double(), rtol=1e-4, atol=1e-3)
        if "masks" in target:
            assert placed["masks"][i].tolist() == mask
    low, high = placed["boxes"][:, :2], placed["boxes"][:, 2:]
    (up, west, down, east) = piece.place
    assert bool(((low >= low.new_tensor((west, up))) & (high <= high.new_tensor((east, down)))).all())


def test_keypoints_move_and_those_out_of_view_or_unlabeled_become_zeros():
    points = torch.tensor([[[2.0, 1, 2], [8, 8, 2], [4, 4, 1], [3, 3, 0], [0, 0, 2]]])
    target = {"boxes": torch.tensor([[0.0, 0, 8, 8]]), "labels": torch.tensor([0]), "keypoints": points}
    piece = Piece((0, 0, 4, 4), (10, 20, 18, 28))
    placed = place_target(target, piece, (40, 40), keys=target, view=EVERYTHING)
    assert placed["keypoints"].tolist() == [[[24, 12, 2], [0, 0, 0], [28, 18, 1], [0, 0, 0], [20, 10, 2]]]


def test_a_segmentation_has_no_class_around_the_piece():
    target = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0).long(),
        "segmentation": torch.tensor([[1, 2], [3, 4]]),
    }
    placed = place_target(target, Piece((0, 1, 2, 2), (1, 0, 3, 2)), (4, 3), keys=["boxes", "labels"], view=EVERYTHING)
    assert placed["segmentation"].tolist() == [[VOID] * 3, [2, 2, VOID], [4, 4, VOID], [VOID] * 3]


def test_areas_are_those_of_masks_and_without_masks_change_as_the_boxes_do():
    generator = torch.Generator().manual_seed(0)
    target = target_of(torch.tensor([[0.0, 0, 8, 8], [0, 0, 4, 4]]), (8, 8), 1, generator, masks=True, more=True)
    keys, piece = complete_rows([target], where="f")[1], Piece((0, 0, 4, 8), (0, 0, 8, 16))
    placed = place_target(target, piece, (8, 16), keys=keys, view=EVERYTHING)
    assert placed["area"].tolist() == placed["masks"].flatten(1).sum(1).tolist()
    del target["masks"]
    placed = place_target(target, piece, (8, 16), keys=[key for key in keys if key != "masks"], view=EVERYTHING)
    assert placed["area"].tolist() == [2 * 0.5 * 4, 3 * 4]  # the first loses half of its box, all are twice as large
    assert placed["area"].dtype == torch.float32


@pytest.mark.parametrize("flag", [torch.int64, torch.bool, torch.uint8])
def test_crowds_stay_as_long_as_any_of_their_box_is_in_view(flag):
    boxes = torch.tensor([[0.0, 0, 100, 100]] * 2 + [[50.0, 50, 60, 60]])
    target = {"boxes": boxes, "labels": torch.arange(3), "iscrowd": torch.tensor([1, 0, 1]).to(flag)}
    target["masks"] = torch.zeros(3, 100, 100)
    piece = Piece((0, 0, 1, 1), (0, 0, 1, 1))
    assert place_target(target, piece, (9, 9), keys=target, view=View(0.5, 2.0))["labels"].tolist() == [0]


def test_pixels_outside_the_place_stay_and_inside_are_the_resized_part():
    image = torch.arange(48, dtype=torch.uint8).reshape(1, 6, 8)
    canvas = torch.full((1, 9, 9), 200, dtype=torch.uint8)
    draw_piece(canvas, image, Piece((1, 2, 4, 5), (3, 3, 6, 6)))
    assert torch.equal(canvas[:, 3:6, 3:6], image[:, 1:4, 2:5])
    assert int((canvas == 200).sum()) == 72


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (3, 1), (7, 1), (1, 7), (3, 2), (9, 4)])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(("dtype", "error"), [(torch.uint8, 1), (torch.uint16, 0.51)], ids=str)
def test_pixels_of_integers_are_resized_as_floats_are(size, channels, dtype, error):
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (channels, 5, 6), generator=generator).to(dtype)
    canvas = torch.zeros(channels, *size).to(dtype)
    draw_piece(canvas, image, Piece((0, 0, 5, 6), (0, 0, *size)))
    expected = F.interpolate(image[None].double(), size=size, mode="bilinear", antialias=True)[0]
    assert (canvas.double() - expected).abs().max() <= error


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int32], ids=str)
@pytest.mark.parametrize("size", [(1, 1), (4, 1), (3, 2), (9, 11)])
def test_images_of_integers_are_resized_in_their_type_and_rounded(size, dtype):
    image = torch.randint(0, 256, (3, 5, 6), generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = F.interpolate(image[None].double(), size=size, mode="bilinear", antialias=True)[0]
    found = resized(image, size)
    assert found.dtype == dtype
    assert (found.double() - expected).abs().max() <= (1 if dtype == torch.uint8 else 0.51)


def test_black_and_white_images_become_gray_where_they_are_resized():
    image = torch.rand(1, 6, 8, generator=torch.Generator().manual_seed(0)) > 0.5
    assert torch.equal(resized(image, (3, 3)), resized(image.float(), (3, 3)))
    assert resized(image, (6, 8)) is image


@pytest.mark.parametrize(("length", "start", "stop"), [(1, 0, 7), (7, 3, 4), (5, 2, 12), (640, 0, 333)])
def test_nearest_pixels_lie_under_the_centers(length, start, stop):
    found = nearest_pixels(length, start, stop, torch.device("cpu")).tolist()
    assert found == [start + int((i + 0.5) * (stop - start) / length + 1e-9) for i in range(length)]
    mirrored = [start + stop - 1 - place for place in reversed(found)]
    exact = [i for i in range(length) if (2 * i + 1) * (stop - start) % (2 * length)]
    assert [found[i] for i in exact] == [mirrored[i] for i in exact]


def test_every_way_to_move_is_known_here():
    assert {field.moves for field in FIELDS.values()} == {"no", "boxes", "points", "masks", "map", "areas"}
