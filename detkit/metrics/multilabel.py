"""Average precision of multi-label predictions, by class and macro, by scikit-learn."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped
from torch import Tensor

from detkit._door import door
from detkit._inputs import check_finite
from detkit._ranges import Count
from detkit.dist import gather_objects
from detkit.metrics.categories import category_names


class MultiLabelClassResult(NamedTuple):
    """One class: AP (-1 if it has no positive), and the number of positives."""

    name: str
    AP: float
    positives: int


class MultiLabelMetrics:
    """The average precision of each class over all rows passed to :meth:`update` in all processes, and their mean.

    categories: the number of classes, their names, or category dicts. AP is scikit-learn's: the sum over thresholds of
    the precision times the gain in recall, without interpolation. A class without positives has none and does not enter
    the mean; ``compute`` says how many are such, and :meth:`per_class` which.

    >>> import torch
    >>> metrics = MultiLabelMetrics(["cat", "dog", "cow"])
    >>> metrics.update(torch.tensor([[0.9, 0.8, 0.1], [0.2, 0.9, 0.3]]), torch.tensor([[1, 1, 0], [0, 0, 0]]))
    >>> metrics.compute()
    {'mAP': 0.75, 'classes_without_positives': 1}
    """

    @door
    def __init__(self, categories: Count | Sequence[str] | Sequence[Mapping[str, Any]]) -> None:
        self.names = category_names(categories, function="MultiLabelMetrics")
        self.reset()

    @door
    def update(self, scores: Float[Tensor, "N C"], label_sets: Shaped[Tensor, "N C"]) -> None:
        """Add rows: scores (N, C), logits or probabilities, and what is true (N, C), zeros and ones.

        Raises ValueError for other shapes, scores that are not finite, and truth that is neither 0 nor 1.

        >>> import torch
        >>> MultiLabelMetrics(2).update(torch.zeros(0, 2), torch.zeros(0, 2))
        """
        shape = (*scores.shape[:1], len(self.names))
        if scores.shape != shape or label_sets.shape != shape:
            raise ValueError(
                f"MultiLabelMetrics.update: scores have shape {tuple(scores.shape)} and label_sets "
                f"{tuple(label_sets.shape)}; allowed is (N, {len(self.names)}) for both"
            )
        check_finite(scores, function="MultiLabelMetrics.update", name="scores")
        truth = label_sets.detach().cpu()
        if not bool(((truth == 0) | (truth == 1)).all()):
            raise ValueError("MultiLabelMetrics.update: label_sets hold other numbers than 0 and 1")
        self._scores.append(scores.detach().double().cpu().numpy())
        self._truth.append(truth.bool().numpy())

    def compute(self) -> dict[str, float]:
        """``mAP``, the mean over classes with positives (-1 if none has), and how many have none (collective call).

        >>> MultiLabelMetrics(3).compute()
        {'mAP': -1.0, 'classes_without_positives': 3}
        """
        rows = self.per_class()
        found = [row.AP for row in rows if row.positives]
        mean = float(np.mean(found)) if found else -1.0
        return {"mAP": mean, "classes_without_positives": len(rows) - len(found)}

    def per_class(self) -> list[MultiLabelClassResult]:
        """AP and number of positives of each class (collective call).

        >>> MultiLabelMetrics(["cat"]).per_class()
        [MultiLabelClassResult(name='cat', AP=-1.0, positives=0)]
        """
        empty = np.zeros((0, len(self.names)))
        shares = gather_objects((np.concatenate([empty, *self._scores]), np.concatenate([empty > 0, *self._truth])))
        scores, truth = (np.concatenate(column) for column in zip(*shares, strict=True))
        return [
            MultiLabelClassResult(name, _average_precision(truth[:, c], scores[:, c]), int(truth[:, c].sum()))
            for c, name in enumerate(self.names)
        ]

    def reset(self) -> None:
        """Forget every row.

        >>> MultiLabelMetrics(1).reset()
        """
        self._scores: list[np.ndarray] = []
        self._truth: list[np.ndarray] = []


def _average_precision(truth: np.ndarray, scores: np.ndarray) -> float:
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(truth, scores)) if truth.any() else -1.0
