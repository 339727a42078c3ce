"""Losses on class logits against formulas in plain Python, torchvision and torch, and at the ends of the range."""

import pytest
import references as slow
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from strategies import unhooked
from torch.nn import functional as F

from detkit import _gradient as gradient
from detkit.losses import (
    distribution_focal_loss,
    label_smoothed_cross_entropy,
    quality_focal_loss,
    sigmoid_focal_loss,
    varifocal_loss,
)

NEGATIVE, IGNORED = -1, -2
HALVES = [torch.float16, torch.bfloat16]
ELEMENTWISE = [sigmoid_focal_loss, varifocal_loss, quality_focal_loss]
EXTREMES = [0.0, -0.0, 1e-30, 0.3, -0.3, 18.0, -18.0, 90.0, -90.0, 200.0, -200.0, 6e4, -6e4]
LOGIT = st.floats(-30, 30, width=32)
UNIT = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1, width=32))
EXPONENT = st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 3.0])


SLOW = {sigmoid_focal_loss: slow.focal, varifocal_loss: slow.varifocal, quality_focal_loss: slow.quality_focal}
OPTIONS = [
    (sigmoid_focal_loss, {}),
    (sigmoid_focal_loss, {"alpha": None, "gamma": 0.5}),
    (sigmoid_focal_loss, {"alpha": 0.9, "gamma": 0.0}),
    (sigmoid_focal_loss, {"alpha": 0.0, "gamma": 3.0}),
    (varifocal_loss, {}),
    (varifocal_loss, {"alpha": 0.3, "gamma": 0.5}),
    (varifocal_loss, {"gamma": 0.0}),
    (quality_focal_loss, {}),
    (quality_focal_loss, {"beta": 0.0}),
    (quality_focal_loss, {"beta": 1.5}),
]


def logits_of(*shape, seed=0, scale=4.0, dtype=torch.float64):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale).to(dtype)


def soft_targets(*shape, seed=1, dtype=torch.float64):
    """A third 0, a third 1, a third between."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.rand(*shape, generator=generator, dtype=torch.float64)
    return torch.where(targets < 1 / 3, 0, torch.where(targets > 2 / 3, 1, targets)).to(dtype)


def labels_of(*shape, classes=5, seed=2):
    return torch.randint(-2, classes, shape, generator=torch.Generator().manual_seed(seed))


def one_hot(labels, classes, dtype=torch.float64):
    return (labels[..., None] == torch.arange(classes)).to(dtype)


def value_and_gradient(function, logits, *arguments, upstream=None, **options):
    logits = logits.detach().clone().requires_grad_()
    losses = function(logits, *arguments, **options)
    losses.backward(torch.ones_like(losses) if upstream is None else upstream)
    return losses.detach(), logits.grad


@pytest.mark.parametrize(("function", "options"), OPTIONS)
def test_values_follow_the_formula(function, options):
    logits, targets = logits_of(6, 7, scale=8), soft_targets(6, 7)
    pairs = zip(logits.flatten().tolist(), targets.flatten().tolist(), strict=True)
    expected = torch.tensor([SLOW[function](x, y, **options) for x, y in pairs], dtype=torch.float64).reshape(6, 7)
    torch.testing.assert_close(function(logits, targets, **options), expected, rtol=1e-11, atol=1e-300)
    single = function(logits.float(), targets.float(), **options)
    torch.testing.assert_close(single.double(), expected, rtol=3e-5, atol=1e-30)


@pytest.mark.parametrize(("function", "options"), OPTIONS)
def test_gradients_equal_finite_differences(function, options):
    logits, targets = logits_of(4, 5, scale=2).requires_grad_(), soft_targets(4, 5)
    assert torch.autograd.gradcheck(lambda rows: function(rows, targets, **options), (logits,))


@pytest.mark.parametrize("options", [{}, {"alpha": None, "gamma": 0.0}, {"alpha": 0.6, "gamma": 0.5}])
def test_focal_loss_of_labels_equals_that_of_one_hot_targets(options):
    logits, labels = logits_of(3, 40, 5, scale=6), labels_of(3, 40)
    assert {-2, -1, 0, 4} <= set(labels.flatten().tolist())
    ours = value_and_gradient(sigmoid_focal_loss, logits, labels, **options)
    dense = value_and_gradient(sigmoid_focal_loss, logits, one_hot(labels, 5), **options)
    for one, other in zip(ours, dense, strict=True):
        torch.testing.assert_close(one, torch.where(labels[..., None] == IGNORED, 0, other), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("kind", [torch.int64, torch.int32, torch.int16, torch.int8])
def test_labels_may_be_of_any_integer_type(kind):
    logits, labels = logits_of(20, 5), labels_of(20)
    assert torch.equal(sigmoid_focal_loss(logits, labels.to(kind)), sigmoid_focal_loss(logits, labels))
    assert torch.equal(
        label_smoothed_cross_entropy(logits, labels.clamp(min=0).to(kind)),
        label_smoothed_cross_entropy(logits, labels.clamp(min=0)),
    )


def test_focal_loss_of_labels_has_the_gradient_of_finite_differences():
    logits, labels = logits_of(6, 3, scale=2).requires_grad_(), torch.tensor([0, 2, -1, -2, 1, 1])
    assert torch.autograd.gradcheck(lambda rows: sigmoid_focal_loss(rows, labels, gamma=1.5), (logits,))


@pytest.mark.parametrize(("function", "options"), OPTIONS)
def test_the_form_that_a_compiler_traces_gives_the_same(function, options, monkeypatch):
    logits, targets = logits_of(50, 5), [soft_targets(50, 5)]
    if function is not varifocal_loss:
        targets.append(labels_of(50))
    expected = [value_and_gradient(function, logits, some, **options) for some in targets]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for some, wanted in zip(targets, expected, strict=True):
        torch.testing.assert_close(value_and_gradient(function, logits, some, **options), wanted)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.5, 0.0), (0.1, 1.0), (-1, 3.0)])
def test_ten_thousand_focal_losses_equal_those_of_torchvision(alpha, gamma):
    logits, targets = logits_of(10_000, scale=5), soft_targets(10_000)
    ours = value_and_gradient(sigmoid_focal_loss, logits, targets, alpha=None if alpha < 0 else alpha, gamma=gamma)
    peer = value_and_gradient(torchvision.ops.sigmoid_focal_loss, logits, targets, alpha=alpha, gamma=gamma)
    for one, other in zip(ours, peer, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_logits_have_the_gradient_of_the_float64_limit(gamma, dtype):
    logits = torch.tensor(EXTREMES).to(dtype)
    for function, option in ((sigmoid_focal_loss, "gamma"), (varifocal_loss, "gamma"), (quality_focal_loss, "beta")):
        for target in (0.0, 1.0, 0.25):
            targets = torch.full_like(logits, target)
            found = value_and_gradient(function, logits, targets, **{option: gamma})
            exact = value_and_gradient(function, logits.double(), targets.double(), **{option: gamma})
            for one, other in zip(found, exact, strict=True):
                assert torch.isfinite(one).all()
                assert torch.isfinite(other).all()
                torch.testing.assert_close(one.double(), other, rtol=1e-2 if dtype in HALVES else 1e-5, atol=1e-7)


@pytest.mark.parametrize("label", [0, NEGATIVE, IGNORED])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_extreme_logits_with_labels_stay_finite_and_exact(label, gamma):
    logits = torch.tensor([*EXTREMES, 3e38, -3e38])[:, None]
    labels = torch.full((len(logits),), label)
    found = value_and_gradient(sigmoid_focal_loss, logits, labels, gamma=gamma)
    exact = value_and_gradient(sigmoid_focal_loss, logits.double(), labels, gamma=gamma)
    for one, other in zip(found, exact, strict=True):
        assert torch.isfinite(one).all()
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("function", ELEMENTWISE)
@pytest.mark.parametrize("target", [0.0, 0.5, 1.0])
def test_the_largest_logits_cost_and_teach_finitely(function, target):
    logits = torch.tensor([3.4e38, -3.4e38, 1e38, -1e38])
    losses, gradient = value_and_gradient(function, logits, torch.full((4,), target))
    assert torch.isfinite(losses).all()
    assert torch.isfinite(gradient).all()


def test_a_quality_reached_exactly_has_no_gradient():
    for beta in (0.5, 1.0, 2.0):
        losses, gradient = value_and_gradient(quality_focal_loss, torch.zeros(1), torch.tensor([0.5]), beta=beta)
        assert (losses.item(), gradient.item()) == (0, 0)


@given(st.lists(st.tuples(LOGIT, UNIT), max_size=8), UNIT, EXPONENT)
def test_no_loss_is_negative(rows, alpha, gamma):
    logits, targets = (torch.tensor([row[i] for row in rows]) for i in (0, 1))
    for losses in (
        sigmoid_focal_loss(logits, targets, alpha=alpha, gamma=gamma),
        varifocal_loss(logits, targets, alpha=alpha, gamma=gamma),
        quality_focal_loss(logits, targets, beta=gamma),
    ):
        assert (losses >= 0).all()


@given(LOGIT, LOGIT, EXPONENT)
def test_focal_loss_grows_with_the_error(first, second, gamma):
    low, high = sorted((first, second))
    logits = torch.tensor([low, high], dtype=torch.float64)
    negative = sigmoid_focal_loss(logits, torch.zeros(2).double(), gamma=gamma)
    positive = sigmoid_focal_loss(logits, torch.ones(2).double(), gamma=gamma)
    assert negative[0] <= negative[1]
    assert positive[0] >= positive[1]


@given(LOGIT, UNIT, EXPONENT, EXPONENT)
def test_a_larger_gamma_never_costs_more(logit, target, first, second):
    low, high = sorted((first, second))
    row, targets = torch.tensor([logit]).double(), torch.tensor([target]).double()
    for function, option in ((sigmoid_focal_loss, "gamma"), (quality_focal_loss, "beta")):
        assert function(row, targets, **{option: high}) <= function(row, targets, **{option: low}) + 1e-12


@given(st.lists(st.tuples(LOGIT, UNIT), min_size=1, max_size=8))
def test_without_balance_and_focus_the_losses_are_binary_cross_entropy(rows):
    logits, targets = (torch.tensor([row[i] for row in rows]).double() for i in (0, 1))
    plain = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    torch.testing.assert_close(sigmoid_focal_loss(logits, targets, alpha=None, gamma=0), plain, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        sigmoid_focal_loss(logits, targets, alpha=0.5, gamma=0), plain / 2, rtol=1e-9, atol=1e-12
    )
    torch.testing.assert_close(quality_focal_loss(logits, targets, beta=0), plain, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        varifocal_loss(logits, targets, alpha=1, gamma=0),
        torch.where(targets > 0, targets * plain, plain),
        rtol=1e-9,
        atol=1e-12,
    )


@given(LOGIT, UNIT, UNIT, EXPONENT)
def test_swapping_target_and_sign_swaps_alpha(logit, target, alpha, gamma):
    rows, targets = torch.tensor([logit]).double(), torch.tensor([target]).double()
    one = sigmoid_focal_loss(rows, targets, alpha=alpha, gamma=gamma)
    other = sigmoid_focal_loss(-rows, 1 - targets, alpha=1 - alpha, gamma=gamma)
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


@given(st.lists(st.tuples(LOGIT, UNIT, st.integers(-2, 0), st.floats(0, 10, width=32)), min_size=1, max_size=8))
def test_weights_scale_each_loss_and_gradient(rows):
    logits, targets, labels, weights = (torch.tensor([row[i] for row in rows]) for i in range(4))
    for function in ELEMENTWISE:
        plain = value_and_gradient(function, logits, targets)
        weighted = value_and_gradient(function, logits, targets, weights=weights)
        for one, other in zip(weighted, plain, strict=True):
            torch.testing.assert_close(one, other * weights)
    column = value_and_gradient(sigmoid_focal_loss, logits[:, None], labels, weights=weights[:, None])
    plain = value_and_gradient(sigmoid_focal_loss, logits[:, None], labels)
    for one, other in zip(column, plain, strict=True):
        torch.testing.assert_close(one, other * weights[:, None])


@given(st.permutations(range(12)))
def test_rows_stay_independent_of_their_order(order):
    logits, labels = logits_of(12, 5), labels_of(12)
    for function in (sigmoid_focal_loss, quality_focal_loss):
        straight = value_and_gradient(function, logits, labels)
        shuffled = value_and_gradient(function, logits[order], labels[order])
        for one, other in zip(shuffled, straight, strict=True):
            torch.testing.assert_close(one, other[order], rtol=1e-14, atol=0)


def test_ignored_rows_cost_and_teach_nothing_and_disturb_nobody():
    logits, labels = logits_of(30, 5), labels_of(30)
    off = labels == IGNORED
    wild = torch.where(off[:, None], torch.nan, logits)
    for function in (sigmoid_focal_loss, quality_focal_loss, label_smoothed_cross_entropy):
        given_labels = (
            labels if function is not label_smoothed_cross_entropy else torch.where(off, labels, labels.abs())
        )
        plain = value_and_gradient(function, logits, given_labels)
        for rows in plain:
            assert (rows[off] == 0).all()
            assert (rows[~off] != 0).any()
        disturbed = value_and_gradient(function, wild, given_labels)
        for one, other in zip(disturbed, plain, strict=True):
            assert torch.equal(one[~off], other[~off])


def test_one_bad_logit_changes_no_other():
    logits, targets = logits_of(9), soft_targets(9)
    bad = logits.clone()
    bad[4] = torch.nan
    keep = torch.arange(9) != 4
    for function in ELEMENTWISE:
        for one, other in zip(
            value_and_gradient(function, bad, targets), value_and_gradient(function, logits, targets), strict=True
        ):
            assert torch.equal(one[keep], other[keep])
            assert one[4].isnan()


def test_any_upstream_gradient_is_passed_on():
    logits, labels = logits_of(8, 5), labels_of(8)
    upstream = logits_of(8, 5, seed=7)
    gradient = value_and_gradient(sigmoid_focal_loss, logits, labels)[1]
    scaled = value_and_gradient(sigmoid_focal_loss, logits, labels, upstream=upstream)[1]
    torch.testing.assert_close(scaled, gradient * upstream)


def test_losses_flow_through_a_layer_twice():
    weight = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    features, labels = logits_of(8, 4), labels_of(8)
    losses = sigmoid_focal_loss(features @ weight, labels).sum()
    first = torch.autograd.grad(losses, weight, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(losses, weight)[0], first)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided", "expanded"])
def test_types_and_layouts_give_the_same_numbers(dtype, layout):
    base = logits_of(6, 5, dtype=dtype)
    logits = {
        "contiguous": base,
        "transposed": base.T.contiguous().T,
        "strided": torch.stack((base, base), -1)[..., 0],
        "expanded": base[:1].expand(6, 5),
    }[layout]
    labels, targets = labels_of(6), soft_targets(6, 5, dtype=dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for function, target in ((f, t) for f in ELEMENTWISE for t in (labels, targets)):
        if function is varifocal_loss and target is labels:
            continue
        losses, gradient = value_and_gradient(function, logits, target)
        exact = value_and_gradient(
            function, logits.contiguous().double(), target if target is labels else targets.double()
        )
        assert (losses.dtype, gradient.dtype) == (wide, dtype)
        torch.testing.assert_close(losses.double(), exact[0], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(gradient.double(), exact[1], rtol=1e-2 if dtype in HALVES else 1e-5, atol=1e-7)


@pytest.mark.parametrize("function", [*ELEMENTWISE, distribution_focal_loss, label_smoothed_cross_entropy])
def test_the_sum_over_nothing_is_zero_with_a_gradient(function):
    dense = function in ELEMENTWISE
    logits = torch.zeros(0, 5, requires_grad=True)
    total = function(logits, torch.zeros(0, 5) if dense else torch.zeros(0, dtype=torch.int64)).sum()
    assert total.item() == 0
    assert total.grad_fn is not None
    total.backward()
    assert logits.grad.shape == (0, 5)


@pytest.mark.parametrize("function", [sigmoid_focal_loss, quality_focal_loss])
def test_no_class_gives_no_loss(function):
    assert function(torch.zeros(4, 0), torch.full((4,), NEGATIVE)).shape == (4, 0)
    assert function(torch.zeros(2, 0, 3), torch.zeros(2, 0, dtype=torch.int64)).shape == (2, 0, 3)


@pytest.mark.slow
def test_pieces_and_threads_change_nothing(monkeypatch):
    logits, labels, targets = logits_of(200, 7), labels_of(200, classes=7), soft_targets(200, 7)
    logits[:4] *= 30
    threads = torch.get_num_threads()
    for function, target in ((sigmoid_focal_loss, labels), *((f, targets) for f in ELEMENTWISE)):
        results = []
        for chunk, count in ((1 << 17, 1), (100, 1), (1, 2), (1 << 17, 2)):
            monkeypatch.setattr(gradient, "CHUNK", chunk)
            torch.set_num_threads(count)
            results.append(value_and_gradient(function, logits, target))
        torch.set_num_threads(threads)
        for other in results[1:]:
            torch.testing.assert_close(other, results[0], rtol=1e-12, atol=0)


def test_quality_is_the_target_of_the_class():
    logits, labels = logits_of(12, 5), labels_of(12)
    quality = torch.rand(12, dtype=torch.float64)
    soft = one_hot(labels, 5) * quality[:, None]
    expected = torch.where(labels[:, None] == IGNORED, 0, quality_focal_loss(logits, soft))
    assert torch.equal(quality_focal_loss(logits, labels, quality=quality), expected)
    hard = torch.where(labels[:, None] == IGNORED, 0, quality_focal_loss(logits, one_hot(labels, 5)))
    assert torch.equal(quality_focal_loss(logits, labels), hard)


def test_bool_targets_are_zeros_and_ones():
    logits, targets = logits_of(4, 5), soft_targets(4, 5) > 0.5
    assert torch.equal(sigmoid_focal_loss(logits, targets), sigmoid_focal_loss(logits, targets.double()))


def test_distribution_focal_loss_follows_its_formula():
    logits = logits_of(2, 9, 4, scale=2)
    targets = torch.tensor([[0, 0.25, 1, 1.5, 2, 2.75, 3, 1e-9, 2.999]] * 2, dtype=torch.float64)
    pairs = zip(logits.reshape(-1, 4).tolist(), targets.flatten().tolist(), strict=True)
    expected = torch.tensor([slow.distribution_focal(row, t) for row, t in pairs], dtype=torch.float64).reshape(2, 9)
    torch.testing.assert_close(distribution_focal_loss(logits, targets), expected)
    weights = torch.rand(2, 9, dtype=torch.float64)
    torch.testing.assert_close(distribution_focal_loss(logits, targets, weights=weights), expected * weights)


def test_distribution_focal_loss_has_both_gradients_of_finite_differences():
    logits, targets = logits_of(5, 4, scale=2).requires_grad_(), torch.tensor([0.2, 1.5, 2.9, 2.1, 0.7]).double()
    assert torch.autograd.gradcheck(distribution_focal_loss, (logits, targets.requires_grad_()))


@given(st.integers(0, 4), st.floats(0, 1))
def test_distribution_focal_loss_is_least_where_the_mean_is_the_target(place, part):
    target = torch.tensor([min(place + part, 4.0)], dtype=torch.float64)
    left = min(place, 3)
    best = torch.full((1, 5), 1e-9, dtype=torch.float64)
    best[0, left], best[0, left + 1] = left + 1 - target + 1e-9, target - left + 1e-9
    logits = best.log().requires_grad_()
    distribution_focal_loss(logits, target).sum().backward()
    assert logits.grad.abs().max() < 1e-6


def test_distribution_targets_outside_are_moved_to_the_ends_and_nan_hurts_itself_only():
    logits = logits_of(4, 4)
    found = distribution_focal_loss(logits, torch.tensor([-3.0, 9.0, torch.nan, 1.5]).double())
    inside = distribution_focal_loss(logits, torch.tensor([0.0, 3.0, 0.0, 1.5]).double())
    assert torch.equal(found[[0, 1, 3]], inside[[0, 1, 3]])
    assert found[2].isnan()


@pytest.mark.parametrize("scale", [1e4, 3e38])
def test_rows_of_extreme_logits_cost_and_teach_finitely(scale):
    logits = torch.tensor([[1.0, -1, 1], [-1, -1, -1], [0, 1, -1]]) * scale
    for function, targets in (
        (distribution_focal_loss, torch.tensor([0.5, 1.0, 2.0])),
        (label_smoothed_cross_entropy, torch.tensor([0, 1, 2])),
        (label_smoothed_cross_entropy, torch.eye(3)),
    ):
        losses, gradient = value_and_gradient(function, logits, targets)
        assert torch.isfinite(losses).all()
        assert torch.isfinite(gradient).all()


def test_golden_of_label_smoothing():
    logits = torch.linspace(-1, 1, 10, dtype=torch.float64)[None]
    assert label_smoothed_cross_entropy(logits, torch.tensor([3])).item() == pytest.approx(2.7947262, abs=5e-8)
    assert label_smoothed_cross_entropy(logits, torch.tensor([3]), smoothing=0.1).shape == (1,)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_equals_torch_at_the_converted_mass(smoothing):
    logits, labels = logits_of(50, 6), labels_of(50, classes=6).clamp(min=0)
    ours = value_and_gradient(label_smoothed_cross_entropy, logits, labels, smoothing=smoothing)
    peer = value_and_gradient(F.cross_entropy, logits, labels, label_smoothing=smoothing * 6 / 5, reduction="none")
    for one, other in zip(ours, peer, strict=True):
        torch.testing.assert_close(one, other)
    dense = value_and_gradient(label_smoothed_cross_entropy, logits, one_hot(labels, 6), smoothing=smoothing)
    for one, other in zip(ours, dense, strict=True):
        torch.testing.assert_close(one, other)


@given(st.floats(0, 1), st.integers(0, 3))
def test_smoothed_cross_entropy_is_the_cross_entropy_to_the_smoothed_targets(smoothing, label):
    logits = logits_of(1, 4, seed=label)
    smooth = torch.full((1, 4), smoothing / 3, dtype=torch.float64)
    smooth[0, label] = 1 - smoothing
    found = label_smoothed_cross_entropy(logits, torch.tensor([label]), smoothing=smoothing)
    torch.testing.assert_close(found, -(smooth * logits.log_softmax(-1)).sum(-1))


def test_soft_targets_are_smoothed_each():
    logits = logits_of(7, 4)
    targets = torch.rand(7, 4, dtype=torch.float64).softmax(-1)
    smooth = targets * 0.8 + (1 - targets) * (0.2 / 3)
    expected = F.cross_entropy(logits, smooth, reduction="none")
    torch.testing.assert_close(label_smoothed_cross_entropy(logits, targets, smoothing=0.2), expected)


def test_smoothed_cross_entropy_has_the_gradient_of_finite_differences_and_takes_weights():
    logits, labels = logits_of(5, 4, scale=1).requires_grad_(), torch.tensor([0, 3, IGNORED, 1, 1])
    weights = torch.rand(5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda rows, shares: label_smoothed_cross_entropy(rows, labels, weights=shares), (logits, weights)
    )


@pytest.mark.parametrize("dtype", HALVES)
def test_losses_of_rows_promote_half_precision(dtype):
    logits, targets = logits_of(6, 4, dtype=dtype), torch.rand(6).to(dtype)
    assert torch.equal(
        distribution_focal_loss(logits, targets), distribution_focal_loss(logits.float(), targets.float())
    )
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    assert torch.equal(
        label_smoothed_cross_entropy(logits, labels), label_smoothed_cross_entropy(logits.float(), labels)
    )


def test_one_class_needs_no_smoothing():
    assert label_smoothed_cross_entropy(torch.ones(2, 1), torch.tensor([0, 0]), smoothing=0.0).tolist() == [0, 0]
    with pytest.raises(ValueError, match=r"label_smoothed_cross_entropy: smoothing=0.1.*\[0, 1\].*0"):
        label_smoothed_cross_entropy(torch.ones(2, 1), torch.tensor([0, 0]))


@pytest.mark.parametrize("smoothing", [-0.1, 1.1, float("nan")])
def test_smoothing_outside_zero_to_one_is_refused(smoothing):
    with pytest.raises(ValueError, match=f"smoothing={smoothing}"):
        label_smoothed_cross_entropy(torch.ones(2, 3), torch.tensor([0, 0]), smoothing=smoothing)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_bad_exponents_are_refused_by_name(bad):
    rows = torch.zeros(2)
    for function, option in (
        (sigmoid_focal_loss, "gamma"),
        (varifocal_loss, "gamma"),
        (varifocal_loss, "alpha"),
        (quality_focal_loss, "beta"),
    ):
        message = rf"^{function.__name__}: {option}={bad} must be finite and at least 0"
        with pytest.raises(ValueError, match=message):
            function(rows, rows, **{option: bad})


@pytest.mark.parametrize("alpha", [-1, 1.5, float("nan")])
def test_an_alpha_outside_zero_to_one_is_refused(alpha):
    with pytest.raises(ValueError, match=rf"sigmoid_focal_loss: alpha={alpha}.*\[0, 1\].*None"):
        sigmoid_focal_loss(torch.zeros(2), torch.zeros(2), alpha=alpha)


@pytest.mark.parametrize("function", ELEMENTWISE)
def test_targets_that_want_a_gradient_are_refused(function):
    with pytest.raises(ValueError, match=rf"{function.__name__}: targets require a gradient .* targets.detach\(\)"):
        function(torch.zeros(2), torch.zeros(2, requires_grad=True))


@pytest.mark.parametrize("function", [*ELEMENTWISE, label_smoothed_cross_entropy])
def test_shapes_that_disagree_are_refused(function):
    with pytest.raises(ValueError, match=rf"^{function.__name__}: logits.*\(3, 2\).*targets \(2, 3\)"):
        unhooked(function)(torch.zeros(3, 2), torch.zeros(2, 3))
    if function is not varifocal_loss:
        message = rf"^{function.__name__}: logits have shape \(3, 2\) and integer targets \(2,\)"
        with pytest.raises(ValueError, match=message):
            unhooked(function)(torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64))


def test_shapes_of_distributions_are_checked():
    for logits, targets in (((3, 4), (4,)), ((3, 1), (3,)), ((), ())):
        with pytest.raises(ValueError, match="distribution_focal_loss: logits have shape"):
            unhooked(distribution_focal_loss)(torch.zeros(logits), torch.zeros(targets))
    assert distribution_focal_loss(torch.zeros(3, 2), torch.zeros(3)).shape == (3,)


@pytest.mark.parametrize("shape", [(3,), (2, 2, 2), (4, 2)])
def test_weights_that_do_not_fit_are_refused(shape):
    message = r"sigmoid_focal_loss: weights have shape .* allowed: what broadcasts to \(2, 2\)"
    with pytest.raises(ValueError, match=message):
        sigmoid_focal_loss(torch.zeros(2, 2), torch.zeros(2, 2), weights=torch.ones(shape))


def test_quality_needs_labels_and_their_shape():
    with pytest.raises(ValueError, match=r"quality.*integer targets.*torch\.float32"):
        quality_focal_loss(torch.zeros(2, 2), torch.zeros(2, 2), quality=torch.ones(2))
    with pytest.raises(ValueError, match=r"quality.*\(3,\).*targets, \(2,\)"):
        unhooked(quality_focal_loss)(torch.zeros(2, 2), torch.zeros(2).long(), quality=torch.ones(3))


@pytest.mark.parametrize("label", [3, -3, 99])
def test_a_label_outside_the_range_is_named(label):
    labels = torch.tensor([[0, 2], [label, -1]])
    for function in (sigmoid_focal_loss, quality_focal_loss):
        message = (
            rf"^{function.__name__}: targets\[1, 0\]={label} must lie in 0..2, or be NEGATIVE "
            r"\(-1\) or IGNORED \(-2\); 1 of 4 do not"
        )
        with pytest.raises(ValueError, match=message):
            function(torch.zeros(2, 2, 3), labels)
    with pytest.raises(ValueError, match=r"targets\[1, 0\]=.*0..2.*IGNORED \(-2\); 2.*4"):
        label_smoothed_cross_entropy(torch.zeros(2, 2, 3), labels)


@pytest.mark.parametrize("bad", [-0.1, 1.5, float("nan")])
def test_full_checks_name_a_target_outside_zero_to_one(bad, monkeypatch):
    targets = torch.tensor([[0.0, 1.0], [0.5, bad]])
    sigmoid_focal_loss(torch.zeros(2, 2), targets)
    monkeypatch.setenv("DETKIT_CHECKS", "full")
    for function in ELEMENTWISE:
        with pytest.raises(ValueError, match=rf"targets\[1, 1\]={bad:g}.*\[0, 1\]; 1.*4"):
            function(torch.zeros(2, 2), targets)
    sigmoid_focal_loss(torch.zeros(2, 2), targets.clamp(0, 1).nan_to_num(0))


@pytest.mark.parametrize("loss", [sigmoid_focal_loss, quality_focal_loss, label_smoothed_cross_entropy])
def test_a_nan_in_an_ignored_row_reaches_neither_loss_nor_gradient(loss):
    logits = torch.tensor([[torch.nan, 1.0], [0.0, 0.5]], requires_grad=True)
    values = loss(logits, torch.tensor([-2, 0]))
    values.sum().backward()
    assert values.isfinite().all()
    assert logits.grad[0].tolist() == [0, 0]
    assert logits.grad[1].abs().sum() > 0
