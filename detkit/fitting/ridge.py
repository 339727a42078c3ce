"""R-CNN's box regression: four ridge regressions from a region's features to its shift and log-scale."""

import numpy as np
from jaxtyping import Float

_DAMPING = 1e-3  # added to the variances before whitening divides by their root


def fit_box_ridge(
    features: Float[np.ndarray, "N F"],
    deltas: Float[np.ndarray, "N 4"],
    *,
    penalty: float = 1000.0,
    whiten: bool = True,
) -> tuple[Float[np.ndarray, "4 F"], Float[np.ndarray, "4"]]:
    """Weight (4, F) and bias (4,) such that features @ weight.T + bias approximates ``deltas``.

    Minimizes the squared error plus ``penalty`` times the squared weights, including the bias (a feature that is always
    1). With ``whiten``, deltas are first centered and whitened: multiplied by V (D + 0.001)^-1/2 V' of their covariance
    V D V'; the returned weight and bias predict the original deltas. The authors' code does that, the paper does not
    (``whiten=False``). Without rows everything is 0.
    Raises ValueError for shapes that disagree and a penalty that is not positive.
    Source: Girshick et al. 2014, appendix C, equation 5; lambda is 1000.

    >>> features = np.random.default_rng(0).normal(size=(500, 2)) * 100
    >>> weight, bias = fit_box_ridge(features, features @ np.ones((2, 4)) * 0.01, penalty=1.0)
    >>> bool(np.allclose(weight, 0.01, atol=1e-4))
    True
    """
    if features.ndim != 2 or deltas.shape != (len(features), 4):
        raise ValueError(
            f"fit_box_ridge: features has shape {features.shape} and deltas {deltas.shape}; "
            "allowed is (N, F) and (N, 4)"
        )
    if not 0 < penalty < np.inf:
        raise ValueError(f"fit_box_ridge: penalty={penalty} must be a positive finite number")
    if len(features) == 0:
        return np.zeros((4, features.shape[1])), np.zeros(4)
    # Here and not above: it takes a second that nobody else need wait.
    from sklearn.linear_model import Ridge

    center, white, back = _whitening(deltas) if whiten else (np.zeros(4), np.eye(4), np.eye(4))
    augmented = np.concatenate((features, np.ones((len(features), 1))), axis=1)
    ridge = Ridge(alpha=penalty, fit_intercept=False).fit(augmented, (deltas - center) @ white)
    solution = back @ ridge.coef_  # back is symmetric
    return solution[:, :-1], solution[:, -1] + center


def _whitening(
    deltas: Float[np.ndarray, "N 4"],
) -> tuple[Float[np.ndarray, "4"], Float[np.ndarray, "4 4"], Float[np.ndarray, "4 4"]]:
    """The mean, the matrix that whitens, and its inverse."""
    center = deltas.mean(axis=0)
    variances, axes = np.linalg.eigh((deltas - center).T @ (deltas - center) / len(deltas))
    roots = np.sqrt(variances.clip(0) + _DAMPING)
    return center, (axes / roots) @ axes.T, (axes * roots) @ axes.T
