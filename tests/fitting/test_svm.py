"""Mined SVMs: LinearSVC's decisions, and R-CNN's rules for adding, fitting anew and dropping negatives."""

import numpy as np
import pytest
from sklearn.svm import LinearSVC

from detkit.fitting.svm import MinedSVM, SVMSettings, fit_svm


def clouds(positives: int = 40, negatives: int = 900, features: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Two overlapping clouds of features, of a norm of about 20."""
    rng = np.random.default_rng(0)
    shift = rng.normal(size=features)
    return rng.normal(size=(positives, features)) * 5 + 3 * shift, rng.normal(size=(negatives, features)) * 5 - shift


def reference(positives: np.ndarray, negatives: np.ndarray) -> LinearSVC:
    machine = LinearSVC(
        loss="hinge", C=1e-3, class_weight={1: 2.0, 0: 1.0}, intercept_scaling=10.0, max_iter=100_000, random_state=0
    )
    labels = np.repeat((1, 0), (len(positives), len(negatives)))
    return machine.fit(np.concatenate((positives, negatives)), labels)


def ranks(values: np.ndarray) -> np.ndarray:
    return values.argsort(kind="stable").argsort()


def test_an_svm_that_saw_everything_ranks_as_linear_svc():
    positives, negatives = clouds()
    svm = MinedSVM(positives, SVMSettings())
    for start in range(0, len(negatives), 100):
        svm.add(negatives[start : start + 100])
    svm.finish()
    both = np.concatenate((positives, negatives))
    expected = reference(positives, negatives).decision_function(both)
    assert svm.retrained == 1
    np.testing.assert_allclose(svm.decide(both), expected, atol=1e-9)
    np.testing.assert_array_equal(ranks(svm.decide(both)), ranks(expected))


def test_mining_in_small_steps_ends_near_the_svm_of_all_data():
    positives, negatives = clouds(60, 3000)
    settings = SVMSettings(retrain_every=300)
    svm = MinedSVM(positives, settings)
    for start in range(0, len(negatives), 50):
        svm.add(negatives[start : start + 50])
    svm.finish()
    held_out = np.concatenate(clouds(50, 500))
    expected = reference(positives, negatives).decision_function(held_out)
    assert svm.retrained > 1
    assert svm.added < len(negatives)
    assert np.corrcoef(ranks(svm.decide(held_out)), ranks(expected))[0, 1] > 0.99


def test_the_trace_of_mining_follows_the_rules():
    positives, negatives = clouds(20, 400)
    svm = MinedSVM(positives, SVMSettings(C=0.01, retrain_every=100))
    svm.add(negatives[:99])
    assert (svm.added, svm.retrained, svm.bias) == (99, 0, 0.0), "before the first fitting every negative is hard"
    svm.add(negatives[99:101])
    assert (svm.added, svm.retrained) == (101, 1)
    weight, bias = fit_svm(positives, negatives[:101], svm.settings)
    np.testing.assert_array_equal(svm.weight, weight)
    decided = negatives @ weight + bias
    kept = negatives[:101][decided[:101] >= -1.2]
    assert 0 < svm.dropped == 101 - len(kept)
    np.testing.assert_array_equal(svm.negatives, kept)
    svm.add(negatives[101:150])
    hard = negatives[101:150][decided[101:150] > -1.0001]
    assert 0 < len(hard) < 49
    np.testing.assert_array_equal(svm.negatives, np.concatenate((kept, hard)))
    assert (svm.added, svm.retrained) == (101 + len(hard), 1)
    svm.finish()
    assert svm.retrained == 2
    svm.finish()
    assert svm.retrained == 2, "nothing new: nothing to fit"


def test_positives_weigh_double_and_the_bias_is_a_feature_of_10():
    positives, negatives = clouds(5, 100, 3)
    weight, bias = fit_svm(positives, negatives, SVMSettings())
    longer = [np.concatenate((rows, np.full((len(rows), 1), 10.0)), axis=1) for rows in (positives, negatives)]
    doubled = np.concatenate((longer[0], longer[0], longer[1]))
    labels = np.repeat((1, 0), (2 * len(positives), len(negatives)))
    options = {"C": 1e-3, "tol": 1e-8, "max_iter": 1_000_000, "random_state": 0}
    machine = LinearSVC(loss="hinge", fit_intercept=False, **options).fit(doubled, labels)
    tight = fit_svm(positives, negatives, SVMSettings(tolerance=1e-8, max_iterations=1_000_000))
    np.testing.assert_allclose([*tight[0], tight[1] / 10], machine.coef_[0], atol=1e-5)
    np.testing.assert_allclose([*weight, bias / 10], machine.coef_[0], atol=1e-2)


def test_an_svm_needs_both_kinds():
    with pytest.raises(ValueError, match=r"positives.*\(0, 3\).*\(P, F\).*P.*1"):
        MinedSVM(np.zeros((0, 3)), SVMSettings())
    svm = MinedSVM(np.ones((1, 3)), SVMSettings())
    svm.add(np.zeros((0, 3)))
    with pytest.raises(ValueError, match="got no negatives"):
        svm.finish()


def test_images_without_hard_negatives_cost_no_copies_of_those_before(monkeypatch):
    positives, negatives = clouds()
    svm = MinedSVM(positives, SVMSettings())
    joined = []
    monkeypatch.setattr(
        np, "concatenate", lambda parts, real=np.concatenate, **more: joined.append(1) or real(parts, **more)
    )
    for start in range(0, len(negatives), 10):
        svm.add(negatives[start : start + 10])
    assert not joined
    np.testing.assert_array_equal(svm.negatives, negatives)
