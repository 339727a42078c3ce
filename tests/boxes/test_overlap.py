"""The IoU family against slow exact Python, torchvision at 10,000 pairs, and the boxes that break peers."""

import math
from fractions import Fraction

import pytest
import torch
import torchvision
from hypothesis import given
from strategies import assert_refused, boxes, random_boxes, unhooked

from detkit.boxes import (
    all_pairs,
    box_area,
    box_iou,
    complete_box_iou,
    distance_box_iou,
    generalized_box_iou,
    intersection_and_union,
    mask_iou,
    paired,
    paired_box_iou,
    paired_complete_box_iou,
    paired_distance_box_iou,
    paired_generalized_box_iou,
    ratio,
)

FAMILY = {
    "iou": (box_iou, paired_box_iou),
    "generalized": (generalized_box_iou, paired_generalized_box_iou),
    "distance": (distance_box_iou, paired_distance_box_iou),
    "complete": (complete_box_iou, paired_complete_box_iou),
}
PEERS = {
    "generalized": torchvision.ops.generalized_box_iou,
    "distance": torchvision.ops.distance_box_iou,
    "complete": torchvision.ops.complete_box_iou,
}
LOWEST = {"iou": 0.0, "generalized": -1.0, "distance": -1.0, "complete": -1.5}
MEASURES = [(name, function) for name, functions in FAMILY.items() for function in functions]
TYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64, torch.uint8]


def exact(name: str, first: list[float], second: list[float]) -> float:
    """One pair in rational numbers, from the definitions."""
    a, b = [Fraction(c) for c in first], [Fraction(c) for c in second]

    def area(box):
        return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)

    both = area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])
    union = area(a) + area(b) - both
    iou = both / union if union else Fraction(0)
    width, height = (max(max(a[i + 2], b[i + 2]) - min(a[i], b[i]), 0) for i in (0, 1))
    if name == "iou":
        return float(iou)
    if name == "generalized":
        hull = width * height
        return float(iou - (max(hull - union, 0) / hull if hull else 0))
    diagonal = width**2 + height**2
    apart = sum(((a[i] + a[i + 2] - b[i] - b[i + 2]) / 2) ** 2 for i in (0, 1))
    distance = iou - (min(apart / diagonal, 1) if diagonal else 0)
    if name == "distance" or not (area(a) and area(b)):
        return float(distance)
    angles = [math.atan(float((box[2] - box[0]) / (box[3] - box[1]))) for box in (a, b)]
    penalty = 4 / math.pi**2 * (angles[0] - angles[1]) ** 2
    return float(distance) - (penalty**2 / (1 - float(iou) + penalty) if penalty else 0)


def exact_matrix(name: str, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    rows = [[exact(name, a, b) for b in second.tolist()] for a in first.tolist()]
    return torch.tensor(rows, dtype=torch.float64).reshape(len(first), len(second))


@pytest.mark.parametrize("name", FAMILY)
@given(first=boxes(most=4), second=boxes(most=4))
def test_hostile_boxes_give_the_exact_value_in_float64(name, first, second):
    matrix, _ = FAMILY[name]
    result = matrix(first.double(), second.double())
    torch.testing.assert_close(result, exact_matrix(name, first, second), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", FAMILY)
@given(first=boxes(most=4), second=boxes(most=4))
def test_hostile_boxes_stay_in_the_documented_range_in_float32(name, first, second):
    matrix, _ = FAMILY[name]
    result = matrix(first, second)
    assert torch.isfinite(result).all()
    assert ((result >= LOWEST[name]) & (result <= 1)).all()


@pytest.mark.parametrize("name", FAMILY)
@given(first=boxes(most=4, huge=1e17), second=boxes(most=4, huge=1e17))
def test_hostile_boxes_whose_areas_float32_can_hold_give_the_exact_value(name, first, second):
    matrix, _ = FAMILY[name]
    result = matrix(first, second)
    # Differences of coordinates near 200 are rounded, which a box of 1/2000 pixel notices.
    torch.testing.assert_close(result.double(), exact_matrix(name, first, second), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", FAMILY)
@given(first=boxes(most=4), second=boxes(most=4))
def test_hostile_boxes_have_finite_gradients(name, first, second):
    first.requires_grad_()
    second.requires_grad_()
    FAMILY[name][0](first, second).sum().backward()
    assert torch.isfinite(first.grad).all()
    assert torch.isfinite(second.grad).all()


@pytest.mark.parametrize("name", FAMILY)
def test_paired_is_the_diagonal_of_the_matrix(name):
    matrix, paired = FAMILY[name]
    first, second = random_boxes(50, seed=1), random_boxes(50, seed=2)
    torch.testing.assert_close(paired(first, second), matrix(first, second).diagonal(), rtol=0, atol=0)
    torch.testing.assert_close(paired(first, second[:1]), matrix(first, second[:1])[:, 0], rtol=0, atol=0)


def test_ten_thousand_pairs_equal_torchvision_bit_for_bit():
    for extent in (1.0, 100.0, 1e4):
        first, second = random_boxes(100, seed=1, extent=extent), random_boxes(100, seed=2, extent=extent)
        assert torch.equal(box_iou(first, second), torchvision.ops.box_iou(first, second))


@pytest.mark.parametrize("name", PEERS)
def test_ten_thousand_pairs_equal_torchvision(name):
    first, second = random_boxes(100, seed=1, dtype=torch.float64), random_boxes(100, seed=2, dtype=torch.float64)
    torch.testing.assert_close(FAMILY[name][0](first, second), PEERS[name](first, second), rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("first", "second", "squared", "unsquared"),
    [
        ((0, 0, 2, 2), (1, 1, 3, 3), 0.9682540, 0.9357103),
        ((0, 0, 1, 1), (2, 2, 3, 3), 1.4444444, 1.1571348),
        ((0, 0, 4, 4), (1, 1, 3, 3), 0.75, 0.75),
        ((10, 20, 50, 80), (12, 25, 60, 70), 0.4069262, 0.4010656),
    ],
)
def test_distance_loss_of_the_report_in_both_variants(first, second, squared, unsquared):
    pair = [torch.tensor([box], dtype=torch.float64) for box in (first, second)]
    for function in (distance_box_iou, paired_distance_box_iou):
        assert 1 - function(*pair).item() == pytest.approx(squared, abs=1e-7)
        assert 1 - function(*pair, variant="unsquared").item() == pytest.approx(unsquared, abs=1e-7)


def test_only_the_unsquared_distance_changes_with_scale():
    pair = [torch.tensor([box], dtype=torch.float64) * 100 for box in ((0.0, 0, 2, 2), (1.0, 1, 3, 3))]
    assert 1 - distance_box_iou(*pair).item() == pytest.approx(0.9682540, abs=1e-7)
    assert 1 - distance_box_iou(*pair, variant="unsquared").item() == pytest.approx(0.8579, abs=1e-4)
    with pytest.raises(ValueError, match=r"distance_box_iou: variant='seed'.*'squared'.*'unsquared'"):
        unhooked(distance_box_iou)(*pair, variant="seed")


def test_table_of_the_anchor_chapter():
    truth = torch.tensor([[0.1, 0.08, 0.52, 0.92], [0.55, 0.2, 0.9, 0.88]], dtype=torch.float64)
    anchors = [[0, 0.1, 0.2, 0.3], [0.15, 0.2, 0.4, 0.4], [0.63, 0.05, 0.88, 0.98], [0.66, 0.45, 0.8, 0.8]]
    anchors = torch.tensor([*anchors, [0.57, 0.3, 0.92, 0.9]], dtype=torch.float64)
    expected = [[0.0536481, 0], [0.1417233, 0], [0, 0.5657238], [0, 0.2058824], [0, 0.7459080]]
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(box_iou(anchors, truth), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_disjoint_integer_boxes_do_not_wrap_around(dtype):
    pair = [torch.tensor([box], dtype=dtype) for box in ((0, 0, 10, 10), (20, 20, 30, 30))]
    assert box_iou(*pair).item() == 0
    assert generalized_box_iou(*pair).item() == pytest.approx(200 / 900 - 1)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("name", "function"), MEASURES)
def test_every_type_gives_the_value_of_its_promoted_numbers(name, function, dtype):
    first, second = random_boxes(5, seed=1).to(dtype), random_boxes(5, seed=2).to(dtype)
    result = function(first, second)
    wide = torch.float64 if dtype in (torch.float64, torch.int32, torch.int64) else torch.float32
    assert result.dtype == wide
    torch.testing.assert_close(result, function(first.to(wide), second.to(wide)), rtol=0, atol=0)


@pytest.mark.parametrize(("name", "function"), MEASURES)
def test_a_point_with_itself_and_with_a_good_box_is_finite_with_finite_gradients(name, function):
    point = torch.tensor([[5.0, 5, 5, 5], [5, 5, 5, 5]], requires_grad=True)
    other = torch.tensor([[5.0, 5, 5, 5], [2, 5, 8, 9]], requires_grad=True)
    result = function(point, other)
    assert ((result >= LOWEST[name]) & (result <= 1)).all()
    assert name != "iou" or (result == 0).all()
    result.sum().backward()
    assert torch.isfinite(point.grad).all()
    assert torch.isfinite(other.grad).all()


@pytest.mark.parametrize(("name", "function"), MEASURES)
def test_an_inverted_box_overlaps_nothing_and_full_checks_refuse_it(name, function, monkeypatch):
    inverted, good = torch.tensor([[10.0, 10, 0, 0]]), torch.tensor([[0.0, 0, 10, 10]])
    result = function(inverted, good)
    assert LOWEST[name] <= result.item() <= 1
    assert name != "iou" or result.item() == 0
    monkeypatch.setenv("DETKIT_CHECKS", "full")
    with pytest.raises(ValueError, match=rf"{function.__name__}: boxes1\[0\]: x2 < x1 \(0 < 10\)"):
        function(inverted, good)
    with pytest.raises(ValueError, match=rf"{function.__name__}: boxes2\[0\]: x2 < x1 \(0 < 10\)"):
        function(good, inverted)


@pytest.mark.parametrize(("name", "function"), MEASURES)
def test_a_bad_row_changes_no_other_row(name, function):
    first, second = random_boxes(4, seed=1), random_boxes(4, seed=2)
    expected = function(first, second)
    for bad in (torch.nan, torch.inf, -torch.inf, 3e38):
        worse = first.clone()
        worse[1, 2] = bad
        kept = torch.tensor([0, 2, 3])
        torch.testing.assert_close(function(worse, second)[kept], expected[kept], rtol=0, atol=0)


@pytest.mark.parametrize("size", [1e-15, 1e-10, 1.0, 1e10, 1e17])
@pytest.mark.parametrize("name", FAMILY)
def test_measures_do_not_depend_on_the_unit_of_length(name, size):
    first, second = random_boxes(20, seed=1, extent=1.0), random_boxes(20, seed=2, extent=1.0)
    expected = FAMILY[name][0](first, second)
    torch.testing.assert_close(FAMILY[name][0](first * size, second * size), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FAMILY)
def test_measures_are_symmetric_and_do_not_notice_a_shift_or_an_order(name):
    matrix = FAMILY[name][0]
    first, second = random_boxes(30, seed=1, dtype=torch.float64), random_boxes(20, seed=2, dtype=torch.float64)
    expected = matrix(first, second)
    shift, order = torch.tensor([3.0, -200, 3, -200], dtype=torch.float64), torch.randperm(30)
    torch.testing.assert_close(matrix(second, first).T, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(matrix(first + shift, second + shift), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(matrix(first[order], second), expected[order], rtol=0, atol=0)


# CIoU's alpha takes no gradient: compared with alpha frozen below.
@pytest.mark.slow
@pytest.mark.parametrize("function", [function for name, function in MEASURES if name != "complete"])
def test_gradients_equal_finite_differences(function):
    first, second = (random_boxes(3, seed=s, dtype=torch.float64).requires_grad_() for s in (1, 2))
    assert torch.autograd.gradcheck(function, (first, second))


def test_gradient_of_complete_iou_is_that_with_alpha_frozen():
    first, second = (random_boxes(6, seed=s, dtype=torch.float64) for s in (3, 4))
    iou = paired_box_iou(first, second)

    def angle(rows):
        return torch.atan((rows[:, 2] - rows[:, 0]) / (rows[:, 3] - rows[:, 1]))

    def penalty(rows):
        return 4 / math.pi**2 * (angle(rows) - angle(second)) ** 2

    alpha = penalty(first) / (1 - iou + penalty(first))
    ours, reference = (first.clone().requires_grad_() for _ in range(2))
    paired_complete_box_iou(ours, second).sum().backward()
    (paired_distance_box_iou(reference, second) - alpha * penalty(reference)).sum().backward()
    torch.testing.assert_close(ours.grad, reference.grad, rtol=1e-9, atol=1e-12)


def test_a_coordinate_of_zero_keeps_its_gradient():
    first = torch.tensor([[0.0, 0, 2, 2]], requires_grad=True)
    box_iou(first, torch.tensor([[1.0, 1, 3, 3]])).sum().backward()
    assert first.grad.abs().min() > 0


@pytest.mark.parametrize("name", FAMILY)
def test_leading_dimensions_broadcast_and_a_batch_equals_a_loop(name):
    matrix = FAMILY[name][0]
    first, second = random_boxes(12, seed=1).reshape(3, 4, 4), random_boxes(15, seed=2).reshape(3, 5, 4)
    loop = torch.stack([matrix(a, b) for a, b in zip(first, second, strict=True)])
    torch.testing.assert_close(matrix(first, second), loop, rtol=0, atol=0)
    assert matrix(first[:, None], second[0]).shape == (3, 1, 4, 5)
    torch.testing.assert_close(matrix(first, second[0])[2], matrix(first[2], second[0]), rtol=0, atol=0)


@pytest.mark.parametrize("name", FAMILY)
def test_no_boxes_give_an_empty_matrix(name):
    matrix, paired = FAMILY[name]
    none, some = torch.zeros(0, 4), random_boxes(3)
    assert matrix(none, none).shape == (0, 0)
    assert matrix(none, some).shape == (0, 3)
    assert matrix(some, none).shape == (3, 0)
    assert paired(none, none).shape == (0,)
    assert unhooked(matrix)(torch.tensor([]), some).shape == (0, 3)
    assert unhooked(paired)(torch.tensor([]), torch.tensor([])).shape == (0,)


@pytest.mark.parametrize(("name", "function"), MEASURES)
def test_wrong_shapes_are_refused_by_name(name, function):
    with pytest.raises(ValueError, match=rf"{function.__name__}: boxes2 has shape \(2, 3\)"):
        unhooked(function)(torch.zeros(2, 4), torch.zeros(2, 3))


def test_single_boxes_are_sent_to_the_paired_form():
    with pytest.raises(ValueError, match="paired_box_iou compares box with box"):
        unhooked(box_iou)(torch.zeros(4), torch.zeros(2, 4))
    assert paired_box_iou(torch.tensor([0.0, 0, 2, 2]), torch.tensor([0.0, 0, 2, 2])).item() == 1


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32])
def test_mask_iou_counts_pixels(dtype):
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randint(0, 2, (n, 7, 9), generator=generator).to(dtype) for n in (4, 3))
    first[0] = 0
    second[0] = 0
    expected = torch.zeros(4, 3)
    for i, a in enumerate(first.bool()):
        for j, b in enumerate(second.bool()):
            union = (a | b).sum()
            expected[i, j] = (a & b).sum() / union if union else 0
    torch.testing.assert_close(mask_iou(first, second), expected, rtol=1e-6, atol=0)
    assert mask_iou(first, second)[0, 0] == 0
    assert mask_iou(first[:0], second).shape == (0, 3)
    if dtype == torch.uint8:
        assert torch.equal(mask_iou(first * 255, second), mask_iou(first, second))


def test_masks_of_differing_sizes_are_refused():
    for one, other in (((1, 2, 3), (1, 3, 3)), ((2, 3), (2, 3)), ((1, 2, 3, 3), (1, 2, 3, 3))):
        assert_refused(
            f"mask_iou: masks {one} {other} (N, H, W) (M, H, W)",
            mask_iou,
            torch.zeros(one),
            torch.zeros(other),
        )


def test_mask_iou_is_exact_under_autocast():
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, :33, :31], masks[1, 5:40, 3:50] = True, True  # areas that bfloat16 would round
    with torch.autocast("cpu", torch.bfloat16):
        found = mask_iou(masks, masks)
    shared = 28 * 28 / (33 * 31 + 35 * 47 - 28 * 28)
    assert torch.equal(found, torch.tensor([[1, shared], [shared, 1]]))


def shared_share(a, b):
    """A measure of a user's: the share of the first box that the second covers."""
    return ratio(intersection_and_union(a, b)[0], a.area)


def test_a_new_measure_is_one_function():
    first, second = random_boxes(5, seed=1), random_boxes(7, seed=2)
    matrix, pairs = all_pairs(shared_share), paired(shared_share)
    expected = box_iou(first, second) * (box_area(first)[:, None] + box_area(second))
    expected = expected / (1 + box_iou(first, second)) / box_area(first)[:, None]
    torch.testing.assert_close(matrix(first, second), expected)
    torch.testing.assert_close(pairs(first, second[:5]), expected.diagonal())
    assert matrix(first.half(), second.long()).dtype == torch.float64
    assert matrix(first.expand(2, 5, 4), second).shape == (2, 5, 7)
    assert matrix(torch.tensor([]), second).shape == (0, 7)
    assert torch.equal(pairs(first[:, None], second), matrix(first, second))


def test_a_new_measure_refuses_in_its_own_name():
    matrix, pairs = all_pairs(shared_share), paired(shared_share, name="mine")
    assert_refused("shared_share: boxes2 (2, 3)", matrix, torch.zeros(2, 4), torch.zeros(2, 3))
    assert_refused("mine: boxes1 (2, 5)", pairs, torch.zeros(2, 5), torch.zeros(2, 4))
    assert_refused("mine: boxes1 (2, 4) and boxes2 (3, 4)", pairs, torch.zeros(2, 4), torch.zeros(3, 4))
    assert_refused("shared_share: boxes (4,)", matrix, torch.zeros(4), torch.zeros(3, 4))
