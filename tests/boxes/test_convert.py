"""Formats, areas and clipping against arithmetic by hand, on every type and on boxes that hurt."""

import pytest
import torch
import torchvision
from hypothesis import given
from strategies import boxes, random_boxes, unhooked

from detkit.boxes import (
    box_area,
    box_centers,
    clip_boxes_to_image,
    cxcywh_to_xyxy,
    fractions_to_pixels,
    pixels_to_fractions,
    points_in_boxes,
    remove_small_boxes,
    xywh_to_xyxy,
    xyxy_to_cxcywh,
    xyxy_to_xywh,
)

CONVERSIONS = [xyxy_to_cxcywh, cxcywh_to_xyxy, xyxy_to_xywh, xywh_to_xyxy]
TYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64, torch.uint8]


@pytest.mark.parametrize(
    ("convert", "expected"),
    [
        (xyxy_to_cxcywh, [20, 40, 20, 40]),
        (xyxy_to_xywh, [10, 20, 20, 40]),
        (cxcywh_to_xyxy, [-5, -10, 25, 50]),
        (xywh_to_xyxy, [10, 20, 40, 80]),
    ],
)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_conversions_of_one_box_in_every_type(convert, expected, dtype):
    result = convert(torch.tensor([10, 20, 30, 60], dtype=dtype))
    assert result.tolist() == expected
    assert result.dtype == (torch.float64 if dtype in (torch.float64, torch.int32, torch.int64) else torch.float32)


@pytest.mark.parametrize("theirs", ["cxcywh", "xywh"])
def test_conversions_equal_torchvision(theirs):
    ours = {"cxcywh": (xyxy_to_cxcywh, cxcywh_to_xyxy), "xywh": (xyxy_to_xywh, xywh_to_xyxy)}[theirs]
    rows = random_boxes(10_000)
    away, back = (torchvision.ops.box_convert(rows, *way) for way in (("xyxy", theirs), (theirs, "xyxy")))
    torch.testing.assert_close(ours[0](rows), away, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(ours[1](rows), back, rtol=1e-6, atol=1e-4)


@given(boxes())
def test_there_and_back_is_the_same_box(rows):
    rows = rows.double()
    for away, back in ((xyxy_to_cxcywh, cxcywh_to_xyxy), (xyxy_to_xywh, xywh_to_xyxy)):
        largest = rows.abs().amax().item() if rows.numel() else 0.0  # a small side beside a huge one is rounded away
        torch.testing.assert_close(back(away(rows)), rows, rtol=1e-12, atol=1e-12 * (1 + largest))


@given(boxes())
def test_area_is_width_times_height_and_zero_when_inverted(rows):
    expected = [max(x2 - x1, 0) * max(y2 - y1, 0) for x1, y1, x2, y2 in rows.double().tolist()]
    assert box_area(rows.double()).tolist() == pytest.approx(expected, rel=1e-12, abs=0)


def test_centers_of_huge_and_half_precision_boxes_do_not_overflow():
    huge = torch.tensor([[0.0, -3e38, 3e38, -3e38]])
    assert box_centers(huge).tolist()[0] == pytest.approx([1.5e38, -3e38])
    assert box_centers(torch.tensor([[60000.0, 0, 60000, 1]], dtype=torch.float16)).tolist() == [[60000, 0.5]]


def test_a_point_on_the_border_nan_and_an_inverted_box_are_outside():
    box = torch.tensor([0.0, 0, 10, 4])
    points = torch.tensor([[5.0, 2], [0, 2], [10, 2], [5, 0], [5, 4], [5, 5], [torch.nan, 2]])
    assert points_in_boxes(points, box).tolist() == [True] + [False] * 6
    assert not points_in_boxes(points, box[[2, 3, 0, 1]]).any()
    assert points_in_boxes(points[:2, None], torch.stack((box, box + 1))).shape == (2, 2)


def test_integer_areas_do_not_wrap_around():
    for dtype in (torch.int32, torch.int64):
        assert box_area(torch.tensor([[0, 0, 50_000, 50_000]], dtype=dtype)).item() == 2.5e9
    assert box_area(torch.tensor([[0, 0, 255, 255]], dtype=torch.uint8)).item() == 65025
    assert box_area(torch.tensor([[0, 0, 300, 300]], dtype=torch.float16)).item() == 90000


def test_an_inverted_box_has_no_area_even_with_two_negative_sides():
    assert box_area(torch.tensor([[10.0, 10, 0, 0], [10, 0, 0, 10], [0, 10, 10, 0]])).tolist() == [0, 0, 0]


def test_areas_keep_the_leading_dimensions():
    assert box_area(torch.tensor([[[0.0, 0, 2, 3]], [[1, 1, 5, 2]]])).tolist() == [[6], [4]]


def test_full_checks_name_the_inverted_box(monkeypatch):
    monkeypatch.setenv("DETKIT_CHECKS", "full")
    with pytest.raises(ValueError, match=r"box_area: boxes\[0\]: x2 < x1 \(0 < 10\)"):
        box_area(torch.tensor([[10.0, 10, 0, 0]]))
    assert cxcywh_to_xyxy(torch.tensor([10.0, 10, 2, 2])).tolist() == [9, 9, 11, 11]  # x2 < x1 means nothing here
    assert xywh_to_xyxy(torch.tensor([10.0, 10, 2, 2])).tolist() == [10, 10, 12, 12]


@given(boxes())
def test_clipped_boxes_lie_in_the_image_and_are_never_inverted_by_clipping(rows):
    clipped = clip_boxes_to_image(rows, (40, 60))
    expected = [
        [min(max(c, 0), limit) for c, limit in zip(row, (60, 40, 60, 40), strict=True)] for row in rows.tolist()
    ]
    torch.testing.assert_close(clipped, torch.tensor(expected, dtype=torch.float32).reshape(-1, 4), rtol=0, atol=0)
    upright = (rows[:, 2:] >= rows[:, :2]).all(1)
    assert (clipped[upright, 2:] >= clipped[upright, :2]).all()


def test_each_image_clips_to_its_own_size():
    rows = torch.tensor([[-5.0, -5, 50, 50]]).expand(2, 3, 4)
    sizes = torch.tensor([[10, 20], [30, 40]])
    expected = torch.tensor([[0.0, 0, 20, 10], [0, 0, 40, 30]])[:, None].expand(2, 3, 4)
    assert torch.equal(clip_boxes_to_image(rows, sizes), expected)
    assert torch.equal(clip_boxes_to_image(rows, sizes[:, None]), expected)
    assert torch.equal(clip_boxes_to_image(rows[0], sizes[0]), expected[0])
    assert torch.equal(clip_boxes_to_image(rows[0], (10, 20)), expected[0])
    torch.testing.assert_close(
        clip_boxes_to_image(random_boxes(1000) - 20, (40, 50)),
        torchvision.ops.clip_boxes_to_image(random_boxes(1000) - 20, (40, 50)),
        rtol=0,
        atol=0,
    )


def test_small_boxes_are_those_with_one_side_below_the_size():
    rows = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 1], [0, 0, 1, 9], [0, 0, 2, 2], [9, 9, 0, 0]])
    assert remove_small_boxes(rows, 2).tolist() == [0, 3]
    assert remove_small_boxes(rows, 0).tolist() == [0, 1, 2, 3]
    assert remove_small_boxes(rows[:0], 2).shape == (0,)
    with pytest.raises(ValueError, match=r"remove_small_boxes: min_size=nan.*at least 0"):
        remove_small_boxes(rows, float("nan"))
    with pytest.raises(ValueError, match="min_size=-1"):
        remove_small_boxes(rows, -1)


def test_the_empty_list_is_accepted_wherever_boxes_are_wanted():
    nothing = torch.tensor([])
    for function in (*CONVERSIONS, lambda rows: unhooked(clip_boxes_to_image)(rows, (4, 4))):
        assert unhooked(function)(nothing).shape == (0, 4)
    assert unhooked(box_area)(nothing).shape == (0,)
    assert unhooked(remove_small_boxes)(nothing, 1).shape == (0,)


@pytest.mark.parametrize("function", [*CONVERSIONS, box_area])
def test_a_wrong_shape_is_refused_by_name(function):
    with pytest.raises(ValueError, match=rf"{function.__name__}: boxes.*\(2, 5\).*\(\.\.\., 4\)"):
        unhooked(function)(torch.zeros(2, 5))


def test_strided_and_expanded_boxes_give_what_contiguous_ones_give():
    rows = random_boxes(8)
    for view in (rows.T.contiguous().T, torch.stack((rows, rows), -1)[..., 0], rows[:1].expand(8, 4)):
        torch.testing.assert_close(xyxy_to_cxcywh(view), xyxy_to_cxcywh(view.contiguous()), rtol=0, atol=0)
        torch.testing.assert_close(box_area(view), box_area(view.contiguous()), rtol=0, atol=0)


def test_fractions_are_those_of_each_image_and_turn_back():
    sizes = torch.tensor([[100, 200], [50, 80]])
    pixels = torch.tensor([[[20.0, 10, 200, 100]], [[20.0, 10, 80, 50]]])
    fractions = pixels_to_fractions(pixels, sizes)
    torch.testing.assert_close(fractions, torch.tensor([[[0.1, 0.1, 1, 1]], [[0.25, 0.2, 1, 1]]]))
    torch.testing.assert_close(fractions_to_pixels(fractions, sizes), pixels)
    assert pixels_to_fractions(pixels.half(), sizes).dtype == torch.float32
    junk = torch.tensor([[torch.nan, 0, -4, torch.inf]])
    assert fractions_to_pixels(junk, sizes[0])[0, 2] == -800


@pytest.mark.parametrize("function", [pixels_to_fractions, fractions_to_pixels])
@pytest.mark.parametrize(("boxes", "sizes"), [((2, 3, 4), (3, 2)), ((2, 3, 4), (2,)), ((3, 5), (2,)), ((4,), (2,))])
def test_a_size_for_each_image_is_asked_for(function, boxes, sizes):
    with pytest.raises(ValueError, match=f"{function.__name__}: boxes .*sizes"):
        unhooked(function)(torch.zeros(boxes), torch.ones(sizes))
