"""Delta coding: the goldens of the anchor chapter, torchvision at 10,000 pairs, and boxes without a log-scale."""

import math

import pytest
import torch
from hypothesis import given, settings
from strategies import boxes, random_boxes, unhooked
from torchvision.models.detection._utils import BoxCoder

from detkit.boxes import DeltaCoder

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
@settings(deadline=None, max_examples=50)
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
@settings(deadline=None, max_examples=50)
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
    with pytest.raises(ValueError, match=r"DeltaCoder: weights=\(.*\) must be four positive numbers"):
        DeltaCoder(weights)


def test_full_checks_name_the_inverted_box(monkeypatch):
    monkeypatch.setenv("DETKIT_CHECKS", "full")
    with pytest.raises(ValueError, match=r"DeltaCoder.encode: boxes\[0\]: x2 < x1 \(0 < 10\)"):
        DeltaCoder().encode(torch.tensor([[10.0, 0, 0, 10]]), torch.tensor([[0.0, 0, 1, 1]]))


def test_printing_shows_the_settings():
    assert repr(DeltaCoder(SSD, eps=1e-6)) == "DeltaCoder(weights=(10.0, 10.0, 5.0, 5.0), clamp=4.135, eps=1e-06)"
