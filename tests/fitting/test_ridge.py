"""Box regression: scikit-learn's Ridge and the normal equations, with and without whitening."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from strategies import unhooked

from detkit.boxes import DeltaCoder
from detkit.fitting.ridge import fit_box_ridge


def samples(count: int = 300, features: int = 7) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(count, features)) * 6
    correlated = rng.normal(size=(features, 4)) @ np.array([[1, 0.8, 0, 0], [0, 0.1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 2]])
    return x, x @ correlated * 0.02 + rng.normal(size=(count, 4)) * 0.05 + [0.1, -0.2, 0.3, 0]


def augmented(features: np.ndarray) -> np.ndarray:
    return np.concatenate((features, np.ones((len(features), 1))), axis=1)


def test_without_whitening_it_is_ridge_on_features_and_a_column_of_ones():
    x, y = samples()
    weight, bias = fit_box_ridge(x, y, whiten=False)
    expected = Ridge(alpha=1000, fit_intercept=False).fit(augmented(x), y).coef_
    np.testing.assert_allclose(np.column_stack((weight, bias)), expected, atol=1e-6)
    a = augmented(x)
    normal = np.linalg.solve(a.T @ a + 1000 * np.eye(a.shape[1]), a.T @ y).T
    np.testing.assert_allclose(np.column_stack((weight, bias)), normal, atol=1e-9)


@pytest.mark.parametrize("penalty", [1000.0, 3.0])
def test_with_whitening_targets_are_whitened_before_and_turned_back_after(penalty):
    x, y = samples()
    weight, bias = fit_box_ridge(x, y, penalty=penalty)
    mean = y.mean(0)
    d, v = np.linalg.eigh(np.cov(y.T, bias=True))
    white = v @ np.diag((d + 0.001) ** -0.5) @ v.T
    ridge = Ridge(alpha=penalty, fit_intercept=False).fit(augmented(x), (y - mean) @ white)
    expected = ridge.predict(augmented(x)) @ np.linalg.inv(white) + mean
    np.testing.assert_allclose(x @ weight.T + bias, expected, atol=1e-6)


def test_a_shift_that_is_linear_in_the_features_is_recovered():
    rng = np.random.default_rng(0)
    proposals = torch.tensor([[10.0, 20, 50, 40]]).double() + torch.from_numpy(rng.uniform(0, 9, (400, 1)))
    shift = rng.uniform(-0.3, 0.3, (400, 4))
    shift[:, 2:] *= 0.5
    objects = DeltaCoder().decode(torch.from_numpy(shift), proposals)
    features = shift @ rng.normal(size=(4, 6)) * 300
    deltas = DeltaCoder().encode(objects, proposals).numpy()
    # With whitening the bias makes up for the mean, and it is penalised: a part of the mean remains.
    for whiten, tolerance in ((True, 0.2), (False, 0.05)):
        weight, bias = fit_box_ridge(features, deltas, whiten=whiten)
        refined = DeltaCoder().decode(torch.from_numpy(features @ weight.T + bias), proposals)
        torch.testing.assert_close(refined, objects, rtol=0, atol=tolerance)


def test_the_bias_is_penalised_too():
    weight, bias = fit_box_ridge(np.zeros((1000, 2)), np.ones((1000, 4)), penalty=1000.0, whiten=False)
    np.testing.assert_allclose(bias, 0.5)
    np.testing.assert_array_equal(weight, 0)


def test_constant_targets_and_no_samples_are_no_accident():
    weight, bias = fit_box_ridge(np.ones((5, 2)), np.full((5, 4), 0.25))
    np.testing.assert_allclose(np.ones(2) @ weight.T + bias, 0.25)
    weight, bias = fit_box_ridge(np.zeros((0, 3)), np.zeros((0, 4)))
    assert weight.shape == (4, 3)
    assert not weight.any()
    assert not bias.any()


def test_shapes_and_penalties_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"features.*\(2, 3\).*deltas \(1, 4\)"):
        unhooked(fit_box_ridge)(np.zeros((2, 3)), np.zeros((1, 4)))
    with pytest.raises(ValueError, match="penalty=0 must be a positive finite number"):
        fit_box_ridge(np.zeros((2, 3)), np.zeros((2, 4)), penalty=0)
