"""ILSVRC's measures of image classification and single-object localization."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from detkit._door import door
from detkit._ranges import Count, Fraction
from detkit.boxes import box_iou
from detkit.metrics.categories import category_names
from detkit.metrics.records import ImageRecord, Reader, corners
from detkit.metrics.store import ImageStore
from detkit.structures import Detection, Target


class LocalizationMetrics:
    """Accuracy of the best guesses of each image's class, and error of class and box together.

    An image's guesses are the best detection of each class, best first; equal scores keep the order in which they are
    given. The classification is right at k if one of the first k guesses has the class of an object in the image; the
    localization if it has that and an IoU of at least ``iou_threshold`` with any object of that class. Crowd and
    ignored objects do not count, and images without other ones are not judged. ``top`` are the values of k, distinct.
    categories as in :class:`VocMetrics`.

    Source: Russakovsky et al. 2015 (ILSVRC), section 4.1 and 4.2. There a submission lists five guesses itself; here
    the best of each class are taken, so that a detector which finds many boxes is judged as it would submit them.
    Overlap of exactly the threshold counts.

    >>> metrics = LocalizationMetrics(["cat", "dog"], top=(1, 2))
    >>> boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 8, 9]])
    >>> found = {"boxes": boxes, "scores": torch.tensor([0.7, 0.2]), "labels": torch.tensor([0, 1])}
    >>> metrics.update([found], [{"boxes": boxes[:1], "labels": torch.tensor([1])}])
    >>> metrics.compute()
    {'accuracy@1': 0.0, 'accuracy@2': 1.0, 'localization_error@1': 1.0, 'localization_error@2': 0.0}
    """

    @door
    def __init__(
        self,
        categories: Count | Sequence[str] | Sequence[Mapping[str, Any]],
        *,
        top: Sequence[Count] = (1, 5),
        iou_threshold: Fraction = 0.5,
    ) -> None:
        if not top or len(set(top)) < len(top):
            raise ValueError(f"LocalizationMetrics: top={top!r}; allowed is at least one number, all distinct")
        self.names = category_names(categories, function="LocalizationMetrics")
        self.top, self.iou_threshold = tuple(top), iou_threshold
        self._images = ImageStore()

    @door
    def update(self, detections: Sequence[Detection], targets: Sequence[Target]) -> None:
        """Add images; entries and errors as in :meth:`CocoMetrics.update`, without masks and keypoints.

        >>> LocalizationMetrics(1).update([], [])
        """
        reader = Reader("LocalizationMetrics.update", len(self.names))
        self._images.read(reader, detections, targets)

    def compute(self) -> dict[str, float]:
        """``accuracy@k`` and ``localization_error@k`` for each k, in [0, 1]; -1 without images (collective call).

        >>> LocalizationMetrics(3, top=(5,)).compute()
        {'accuracy@5': -1.0, 'localization_error@5': -1.0}
        """
        ranks = [_judge(record, self.iou_threshold) for record in self._images.gathered() if _objects(record).any()]
        named, placed = (np.array(column) for column in zip(*ranks, strict=True)) if ranks else (None, None)
        accuracy = {f"accuracy@{k}": _part(named, k) for k in self.top}
        hits = {f"localization_error@{k}": _part(placed, k) for k in self.top}
        return accuracy | {name: -1.0 if value < 0 else 1 - value for name, value in hits.items()}

    def reset(self) -> None:
        """Forget every image.

        >>> LocalizationMetrics(1).reset()
        """
        self._images.reset()


class _Ranks(NamedTuple):
    """How many guesses stand before the first with a right class, and before the first with a right box as well."""

    named: float
    placed: float


def _objects(record: ImageRecord) -> np.ndarray:
    return ~(record.truth.crowd | record.truth.ignore)


def _judge(record: ImageRecord, iou_threshold: float) -> _Ranks:
    truth = record.truth.take(np.flatnonzero(_objects(record)))
    order = np.argsort(-record.detections.scores, kind="stable")
    _, first = np.unique(record.detections.labels[order], return_index=True)
    guesses = record.detections.take(order[np.sort(first)])
    same = guesses.labels[:, None] == truth.labels
    overlap = box_iou(*(torch.from_numpy(corners(side.boxes)) for side in (guesses, truth))).numpy()
    return _Ranks(_first(same.any(1)), _first((same & (overlap >= iou_threshold)).any(1)))


def _first(right: np.ndarray) -> float:
    return float(right.argmax()) if right.any() else np.inf


def _part(ranks: np.ndarray | None, k: int) -> float:
    return -1.0 if ranks is None else float((ranks < k).mean())
