"""Coders: goldens, torchvision at 10,000 pairs, slow formulas, inverses, and boxes that have no code."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import assert_refused, boxes, in_cells, random_boxes, unhooked
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder, BoxLinearCoder

from detkit.anchors.generate import GridAnchors
from detkit.boxes import DeltaCoder
from detkit.boxes.coding import DistanceCoder, DistributionCoder, GridCoder
from detkit.structures import Images

SSD = (10.0, 10.0, 5.0, 5.0)
TRUTH = torch.tensor([[0.1, 0.08, 0.52, 0.92], [0.55, 0.2, 0.9, 0.88]])


def slow_encode(box, anchor, weights, eps=0.0):
    (x1, y1, x2, y2), (u1, v1, u2, v2) = box, anchor
    w, h = u2 - u1, v2 - v1
    shift = ((x1 + x2 - u1 - u2) / 2 / w, (y1 + y2 - v1 - v2) / 2 / h)
    deltas = (*shift, math.log((x2 - x1) / w + eps), math.log((y2 - y1) / h + eps))
    return [weight * delta for weight, delta in zip(weights, deltas, strict=True)]


def test_golden_of_the_anchor_chapter_with_its_epsilon():
    anchors = torch.tensor([[0.15, 0.2, 0.4, 0.4], [0.63, 0.05, 0.88, 0.98], [0.57, 0.3, 0.92, 0.9]])
    expected = [[1.4, 10, 2.59397, 7.17542], [-1.2, 0.26882, 1.68236, -1.56545], [-0.571428, -1, 0, 0.625820]]
    deltas = DeltaCoder(SSD, eps=1e-6).encode(TRUTH[[0, 1, 1]], anchors)
    torch.testing.assert_close(deltas, torch.tensor(expected), rtol=0, atol=2e-5)


@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_epsilon_stands_inside_the_logarithm(eps):
    anchors, rows = random_boxes(20, seed=1, dtype=torch.float64), random_boxes(20, seed=2, dtype=torch.float64)
    pairs = zip(rows.tolist(), anchors.tolist(), strict=True)
    expected = torch.tensor([slow_encode(*pair, SSD, eps) for pair in pairs], dtype=torch.float64)
    torch.testing.assert_close(DeltaCoder(SSD, eps=eps).encode(rows, anchors), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), SSD])
def test_ten_thousand_boxes_equal_torchvision(weights):
    anchors, rows = random_boxes(10_000, seed=1), random_boxes(10_000, seed=2)
    ours, theirs = DeltaCoder(weights), BoxCoder(weights)
    torch.testing.assert_close(ours.encode(rows, anchors), theirs.encode_single(rows, anchors), rtol=1e-5, atol=1e-5)
    deltas = torch.randn(10_000, 4, generator=torch.Generator().manual_seed(0)) * 10
    torch.testing.assert_close(
        ours.decode(deltas, anchors), theirs.decode_single(deltas, anchors), rtol=1e-5, atol=1e-3
    )


@given(rows=boxes(inverted=False), anchors=boxes(inverted=False))
def test_decode_inverts_encode_where_both_have_an_area(rows, anchors):
    rows, anchors = rows.double()[:, None], anchors.double()
    deltas = DeltaCoder(SSD, clamp=1e3).encode(rows, anchors)
    sides = torch.broadcast_tensors(rows[..., 2:] - rows[..., :2], anchors[..., 2:] - anchors[..., :2])
    sides = torch.cat(sides, dim=-1)
    usable = ((sides > 1e-12) & (sides < 1e12)).all(-1)
    back = DeltaCoder(SSD, clamp=1e3).decode(deltas, anchors)
    torch.testing.assert_close(back[usable], rows.expand_as(back)[usable], rtol=1e-9, atol=1e-9)
    assert (deltas[~usable] == 0).all()


@given(rows=boxes(), anchors=boxes())
def test_hostile_boxes_have_finite_deltas_and_gradients(rows, anchors):
    rows, anchors = rows[:, None].clone().requires_grad_(), anchors.requires_grad_()
    deltas = DeltaCoder(SSD).encode(rows, anchors)
    assert torch.isfinite(deltas).all()
    deltas.sum().backward()
    assert torch.isfinite(rows.grad).all()
    assert torch.isfinite(anchors.grad).all()


def test_the_log_scale_is_bounded_so_that_no_delta_overflows():
    coder, anchor = DeltaCoder(), torch.tensor([[0.0, 0, 16, 16]])
    decoded = coder.decode(torch.tensor([[0, 0, 1e30, 80.0]]), anchor)
    torch.testing.assert_close(decoded, torch.tensor([[-492.0, -492, 508, 508]]), rtol=1e-5, atol=0)
    assert coder.decode(torch.tensor([[0, 0, -1e30, -1e30]]), anchor).tolist() == [[8, 8, 8, 8]]
    assert DeltaCoder(clamp=0.0).decode(torch.ones(1, 4), anchor).tolist() == [[16, 16, 32, 32]]


def test_gradients_equal_finite_differences():
    anchors, rows = (random_boxes(3, seed=seed, dtype=torch.float64).requires_grad_() for seed in (1, 2))
    coder = DeltaCoder(SSD)
    assert torch.autograd.gradcheck(coder.encode, (rows, anchors))
    deltas = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(coder.decode, (deltas, anchors))


def test_deltas_do_not_notice_a_common_shift_or_scale():
    anchors, rows = (random_boxes(20, seed=seed, dtype=torch.float64) for seed in (1, 2))
    expected = DeltaCoder(SSD).encode(rows, anchors)
    torch.testing.assert_close(DeltaCoder(SSD).encode(rows * 8 + 3, anchors * 8 + 3), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.int64, torch.uint8])
def test_every_type_of_box_codes_as_its_promoted_numbers(dtype):
    anchors, rows = random_boxes(6, seed=1).to(dtype), random_boxes(6, seed=2).to(dtype)
    wide = torch.float64 if dtype in (torch.float64, torch.int32, torch.int64) else torch.float32
    deltas = DeltaCoder(SSD).encode(rows, anchors)
    assert deltas.dtype == wide
    assert torch.equal(deltas, DeltaCoder(SSD).encode(rows.to(wide), anchors.to(wide)))
    if dtype.is_floating_point:
        assert DeltaCoder(SSD).decode(deltas.to(dtype), anchors).dtype == wide


def test_a_batch_equals_a_loop_and_no_boxes_give_no_deltas():
    anchors, rows = random_boxes(5, seed=1), random_boxes(15, seed=2).reshape(3, 5, 4)
    loop = torch.stack([DeltaCoder(SSD).encode(image, anchors) for image in rows])
    torch.testing.assert_close(DeltaCoder(SSD).encode(rows, anchors), loop, rtol=0, atol=0)
    encode, decode = unhooked(DeltaCoder.encode), unhooked(DeltaCoder.decode)
    assert encode(DeltaCoder(), torch.tensor([]), torch.tensor([])).shape == (0, 4)
    assert decode(DeltaCoder(), torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 4)


@pytest.mark.parametrize(
    "weights", [(1.0, 1.0, 1.0), (1.0, 1.0, 1.0, 0.0), (1.0, -1.0, 1.0, 1.0), (1.0, math.nan, 1.0, 1.0)]
)
def test_weights_must_be_four_positive_numbers(weights):
    wrong = [place for place, weight in enumerate(weights) if not weight > 0]
    said = f"scale[{wrong[0]}]={weights[wrong[0]]} above 0" if wrong else f"scale={weights} (x, y, w, h) 1e-12 1e12"
    assert_refused(f"DeltaCoder: {said}", DeltaCoder, weights)


def test_the_weights_are_a_setting_and_not_learned():
    assert not DeltaCoder((10.0, 10.0, 5.0, 5.0)).state_dict()
    for weight in (1e-12, 1e12):
        assert DeltaCoder((weight,) * 4).scale.tolist() == [weight] * 4


def test_full_checks_name_the_inverted_box(monkeypatch):
    monkeypatch.setenv("DETKIT_CHECKS", "full")
    with pytest.raises(ValueError, match=r"DeltaCoder.encode: boxes\[0\]: x2 < x1 \(0 < 10\)"):
        DeltaCoder().encode(torch.tensor([[10.0, 0, 0, 10]]), torch.tensor([[0.0, 0, 1, 1]]))


def test_printing_shows_the_settings():
    assert repr(DeltaCoder(SSD, eps=1e-6)) == "DeltaCoder(scale=(10.0, 10.0, 5.0, 5.0), clamp=4.135, eps=1e-06)"


@given(anchors=boxes(), deltas=st.lists(st.floats(-1e6, 1e6, width=32), min_size=4, max_size=4))
def test_decoded_boxes_have_no_nan_and_at_most_the_bounded_size(anchors, deltas):
    rows = torch.tensor(deltas).expand(len(anchors), 4)
    decoded = DeltaCoder(SSD).decode(rows, anchors)
    assert not decoded.isnan().any()
    size, own = (side[:, 2:] - side[:, :2] for side in (decoded.double(), anchors.double()))
    slack = 1e-5 * (decoded.abs().amax(1, keepdim=True).double() + 1)
    assert (size <= own.clamp(min=0) * 1000 / 16 + slack).all()


@pytest.mark.parametrize("anchor", [[-3e38, -3e38, 3e38, 3e38], [3e38, 3e38, 3e38, 3e38], [0.0, 0, 0, 0]])
@pytest.mark.parametrize("delta", [0.0, 1e6, -1e6, 1e30])
def test_extreme_anchors_and_deltas_decode_without_nan(anchor, delta):
    anchors = torch.tensor([anchor], requires_grad=True)
    deltas = torch.full((1, 4), delta, requires_grad=True)
    for decoded in (
        DeltaCoder(SSD).decode(deltas, anchors),
        GridCoder().decode(deltas, in_cells(anchors, 8)),
        GridCoder(form="root").decode(deltas, in_cells(anchors, 8)),
        DistanceCoder(unit=1.0).decode(deltas, anchors),
        DistanceCoder().decode(deltas, anchors),
    ):
        assert not decoded.isnan().any()
        for gradient in torch.autograd.grad(decoded.sum(), (deltas, anchors), retain_graph=True):
            assert not gradient.isnan().any()


@given(rows=boxes(inverted=False, huge=0), anchors=boxes(inverted=False, huge=0), weight=st.sampled_from([0.5, 2, 10]))
def test_weights_scale_the_deltas_and_nothing_else(rows, anchors, weight):
    plain = DeltaCoder().encode(rows[:, None], anchors)
    weighted = DeltaCoder((weight, 1.0, weight, 1.0)).encode(rows[:, None], anchors)
    torch.testing.assert_close(weighted, plain * torch.tensor([weight, 1, weight, 1]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("side", [2.0**-40, 2.0**40])
def test_sides_at_the_limits_are_still_coded_and_beyond_them_not(side):
    inside, beyond = torch.tensor([[0, 0, side, side]]), torch.tensor([[0, 0, side, side * (2 if side > 1 else 0.5)]])
    unit = torch.tensor([[0.0, 0, 1, 1]])
    for coder in (DeltaCoder(), GridCoderAt8()):
        assert coder.encode(inside, unit)[0, 2].abs() > 27
        assert coder.encode(unit, inside)[0, 2].abs() > 27
        assert coder.encode(beyond, unit).tolist() == [[0, 0, 0, 0]]
        assert coder.encode(unit, beyond).tolist() == [[0, 0, 0, 0]]


# Distances from a point


def slow_distances(box, anchor, unit):
    (x1, y1, x2, y2), (u1, v1, u2, v2) = box, anchor
    cx, cy = (u1 + u2) / 2, (v1 + v2) / 2
    w, h = (1, 1) if unit is None else (unit * (u2 - u1), unit * (v2 - v1))
    return [(cx - x1) / w, (cy - y1) / h, (x2 - cx) / w, (y2 - cy) / h]


@pytest.mark.parametrize("unit", [None, 1.0, 0.125])
def test_distances_equal_the_formula(unit):
    anchors, rows = (random_boxes(30, seed=seed, dtype=torch.float64) for seed in (1, 2))
    expected = [slow_distances(*pair, unit) for pair in zip(rows.tolist(), anchors.tolist(), strict=True)]
    distances = DistanceCoder(unit=unit).encode(rows, anchors)
    torch.testing.assert_close(distances, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("unit", [None, 1.0])
def test_ten_thousand_distances_equal_torchvisions(unit):
    anchors, rows = random_boxes(10_000, seed=1), random_boxes(10_000, seed=2)
    ours, theirs = DistanceCoder(unit=unit), BoxLinearCoder(normalize_by_size=unit is not None)
    distances = ours.encode(rows, anchors)
    torch.testing.assert_close(distances, theirs.encode(anchors, rows), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(ours.decode(distances, anchors), theirs.decode(distances, anchors), rtol=1e-6, atol=1e-4)


def test_points_have_the_distances_of_anchors_centered_there():
    anchors, rows = random_boxes(30, seed=1), random_boxes(30, seed=2)
    points = (anchors[:, :2] + anchors[:, 2:]) / 2
    distances = DistanceCoder().encode(rows, points)
    assert torch.equal(distances, DistanceCoder().encode(rows, anchors))
    assert torch.equal(DistanceCoder().decode(distances, points), DistanceCoder().decode(distances, anchors))


def test_distances_are_positive_exactly_where_the_point_lies_inside():
    points = torch.tensor([[5.0, 5], [-1, 5], [5, 11], [11, -2]])
    distances = DistanceCoder().encode(torch.tensor([[0.0, 0, 10, 10]]), points)
    assert (distances > 0).tolist() == [
        [True] * 4,
        [False, True, True, True],
        [True] * 3 + [False],
        [True, False, False, True],
    ]


@given(rows=boxes(inverted=False, huge=1e9), anchors=boxes(inverted=False, huge=1e9))
def test_decode_inverts_encode_of_distances(rows, anchors):
    rows, anchors = rows.double()[:, None], anchors.double()
    for unit in (None, 1.0, 0.125):
        coder = DistanceCoder(unit=unit)
        distances = coder.encode(rows, anchors)
        back, expected = coder.decode(distances, anchors), rows.expand(len(rows), len(anchors), 4)
        sides = (anchors[:, 2:] - anchors[:, :2]).amin(1) * (unit or 1)
        usable = (sides > 1e-12) if unit else torch.ones_like(sides, dtype=torch.bool)
        torch.testing.assert_close(back[:, usable], expected[:, usable], rtol=1e-9, atol=1e-5)
        assert (distances[:, ~usable] == 0).all()


@given(rows=boxes(), anchors=boxes(), unit=st.sampled_from([None, 0.125, 1.0]))
def test_hostile_boxes_have_finite_distances_and_gradients(rows, anchors, unit):
    rows, anchors = rows[:, None].clone().requires_grad_(), anchors.requires_grad_()
    distances = DistanceCoder(unit=unit).encode(rows, anchors)
    assert torch.isfinite(distances).all()
    distances.sum().backward()
    assert torch.isfinite(rows.grad).all()
    assert torch.isfinite(anchors.grad).all()


def test_gradients_of_distances_equal_finite_differences():
    anchors, rows = (random_boxes(3, seed=seed, dtype=torch.float64).requires_grad_() for seed in (1, 2))
    for unit in (None, 0.5):
        coder = DistanceCoder(unit=unit)
        assert torch.autograd.gradcheck(coder.encode, (rows, anchors))
        assert torch.autograd.gradcheck(coder.decode, (torch.rand_like(rows).requires_grad_(), anchors))


@pytest.mark.parametrize("unit", [0.0, -1.0, math.inf, math.nan])
def test_a_unit_must_be_positive(unit):
    assert_refused(
        f"DistanceCoder: unit={unit} None",
        DistanceCoder,
        unit=unit,
    )


def test_points_have_no_size_to_count_in():
    for method in ("encode", "decode"):
        for coder, anchors in ((DistanceCoder(unit=1.0), torch.ones(1, 2)), (DistanceCoder(), torch.ones(1, 3))):
            assert_refused(
                f"DistanceCoder.{method}: anchors {tuple(anchors.shape)} (..., 4)",
                getattr(DistanceCoder, method),
                coder,
                torch.ones(1, 4),
                anchors,
            )


# Place in a grid cell


class GridCoderAt8:
    """A grid coder of cells of 8 pixels, with the two arguments of the others."""

    def encode(self, rows, anchors):
        return GridCoder().encode(rows, in_cells(anchors, 8))


def cell_anchors(count: int = 50, *, stride: float = 16, seed: int = 0) -> torch.Tensor:
    """Anchors of many sizes, centered in cells of 20 x 20."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randint(0, 20, (count, 2), generator=generator, dtype=torch.float64)
    halves = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 100 + 4
    centers = (cells + 0.5) * stride
    return torch.cat((centers - halves, centers + halves), dim=1)


def boxes_in_cells(anchors: torch.Tensor, *, stride: float = 16, seed: int = 1) -> torch.Tensor:
    """A box for each anchor, with its center in the anchor's cell."""
    generator = torch.Generator().manual_seed(seed)
    place, halves = (torch.rand(len(anchors), 2, generator=generator, dtype=torch.float64) for _ in range(2))
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2 + (place * 0.98 - 0.49) * stride
    return torch.cat((centers - halves * 90 - 1, centers + halves * 90 + 1), dim=1)


def slow_grid_decode(deltas, anchor, stride, form):
    (tx, ty, tw, th), (u1, v1, u2, v2) = deltas, anchor
    column, row = math.floor((u1 + u2) / 2 / stride), math.floor((v1 + v2) / 2 / stride)
    if form == "log":
        tx, ty, tw, th = 1 / (1 + math.exp(-tx)), 1 / (1 + math.exp(-ty)), math.exp(tw), math.exp(th)
    else:
        tw, th = tw * tw, th * th
    cx, cy, w, h = (column + tx) * stride, (row + ty) * stride, (u2 - u1) * tw, (v2 - v1) * th
    return [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]


@pytest.mark.parametrize("form", ["log", "root"])
@pytest.mark.parametrize("stride", [1, 16, 13.5])
def test_grid_decoding_equals_the_formula_of_the_paper(form, stride):
    anchors = cell_anchors(stride=stride)
    deltas = torch.randn(50, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    pairs = zip(deltas.tolist(), anchors.tolist(), strict=True)
    expected = torch.tensor([slow_grid_decode(*pair, stride, form) for pair in pairs], dtype=torch.float64)
    decoded = GridCoder(form=form).decode(deltas, in_cells(anchors, stride))
    torch.testing.assert_close(decoded, expected, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("form", ["log", "root"])
@given(seed=st.integers(0, 999), stride=st.sampled_from([1, 8, 32, 13.5]))
def test_grid_decode_inverts_encode_of_boxes_centered_in_their_cell(form, seed, stride):
    anchors = cell_anchors(stride=stride, seed=seed)
    rows = boxes_in_cells(anchors, stride=stride, seed=seed + 1)
    coder = GridCoder(form=form)
    back = coder.decode(coder.encode(rows, in_cells(anchors, stride)), in_cells(anchors, stride))
    torch.testing.assert_close(back, rows, rtol=1e-9, atol=1e-9)


@given(deltas=st.lists(st.floats(-5, 5), min_size=4, max_size=4))
def test_grid_encode_inverts_decode(deltas):
    anchors, deltas = cell_anchors(5), torch.tensor(deltas, dtype=torch.float64).expand(5, 4)
    back = GridCoder().encode(GridCoder().decode(deltas, in_cells(anchors, 16)), in_cells(anchors, 16))
    torch.testing.assert_close(back, deltas, rtol=1e-7, atol=1e-7)


@given(rows=boxes(), deltas=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=4, max_size=4))
def test_a_decoded_center_stays_in_its_cell_and_a_decoded_size_below_the_bound(rows, deltas):
    anchors = cell_anchors(5)
    decoded = GridCoder(clamp=2.0).decode(torch.tensor(deltas).expand(5, 4), in_cells(anchors, 16))
    shift = (decoded[:, :2] + decoded[:, 2:] - anchors[:, :2] - anchors[:, 2:]) / 2
    assert (shift.abs() <= 8 + 1e-6).all()
    size, own = decoded[:, 2:] - decoded[:, :2], anchors[:, 2:] - anchors[:, :2]
    assert (size <= own * math.exp(2) * (1 + 1e-5)).all()
    root = GridCoder(form="root", clamp=2.0).decode(torch.tensor([[0.0, 0, 1e30, -1e30]]), in_cells(anchors, 16))
    torch.testing.assert_close(root[:, 2:] - root[:, :2], own * math.exp(2), rtol=1e-6, atol=1e-6)
    assert not GridCoder().decode(torch.tensor(deltas).expand(len(rows), 4), in_cells(rows, 16)).isnan().any()


@pytest.mark.parametrize("form", ["log", "root"])
@given(rows=boxes(), anchors=boxes(), stride=st.sampled_from([1e-30, 1.0, 16.0, 1e30]))
def test_hostile_boxes_have_finite_grid_deltas_and_gradients(form, rows, anchors, stride):
    rows, anchors = rows[:, None].clone().requires_grad_(), anchors.requires_grad_()
    deltas = GridCoder(form=form).encode(rows, in_cells(anchors, stride))
    assert torch.isfinite(deltas).all()
    deltas.sum().backward()
    assert torch.isfinite(rows.grad).all()
    assert torch.isfinite(anchors.grad).all()


def test_a_center_outside_its_cell_is_moved_to_the_nearest_place_inside():
    anchor = torch.tensor([[0.0, 0, 16, 16]])
    deltas = GridCoder().encode(torch.tensor([[30.0, -30, 34, -26], [-2, 14, 2, 18]]), in_cells(anchor, 16))
    most = math.log((1 - 1e-6) / 1e-6)
    torch.testing.assert_close(deltas[:, :2], torch.tensor([[most, -most], [-most, most]]), rtol=5e-3, atol=0)
    back = GridCoder().decode(deltas, in_cells(anchor, 16))
    torch.testing.assert_close((back[:, :2] + back[:, 2:]) / 2, torch.tensor([[16.0, 0], [0, 16]]), rtol=0, atol=1e-4)


def test_the_first_yolo_codes_places_in_cells_and_roots_of_the_image():
    """A box at (.3, .6) of the cell in row 2, column 1 of a 7 x 7 grid, a quarter as wide as the image."""
    image, cell = 448.0, 64.0
    center = torch.tensor([1.5, 2.5]) * cell
    anchor = torch.cat((center - image / 2, center + image / 2))[None]
    middle, half = torch.tensor([1.3, 2.6]) * cell, torch.tensor([0.25, 0.36]) * image / 2
    box = torch.cat((middle - half, middle + half))[None]
    deltas = GridCoder(form="root").encode(box, in_cells(anchor, cell))
    torch.testing.assert_close(deltas, torch.tensor([[0.3, 0.6, 0.5, 0.6]]), rtol=1e-5, atol=1e-5)
    negative = deltas * torch.tensor([1.0, 1, -1, -1])
    torch.testing.assert_close(
        GridCoder(form="root").decode(negative, in_cells(anchor, cell)), box, rtol=1e-5, atol=1e-4
    )


def test_the_anchors_of_yolo_v2_in_cells_give_the_boxes_of_its_formula():
    anchors = GridAnchors(shapes=[torch.tensor([[1.3221, 1.73145], [3.19275, 4.00944]]) * 32], strides=(32,))
    features, images = [torch.zeros(1, 1, 13, 13)], Images(torch.zeros(1, 3, 416, 416), torch.tensor([[416, 416]]))
    rows = anchors(features, images)
    deltas = torch.tensor([0.3, -1.0, 0.5, -0.5]).expand(len(rows.boxes), 4)
    decoded = GridCoder().decode(deltas, rows).reshape(13, 13, 2, 4)
    w, h = 3.19275 * math.exp(0.5) * 32, 4.00944 * math.exp(-0.5) * 32
    cx, cy = (5 + 1 / (1 + math.exp(-0.3))) * 32, (9 + 1 / (1 + math.e)) * 32
    expected = torch.tensor([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
    torch.testing.assert_close(decoded[9, 5, 1], expected, rtol=1e-5, atol=1e-3)


def test_cells_may_differ_from_anchor_to_anchor_and_from_width_to_height():
    anchors = torch.cat((cell_anchors(3, stride=8), cell_anchors(3, stride=16)))
    strides = torch.tensor([[8.0, 8]] * 3 + [[16, 12]] * 3)
    deltas = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    decoded = GridCoder().decode(deltas, in_cells(anchors, strides))
    torch.testing.assert_close(decoded[:3], GridCoder().decode(deltas[:3], in_cells(anchors[:3], 8)), rtol=0, atol=0)
    wide, high = (GridCoder().decode(deltas[3:], in_cells(anchors[3:], stride)) for stride in (16, 12))
    torch.testing.assert_close(decoded[3:, [0, 2]], wide[:, [0, 2]], rtol=0, atol=0)
    torch.testing.assert_close(decoded[3:, [1, 3]], high[:, [1, 3]], rtol=0, atol=0)
    batch = GridCoder().encode(decoded.expand(2, 6, 4), in_cells(anchors, strides))
    assert torch.equal(batch[1], GridCoder().encode(decoded, in_cells(anchors, strides)))


def test_a_cell_without_area_has_no_deltas():
    row = torch.tensor([[0.0, 0, 4, 4]])
    assert GridCoder().encode(row, in_cells(row + 1, torch.tensor([0.0, 8]))).tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("form", ["log", "root"])
def test_gradients_of_grid_coding_equal_finite_differences(form):
    anchors = cell_anchors(3)
    rows = boxes_in_cells(anchors)
    coder = GridCoder(form=form)
    assert torch.autograd.gradcheck(
        lambda rows, anchors: coder.encode(rows, in_cells(anchors, 16)),
        (rows.requires_grad_(), anchors.requires_grad_()),
    )
    deltas = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda rows, anchors: coder.decode(rows, in_cells(anchors, 16)), (deltas, anchors))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8])
def test_every_type_of_box_has_the_deltas_and_distances_of_its_promoted_numbers(dtype):
    anchors, rows = random_boxes(6, seed=1).to(dtype), random_boxes(6, seed=2).to(dtype)
    wide = torch.float64 if dtype in (torch.float64, torch.int64) else torch.float32
    expected = GridCoder().encode(rows.to(wide), in_cells(anchors.to(wide), 16))
    assert torch.equal(GridCoder().encode(rows, in_cells(anchors, 16)), expected)
    assert torch.equal(GridCoder().encode(rows, in_cells(anchors, torch.tensor([16, 16]))), expected)
    assert torch.equal(DistanceCoder().encode(rows, anchors), DistanceCoder().encode(rows.to(wide), anchors.to(wide)))
    points = rows[:, :2]
    assert torch.equal(DistanceCoder().encode(rows, points), DistanceCoder().encode(rows.to(wide), points.to(wide)))
    if dtype.is_floating_point:
        assert GridCoder().decode(expected.to(dtype), in_cells(anchors, 16)).dtype == wide
        assert DistanceCoder().decode(expected.to(dtype), anchors).dtype == wide


def test_empty_lists_of_boxes_code_to_nothing():
    empty = torch.tensor([])
    assert unhooked(GridCoder.encode)(GridCoder(), empty, in_cells(empty, 16)).shape == (0, 4)
    assert unhooked(GridCoder.decode)(GridCoder(), torch.zeros(0, 4), in_cells(empty, 16)).shape == (0, 4)
    assert unhooked(DistanceCoder.encode)(DistanceCoder(), empty, torch.zeros(0, 2)).shape == (0, 4)
    assert unhooked(DistanceCoder.encode)(DistanceCoder(), empty, empty).shape == (0, 4)


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("GridCoder: form='exp' 'log' 'root'", {"form": "exp"}),
        ("GridCoder: clamp=0", {"clamp": 0}),
        ("GridCoder: clamp=inf", {"clamp": math.inf}),
    ],
)
def test_a_grid_coder_that_makes_no_sense_is_refused(message, options):
    assert_refused(message, GridCoder.__init__, GridCoder.__new__(GridCoder), **options)


def test_anchors_that_tell_no_cells_are_refused():
    row = torch.ones(2, 4)
    for method in ("encode", "decode"):
        call = getattr(GridCoder, method)
        assert_refused(f"GridCoder.{method}: anchors Anchors(boxes, strides, counts)", call, GridCoder(), row, row)
        for strides in (torch.ones(2, 1), torch.tensor(8.0)):
            said = f"GridCoder.{method}: strides {tuple(strides.shape)}"
            assert_refused(said, call, GridCoder(), row, in_cells(row, strides))


def test_bad_shapes_are_refused_by_name():
    good, bad = torch.ones(4), torch.ones(3)
    for coder, lay in ((DeltaCoder(), Tensor), (GridCoder(), partial(in_cells, size=8)), (DistanceCoder(), Tensor)):
        kind = type(coder)
        for name, arguments in {"boxes": (bad, lay(good)), "anchors": (good, lay(bad))}.items():
            assert_refused(f"{kind.__name__}.encode: {name} (3,)", kind.encode, coder, *arguments)
        assert_refused(f"{kind.__name__}.decode: anchors (3,)", kind.decode, coder, good, lay(bad))


def test_distributions_decode_to_their_means_and_encode_as_their_coder():
    coder, plain = DistributionCoder(DistanceCoder(), bins=4), DistanceCoder()
    points = torch.rand(7, 2, dtype=torch.float64) * 50
    logits = torch.randn(3, 7, 20, dtype=torch.float64)
    means = [[sum(k * p for k, p in enumerate(row.softmax(0).tolist())) for row in some.view(-1, 5)] for some in logits]
    expected = plain.decode(torch.tensor(means, dtype=torch.float64).view(3, 7, 4), points)
    torch.testing.assert_close(coder.decode(logits, points), expected)
    boxes = torch.cat((points - 1, points + 2), 1)
    assert torch.equal(coder.encode(boxes, points), plain.encode(boxes, points))
    assert coder.numbers == 20
    assert coder.decode(logits.half(), points.float()).dtype == torch.float32
    assert repr(coder) == "DistributionCoder(\n  bins=4\n  (coder): DistanceCoder(unit=None)\n)"


def test_a_distribution_of_no_bins_or_another_number_of_logits_is_refused():
    assert_refused("DistributionCoder: bins=0", DistributionCoder, DistanceCoder(), bins=0)
    coder = DistributionCoder(DistanceCoder(), bins=4)
    said = "DistributionCoder.decode: logits (2, 16)"
    assert_refused(said, DistributionCoder.decode, coder, torch.ones(2, 16), torch.ones(2, 2))


def test_printing_shows_the_settings_of_every_coder():
    assert repr(GridCoder()) == "GridCoder(form='log', clamp=6.908)"
    assert repr(DistanceCoder(unit=0.125)) == "DistanceCoder(unit=0.125)"
    assert repr(DeltaCoder()) == "DeltaCoder(scale=(1.0, 1.0, 1.0, 1.0), clamp=4.135)"


@pytest.mark.parametrize(
    "settings", [{"clamp": math.nan}, {"clamp": math.inf}, {"clamp": -1.0}, {"eps": -5.0}, {"eps": math.nan}]
)
def test_delta_coders_settings_that_make_no_sense_are_refused(settings):
    ((name, value),) = settings.items()
    assert_refused(f"DeltaCoder: {name}={value} 0", DeltaCoder, **settings)


@pytest.mark.parametrize("weight", [1e-46, 1e300])
def test_weights_that_float32_cannot_work_with_are_refused(weight):
    with pytest.raises(ValueError, match=r"\(x, y, w, h\).*1e-12.*1e12$"):
        DeltaCoder((weight, 1, 1, 1))
