"""Smooth L1 and the box losses against definitions, autograd, torch and torchvision, on boxes that hurt too."""

import math
from functools import partial

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from strategies import assert_refused, boxes, random_boxes, unhooked
from torch.nn import functional as F

from detkit import _gradient as gradient
from detkit.boxes import (
    paired_box_iou,
    paired_complete_box_iou,
    paired_distance_box_iou,
    paired_generalized_box_iou,
)
from detkit.losses import (
    box_iou_loss,
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
    smooth_l1_loss,
)


@pytest.mark.parametrize("beta", [0.0, 1 / 9, 0.5, 1.0, 3.0])
def test_values_follow_the_definition_and_torch(beta):
    distance = torch.tensor([-100.0, -3, -1, -0.5, -1 / 9, -0.01, 0, 0.01, 0.5, 1, 3, 1e30], dtype=torch.float64)
    expected = [d * d / (2 * beta) if d < beta else d - beta / 2 for d in distance.abs().tolist()]
    result = smooth_l1_loss(distance, torch.zeros_like(distance), beta=beta)
    torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float64))
    peer = F.smooth_l1_loss(distance, torch.zeros_like(distance), beta=beta, reduction="none")
    torch.testing.assert_close(result, peer)


def test_the_bend_is_at_one_unless_told():
    assert smooth_l1_loss(torch.tensor([0.5, 1, 3]), torch.zeros(3)).tolist() == [0.125, 0.5, 2.5]


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_gradients_equal_finite_differences(beta):
    predictions = torch.tensor([-3.0, -0.9, 0.2, 0.45, 2], dtype=torch.float64, requires_grad=True)
    targets = torch.full((5,), 0.05, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p, t: smooth_l1_loss(p, t, beta=beta), (predictions, targets))


@pytest.mark.parametrize("beta", [0.0, 1e-6, 1.0])
def test_gradients_stay_finite_at_zero_and_at_huge_distances(beta):
    predictions = torch.tensor([0.0, -0.0, 1e38, -1e38, beta], requires_grad=True)
    loss = smooth_l1_loss(predictions, torch.zeros(5), beta=beta)
    assert torch.isfinite(loss).all()
    loss.sum().backward()
    assert torch.isfinite(predictions.grad).all()
    assert predictions.grad.abs().max() <= 1


def test_loss_keeps_the_shape_and_may_be_empty():
    assert smooth_l1_loss(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)).shape == (2, 3, 4)
    assert smooth_l1_loss(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 4)


def test_differing_shapes_and_a_negative_beta_are_refused():
    assert_refused(
        "smooth_l1_loss: predictions (2,) targets (1,)",
        smooth_l1_loss,
        torch.zeros(2),
        torch.zeros(1),
    )
    for beta in (-1.0, float("nan"), float("inf")):
        assert_refused(
            f"smooth_l1_loss: beta={beta} 0",
            smooth_l1_loss,
            torch.zeros(1),
            torch.zeros(1),
            beta=beta,
        )


LOSSES = {
    "iou": (box_iou_loss, paired_box_iou, None),
    "generalized": (generalized_box_iou_loss, paired_generalized_box_iou, torchvision.ops.generalized_box_iou_loss),
    "distance": (distance_box_iou_loss, paired_distance_box_iou, torchvision.ops.distance_box_iou_loss),
    "unsquared": (
        partial(distance_box_iou_loss, variant="unsquared"),
        partial(paired_distance_box_iou, variant="unsquared"),
        None,
    ),
    "complete": (complete_box_iou_loss, paired_complete_box_iou, torchvision.ops.complete_box_iou_loss),
}
HIGHEST = {"iou": 1.0, "generalized": 2.0, "distance": 2.0, "complete": 2.5}
PUBLIC = [box_iou_loss, generalized_box_iou_loss, distance_box_iou_loss, complete_box_iou_loss]


def with_gradients(function, first, second, upstream=None):
    first, second = (rows.detach().clone().requires_grad_() for rows in (first, second))
    losses = function(first, second)
    losses.backward(torch.ones_like(losses) if upstream is None else upstream)
    return losses.detach(), first.grad, second.grad


def pairs_of(count, *, dtype=torch.float64):
    return random_boxes(count, seed=1, dtype=dtype), random_boxes(count, seed=2, dtype=dtype)


def whole_boxes(count, seed):
    """Corners on a small grid: ties, shared edges, no sides and inverted boxes are frequent."""
    return torch.randint(-4, 5, (count, 4), generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("name", LOSSES)
def test_box_losses_are_one_minus_the_paired_measure(name):
    loss, measure, _ = LOSSES[name]
    for first, second in (pairs_of(500), (whole_boxes(500, 1), whole_boxes(500, 2))):
        torch.testing.assert_close(loss(first, second), 1 - measure(first, second), rtol=1e-12, atol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_box_losses_equal_finite_differences(name):
    loss = LOSSES[name][0]
    first, second = (rows.requires_grad_() for rows in pairs_of(12))
    if name != "complete":
        assert torch.autograd.gradcheck(loss, (first, second))
        return
    frozen = alpha_of(first.detach(), second.detach())

    def numeric(rows, partners):
        return 1 - paired_distance_box_iou(rows, partners) + frozen * aspect_penalty(rows, partners)

    reference = with_gradients(numeric, first, second)
    assert torch.autograd.gradcheck(numeric, (first, second))
    for one, other in zip(with_gradients(loss, first, second), reference, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def aspect_penalty(first, second):
    angles = [torch.atan((rows[:, 2] - rows[:, 0]) / (rows[:, 3] - rows[:, 1])) for rows in (first, second)]
    return 4 / math.pi**2 * (angles[0] - angles[1]) ** 2


def alpha_of(first, second):
    penalty = aspect_penalty(first, second)
    return penalty / (1 - paired_box_iou(first, second) + penalty)


@pytest.mark.parametrize("name", ["generalized", "distance", "complete"])
def test_ten_thousand_box_losses_equal_those_of_torchvision(name):
    loss, _, peer = LOSSES[name]
    ours = with_gradients(loss, *pairs_of(10_000))
    theirs = with_gradients(partial(peer, eps=0), *pairs_of(10_000))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", HIGHEST)
@given(rows=boxes(most=5), partners=boxes(most=5))
def test_hostile_boxes_cost_within_the_range_and_teach_finitely(name, rows, partners):
    count = min(len(rows), len(partners))
    for first, second in ((rows[:count], partners[:count]), (rows, rows)):
        losses, *gradients = with_gradients(LOSSES[name][0], first, second)
        assert ((losses >= -1e-6) & (losses <= HIGHEST[name] + 1e-6)).all()
        assert all(torch.isfinite(gradient).all() for gradient in gradients)


@given(rows=boxes(most=5), partners=boxes(most=5))
def test_hostile_boxes_teach_the_plain_distance_finitely(rows, partners):
    count = min(len(rows), len(partners))
    found = with_gradients(LOSSES["unsquared"][0], rows[:count], partners[:count])
    assert all(torch.isfinite(part).all() for part in found)


@pytest.mark.parametrize("function", PUBLIC)
def test_degenerate_boxes_cost_finitely_and_leave_other_rows_alone(function):
    first = torch.tensor([[5.0, 5, 5, 5], [2, 5, 8, 5], [1, 1, 4, 4], [9, 9, 1, 1], [1e38, 1e38, 3e38, 3e38]])
    second = torch.tensor([[5.0, 5, 5, 5], [2, 5, 8, 5], [2, 2, 5, 6], [0, 0, 4, 4], [-3e38, -3e38, 0, 0]])
    mixed = with_gradients(function, first, second)
    assert all(torch.isfinite(part).all() for part in mixed)
    for one, other in zip(mixed, with_gradients(function, first[2:3], second[2:3]), strict=True):
        assert torch.equal(one[2:3], other)
    bad = first.clone()
    bad[0] = torch.nan
    for one, other in zip(with_gradients(function, bad, second), mixed, strict=True):
        assert torch.equal(one[1:], other[1:])


@pytest.mark.parametrize("function", PUBLIC)
@given(rows=boxes(most=5, inverted=False, huge=1e15))
def test_a_box_with_an_area_matches_itself_at_no_cost(function, rows):
    rows = rows[((rows[:, 2:] - rows[:, :2]).prod(1) > 1e-20)]
    assert (function(rows, rows).abs() <= 1e-6).all()


@pytest.mark.parametrize("function", PUBLIC)
@given(order=st.permutations(range(8)))
def test_box_losses_are_symmetric_and_stay_with_their_pair(function, order):
    first, second = pairs_of(8)
    straight, turned = with_gradients(function, first, second), with_gradients(function, second, first)
    torch.testing.assert_close(turned[0], straight[0], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(turned[1], straight[2], rtol=1e-12, atol=1e-14)
    shuffled = with_gradients(function, first[order], second[order])
    for one, other in zip(shuffled, straight, strict=True):
        torch.testing.assert_close(one, other[order], rtol=1e-14, atol=0)


@pytest.mark.parametrize("function", PUBLIC)
@given(shift=st.floats(-50, 50), scale=st.floats(0.1, 10))
def test_box_losses_do_not_change_with_place_and_size(function, shift, scale):
    first, second = pairs_of(6)
    moved = function(first * scale + shift, second * scale + shift)
    torch.testing.assert_close(moved, function(first, second), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("function", PUBLIC[1:])  # IoU cannot tell how far apart boxes are
@given(gap=st.floats(0.1, 50), more=st.floats(0.1, 50))
def test_boxes_further_apart_cost_more(function, gap, more):
    box = torch.tensor([[0.0, 0, 2, 3]], dtype=torch.float64)
    near, far = (box + torch.tensor([2 + g, 0, 2 + g, 0], dtype=torch.float64) for g in (gap, gap + more))
    assert function(box, near) < function(box, far)


@pytest.mark.parametrize("function", PUBLIC)
@given(weights=st.lists(st.floats(0, 9), min_size=4, max_size=4))
def test_weights_of_box_losses_are_linear_and_take_a_gradient(function, weights):
    first, second = pairs_of(4)
    shares = torch.tensor(weights, dtype=torch.float64, requires_grad=True)
    losses = function(first, second)
    weighted = function(first, second, weights=shares)
    assert torch.equal(weighted, losses * shares)
    weighted.sum().backward()
    assert torch.equal(shares.grad, losses)


@pytest.mark.parametrize("function", PUBLIC)
def test_only_what_needs_a_gradient_gets_one(function):
    first, second = pairs_of(5)
    both = with_gradients(function, first, second)
    for place in (0, 1):
        rows = [first.clone(), second.clone()]
        rows[place].requires_grad_()
        function(*rows).sum().backward()
        assert torch.equal(rows[place].grad, both[1 + place])
        assert rows[1 - place].grad is None
    assert not function(first, second).requires_grad


@pytest.mark.parametrize("function", PUBLIC)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided", "expanded"])
def test_box_losses_take_types_and_layouts(function, dtype, layout):
    first, second = (rows.to(dtype) for rows in pairs_of(6))
    if layout == "transposed":
        first = first.T.contiguous().T
    elif layout == "strided":
        first = torch.stack((first, first), -1)[..., 0]
    elif layout == "expanded":
        first = first[:1].expand(6, 4)
    losses, gradient, _ = with_gradients(function, first, second)
    exact = with_gradients(function, first.double(), second.double())
    assert (losses.dtype, gradient.dtype) == (torch.float32, dtype)
    torch.testing.assert_close(losses.double(), exact[0], rtol=1e-5, atol=1e-5)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(gradient.double(), exact[1], rtol=tolerance, atol=1e-5)


@pytest.mark.parametrize("function", PUBLIC)
def test_box_losses_broadcast_and_mix_types(function):
    first, second = pairs_of(12)
    first, second = first.reshape(3, 4, 4), second[:4]
    one = first[:1].clone().requires_grad_()
    losses = function(one, first)
    losses.sum().backward()
    expanded = with_gradients(function, first[:1].expand(3, 4, 4), first)
    assert torch.equal(losses.detach(), expanded[0])
    torch.testing.assert_close(one.grad, expanded[1].sum(0, keepdim=True))
    assert function(first, second).shape == (3, 4)
    assert function(first[0, 0], second[0]).shape == ()
    whole = torch.tensor([[0, 0, 2, 2]])
    assert function(whole, torch.tensor([[0.0, 0, 2, 2]])).dtype == torch.float64


@pytest.mark.parametrize("function", PUBLIC)
def test_the_sum_over_no_boxes_is_zero_with_a_gradient(function):
    none = torch.zeros(0, 4, requires_grad=True)
    total = function(none, torch.zeros(0, 4)).sum()
    assert total.item() == 0
    total.backward()
    assert none.grad.shape == (0, 4)
    assert unhooked(function)(torch.tensor([]), torch.tensor([])).shape == (0,)


@pytest.mark.slow
@pytest.mark.parametrize("function", PUBLIC)
def test_pieces_and_threads_change_no_box_loss(function, monkeypatch):
    first, second = whole_boxes(400, 1), whole_boxes(400, 2)
    first[7] = 1e200
    threads, results = torch.get_num_threads(), []
    for chunk, count in ((1 << 17, 1), (100, 1), (1, 2), (1 << 17, 2)):
        monkeypatch.setattr(gradient, "CHUNK", chunk)
        torch.set_num_threads(count)
        results.append(with_gradients(function, first, second))
    torch.set_num_threads(threads)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("function", [*PUBLIC, partial(distance_box_iou_loss, variant="unsquared")])
def test_the_form_that_a_compiler_traces_gives_the_same(function, monkeypatch):
    expected = with_gradients(function, *pairs_of(60))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(with_gradients(function, *pairs_of(60)), expected)


def test_coordinates_that_count_as_smaller_ones_have_no_gradient():
    boxes = torch.tensor([[0.0, 0, 1e30, 4], [0, 0, 4, 4]])
    _, gradient, _ = with_gradients(generalized_box_iou_loss, boxes, torch.tensor([[1.0, 1, 5, 5]]).expand(2, 4))
    assert gradient[0, 2] == 0
    assert gradient[1].all()


def test_goldens_of_box_losses():
    first, second = torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 1, 3, 3]])
    assert generalized_box_iou_loss(first, second).item() == pytest.approx(1 - (1 / 7 - 2 / 9))
    assert distance_box_iou_loss(first, second).item() == pytest.approx(1 - (1 / 7 - 2 / 18))
    assert distance_box_iou_loss(first, second, variant="unsquared").item() == pytest.approx(1 - (1 / 7 - 2**0.5 / 18))
    assert complete_box_iou_loss(first, second).item() == pytest.approx(1 - (1 / 7 - 2 / 18))


@pytest.mark.parametrize("function", PUBLIC)
def test_box_losses_refuse_what_does_not_fit(function):
    name = function.__name__
    with pytest.raises(ValueError, match=rf"^{name}: boxes1 has shape \(2, 3\)"):
        unhooked(function)(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=rf"^{name}: boxes2 has shape \(2, 5\)"):
        unhooked(function)(torch.zeros(2, 4), torch.zeros(2, 5))
    with pytest.raises(ValueError, match=rf"^{name}: boxes.*\(2, 4\).*\(3, 4\)"):
        unhooked(function)(torch.zeros(2, 4), torch.zeros(3, 4))
    with pytest.raises(ValueError, match=rf"^{name}: weights.*\(3,\).*\(2,\)"):
        unhooked(function)(torch.zeros(2, 4), torch.zeros(2, 4), weights=torch.ones(3))


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match=r"distance_box_iou_loss: variant='cubed'.*'squared'.*'unsquared'"):
        unhooked(distance_box_iou_loss)(torch.zeros(2, 4), torch.zeros(2, 4), variant="cubed")


def test_full_checks_name_a_box_that_is_not_finite(monkeypatch):
    monkeypatch.setenv("DETKIT_CHECKS", "full")
    for function in PUBLIC:
        with pytest.raises(ValueError, match=rf"{function.__name__}: boxes2\[1, 2\]=nan"):
            function(torch.zeros(2, 4), torch.tensor([[0.0, 0, 1, 1], [0, 0, torch.nan, 1]]))


@pytest.mark.parametrize(("beta", "distance", "value"), [(1e-45, 0.0, 0.0), (1e-45, 2.0, 2.0), (1e30, 1e25, 5e19)])
def test_extreme_bends_stay_finite(beta, distance, value):
    predictions = torch.tensor([distance], requires_grad=True)
    loss = smooth_l1_loss(predictions, torch.zeros(1), beta=beta)
    loss.sum().backward()
    torch.testing.assert_close(loss.detach(), torch.tensor([value]))
    assert predictions.grad.isfinite().all()
