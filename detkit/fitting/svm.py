"""A linear SVM with hard negative mining, so that the negatives of a data set need not be held at once."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from detkit._ranges import Count, Finite, Positive, check_fields


class SVMSettings(NamedTuple):
    """R-CNN's settings of an SVM and of its mining; scikit-learn's LinearSVC does the fitting.

    C weights the hinge loss, positive_weight the positives in it; the bias is the weight of a feature that is always
    ``bias_feature``. A negative is added if its decision value is above ``hard_above``; after ``retrain_every``
    additions the SVM is refitted, and negatives below ``easy_below`` are dropped.
    Source: Girshick et al. 2014, section 2.3, and the values of its code.
    """

    C: Positive = 1e-3
    positive_weight: Positive = 2.0
    bias_feature: Finite = 10.0
    hard_above: Finite = -1.0001
    easy_below: Finite = -1.2
    retrain_every: Count = 2000
    tolerance: Positive = 1e-4
    max_iterations: Count = 10_000


class MinedSVM:
    """One class against the rest: all positives at once, negatives in batches (such as one image).

    ``positives`` are (P, F), at least one. The decision value is x @ ``weight`` (F,) + ``bias``; both are 0 until the
    first fit, so every negative counts as hard. ``added``, ``retrained`` and ``dropped`` are counters. Raises
    ValueError without positives.

    >>> svm = MinedSVM(np.array([[3.0, 0], [2, 1]]), SVMSettings(C=1.0))
    >>> svm.add(np.array([[-1.0, 0], [-2, 1], [-9, 0]]))
    >>> svm.finish()
    >>> (np.array([[2.5, 0], [-1.5, 0]]) @ svm.weight + svm.bias > 0).tolist(), svm.added, svm.retrained
    ([True, False], 3, 1)
    """

    def __init__(self, positives: Float[np.ndarray, "P F"], settings: SVMSettings) -> None:
        if positives.ndim != 2 or len(positives) == 0:
            raise ValueError(f"MinedSVM: positives has shape {positives.shape}; allowed is (P, F) with P of at least 1")
        check_fields(settings, "MinedSVM: settings")
        self.settings = settings
        self.positives = positives
        self._kept = positives[:0]
        self.weight, self.bias = np.zeros(positives.shape[1]), 0.0
        self.added, self.retrained, self.dropped = 0, 0, 0
        self._fresh: list[np.ndarray] = []  # joined when needed: joining at every image would copy them all each time

    @property
    def negatives(self) -> Float[np.ndarray, "N F"]:
        """The negatives that the next fit would use, in the order they were added."""
        return np.concatenate((self._kept, *self._fresh))

    def decide(self, features: Float[np.ndarray, "N F"]) -> Float[np.ndarray, "N"]:
        """Decision values."""
        return features @ self.weight + self.bias

    def add(self, negatives: Float[np.ndarray, "N F"]) -> None:
        """Keep the negatives that are hard for the current SVM, and refit it once enough have been added."""
        hard = negatives[self.decide(negatives) > self.settings.hard_above]
        if len(hard) == 0:
            return
        self._fresh.append(hard)
        self.added += len(hard)
        if sum(map(len, self._fresh)) >= self.settings.retrain_every:
            self._retrain()

    def finish(self) -> None:
        """Refit if negatives were added since the last fit. Raises ValueError if there never was a negative."""
        if self.added == 0:
            raise ValueError("MinedSVM: got no negatives; an SVM needs some of either kind")
        if self._fresh:
            self._retrain()

    def _retrain(self) -> None:
        negatives = self.negatives
        self.weight, self.bias = fit_svm(self.positives, negatives, self.settings)
        easy = self.decide(negatives) < self.settings.easy_below
        self._kept, self._fresh = negatives[~easy], []
        self.dropped += int(easy.sum())
        self.retrained += 1


def fit_svm(
    positives: Float[np.ndarray, "P F"], negatives: Float[np.ndarray, "N F"], settings: SVMSettings
) -> tuple[Float[np.ndarray, "F"], float]:
    """Weight and bias of scikit-learn's LinearSVC (hinge loss) on all positives and negatives.

    >>> weight, bias = fit_svm(np.array([[2.0]]), np.array([[-2.0]]), SVMSettings(C=1.0))
    >>> bool(2 * weight[0] + bias > 0 > -2 * weight[0] + bias)
    True
    """
    # Here and not above: it takes a second that nobody else need wait.
    from sklearn.svm import LinearSVC

    machine = LinearSVC(
        loss="hinge",
        C=settings.C,
        class_weight={1: settings.positive_weight},
        intercept_scaling=settings.bias_feature,  # pyright: ignore[reportArgumentType] - a float, says scikit-learn
        tol=settings.tolerance,
        max_iter=settings.max_iterations,
        random_state=0,
    )
    machine.fit(np.concatenate((positives, negatives)), np.repeat((1, 0), (len(positives), len(negatives))))
    return machine.coef_[0], float(np.ravel(machine.intercept_)[0])
