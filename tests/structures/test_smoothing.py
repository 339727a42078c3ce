"""Label smoothing: the goldens of each form, and the losses of torch as a second oracle."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import assert_refused
from torch.nn import functional as F

from detkit.losses import label_smoothed_cross_entropy
from detkit.structures import IGNORED
from detkit.structures.smoothing import smoothed_levels
from detkit.tricks import detection_smoothing, smooth_labels

LOGITS = torch.linspace(-1, 1, 10, dtype=torch.float64)[None]
fractions = st.sampled_from([0.0, 0.1, 0.5, 1.0]) | st.floats(0, 1)


@pytest.mark.parametrize(("spread", "golden"), [("others", 2.7947262), ("all", 2.7984299)])
def test_goldens_of_a_softmax(spread, golden):
    targets = smooth_labels(torch.tensor([3]), 10, smoothing=0.1, spread=spread).double()
    assert F.cross_entropy(LOGITS, targets).item() == pytest.approx(golden, abs=5e-7)


def test_the_two_forms_of_a_softmax_are_one_at_the_converted_mass():
    labels = torch.tensor([3, 0, 9])
    first = smooth_labels(labels, 10, smoothing=0.1)
    torch.testing.assert_close(first, smooth_labels(labels, 10, smoothing=0.1 * 10 / 9, spread="all"))


@given(smoothing=fractions, label=st.integers(0, 9))
def test_all_is_torchs_label_smoothing(smoothing, label):
    targets = smooth_labels(torch.tensor([label]), 10, smoothing=smoothing, spread="all").double()
    expected = F.cross_entropy(LOGITS, torch.tensor([label]), label_smoothing=smoothing)
    torch.testing.assert_close(F.cross_entropy(LOGITS, targets), expected, rtol=1e-6, atol=1e-6)


@given(smoothing=fractions, labels=st.lists(st.integers(0, 9), min_size=1, max_size=4))
def test_others_is_the_loss_that_smooths_by_itself(smoothing, labels):
    logits, labels = LOGITS.expand(len(labels), 10), torch.tensor(labels)
    targets = smooth_labels(labels, 10, smoothing=smoothing).double()
    expected = label_smoothed_cross_entropy(logits, labels, smoothing=smoothing)
    torch.testing.assert_close(-(targets * logits.log_softmax(-1)).sum(-1), expected, rtol=1e-6, atol=1e-6)


@given(
    smoothing=fractions,
    spread=st.sampled_from(["others", "all", "each"]),
    numbers=st.lists(st.floats(0, 1, width=32), min_size=2, max_size=6),
)
def test_every_number_follows_the_formula(smoothing, spread, numbers):
    found = smooth_labels(torch.tensor(numbers), smoothing=smoothing, spread=spread)
    classes = len(numbers)
    on = {"others": 1 - smoothing, "all": 1 - smoothing + smoothing / classes, "each": 1 - smoothing}[spread]
    off = {"others": smoothing / (classes - 1), "all": smoothing / classes, "each": smoothing}[spread]
    assert found.tolist() == pytest.approx([y * on + (1 - y) * off for y in numbers], abs=1e-6)
    assert all(-1e-6 <= y <= 1 + 1e-6 for y in found.tolist())


@pytest.mark.parametrize("spread", ["others", "all"])
def test_mixtures_that_sum_to_one_still_do(spread):
    mixed = torch.tensor([[0.9, 0.1, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]])
    torch.testing.assert_close(smooth_labels(mixed, spread=spread).sum(-1), torch.ones(2))


def test_a_sigmoid_learns_the_same_of_every_class_that_is_there():
    several = torch.tensor([[True, False, True], [False, False, False]])
    expected = torch.tensor([[0.9, 0.1, 0.9], [0.1, 0.1, 0.1]])
    torch.testing.assert_close(smooth_labels(several, spread="each"), expected)


@pytest.mark.parametrize(("classes", "smoothing"), [(1, 1 / 40), (20, 1 / 40), (40, 1 / 40), (80, 1 / 80)])
def test_detectors_smooth_by_a_fortieth_or_less(classes, smoothing):
    assert detection_smoothing(classes) == smoothing


def test_without_smoothing_targets_are_as_given():
    hot = smooth_labels(torch.tensor([[2, 0]], dtype=torch.uint8), 3, smoothing=0.0)
    assert torch.equal(hot, torch.tensor([[[0.0, 0, 1], [1, 0, 0]]]))
    assert smooth_labels(torch.zeros(0), 0 or None, smoothing=0.0).shape == (0,)
    assert smooth_labels(torch.zeros(0, dtype=torch.int64), 3).shape == (0, 3)
    assert smooth_labels(torch.ones(1, 2, dtype=torch.float16)).dtype == torch.float32
    assert smooth_labels(torch.ones(1, 2, dtype=torch.float64)).dtype == torch.float64
    assert smoothed_levels(0.0, 1) == (1.0, 0.0)


def test_what_cannot_be_smoothed_is_refused():
    assert_refused("smooth_labels: labels num_classes", smooth_labels, torch.tensor([1]))
    assert_refused("smooth_labels: targets[0]=3 must lie in 0..2", smooth_labels, torch.tensor([3]), 3)
    assert_refused("smooth_labels: targets[1]=-1", smooth_labels, torch.tensor([0, -1]), 3)
    assert_refused("smooth_labels: IGNORED (-2)", smooth_labels, torch.tensor([0, IGNORED]), 3)
    assert_refused("smooth_labels: (2, 3) num_classes=4", smooth_labels, torch.zeros(2, 3), 4)
    for bad in (float("nan"), -0.1, 1.5):
        numbers = torch.tensor([[0.0, 1.0], [bad, 0.5]])
        assert_refused(f"smooth_labels: targets[1, 0]={bad:g} must lie in [0, 1]; 1 of 4", smooth_labels, numbers)
    assert_refused("smooth_labels: smoothing=1.5 [0, 1]", smooth_labels, torch.zeros(2, 3), smoothing=1.5)
    assert_refused("smooth_labels: 1 class", smooth_labels, torch.tensor([0]), 1)
    assert_refused("smooth_labels: spread='some' 'others'", smooth_labels, torch.zeros(2, 3), spread="some")
