"""Intersection over union of segmentations, from one confusion matrix of a whole data set."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from detkit._door import door
from detkit._inputs import read_tensor
from detkit._ranges import Count
from detkit.dist import gather_objects
from detkit.metrics.categories import category_names
from detkit.metrics.records import Reader, check_images, read_flags, read_labels, read_masks
from detkit.metrics.store import image_key
from detkit.structures import VOID, Detection, Target, draw_segmentation, read_entries


class SegmentationClassResult(NamedTuple):
    """One class: IoU and accuracy (recall of its pixels), -1 where it has no pixels to compute them from."""

    name: str
    IoU: float
    accuracy: float
    pixels: int


class _Image(NamedTuple):
    """Where an image's own matrix is not 0, and what is there: a whole one of many classes is large."""

    places: np.ndarray
    counts: np.ndarray
    truth: np.ndarray  # judged pixels of each class


Key = tuple[int, int, int]


class SegmentationMetrics:
    """Mean IoU over classes, from the confusion matrix of all pixels of all images in all processes.

    categories: the number of classes, their names, or category dicts; where 0 is background, it is one of them. Pixels
    that are VOID in the truth are not judged. A class that is in neither truth nor segmentation has no IoU and does not
    enter the mean: as scikit-learn's ``jaccard_score`` of the labels that occur. An image seen again under its
    ``image_id`` counts once. Source: Everingham et al. 2015 (Pascal VOC), section 4.2. The mean of images' own mIoU,
    which some publish, is another number.

    >>> metrics = SegmentationMetrics(["background", "pet"])
    >>> truth = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0), "segmentation": torch.tensor([[0, 0, 1, 255]])}
    >>> metrics.update([{"segmentation": torch.tensor([[0, 1, 1, 1]])}], [truth])
    >>> metrics.compute()
    {'mIoU': 0.5, 'pixel_accuracy': 0.6666666666666666, 'mean_accuracy': 0.75}
    """

    @door
    def __init__(self, categories: Count | Sequence[str] | Sequence[Mapping[str, Any]]) -> None:
        self.names = category_names(categories, function="SegmentationMetrics")
        if len(self.names) > VOID:
            raise ValueError(
                f"SegmentationMetrics: {len(self.names)} classes; allowed are {VOID}: class {VOID} is VOID"
            )
        self.reset()

    @door
    def update(self, detections: Sequence[Detection], targets: Sequence[Target]) -> None:
        """Add images: ``segmentation`` of each detection is (H, W) classes, or (C, H, W) scores, whose best class
        counts.

        The truth is the target's ``segmentation`` (H, W), or what is drawn from its masks, see
        :func:`~detkit.structures.draw_segmentation`. Raises ValueError for other shapes, classes out of range, and an
        image_id that comes again with another truth.

        >>> SegmentationMetrics(2).update([], [])
        """
        check_images("SegmentationMetrics.update", targets, detections=detections)
        found: list[dict[Key, _Image]] = []
        for i, (detection, target) in enumerate(zip(detections, targets, strict=True)):
            key = image_key(target, self._unnamed + i, f"SegmentationMetrics.update: targets[{i}]")
            found.append({key: self._counts(detection, target, i)})
        seen = {key: self._images[key] for image in found for key in image if key in self._images}
        self._images |= _merge([seen, *found])  # refuses what contradicts itself, before anything is kept
        self._unnamed += sum(key[0] for image in found for key in image)

    def compute(self) -> dict[str, float]:
        """``mIoU``, ``pixel_accuracy`` and ``mean_accuracy`` over classes, in [0, 1]; -1 without pixels (collective
        call).

        >>> SegmentationMetrics(3).compute()
        {'mIoU': -1.0, 'pixel_accuracy': -1.0, 'mean_accuracy': -1.0}
        """
        matrix, rows = self.confusion_matrix(), self.per_class()
        return {
            "mIoU": _mean([row.IoU for row in rows]),
            "pixel_accuracy": float(matrix.trace() / matrix.sum()) if matrix.sum() else -1.0,
            "mean_accuracy": _mean([row.accuracy for row in rows]),
        }

    def per_class(self) -> list[SegmentationClassResult]:
        """IoU, accuracy and number of true pixels of each class (collective call).

        >>> SegmentationMetrics(["pet"]).per_class()
        [SegmentationClassResult(name='pet', IoU=-1.0, accuracy=-1.0, pixels=0)]
        """
        matrix = self.confusion_matrix()
        true, found, right = matrix.sum(1).tolist(), matrix.sum(0).tolist(), matrix.diagonal().tolist()
        return [
            SegmentationClassResult(name, _part(hits, own + other - hits), _part(hits, own), own)
            for name, own, other, hits in zip(self.names, true, found, right, strict=True)
        ]

    def confusion_matrix(self) -> np.ndarray:
        """Numbers of pixels (C, C) int64: row the true class, column the class found (collective call).

        >>> SegmentationMetrics(2).confusion_matrix().tolist()
        [[0, 0], [0, 0]]
        """
        classes = len(self.names)
        total = np.zeros(classes * classes, np.int64)
        for image in _merge(gather_objects(self._images)).values():
            total[image.places] += image.counts
        return total.reshape(classes, classes)

    def reset(self) -> None:
        """Forget every image.

        >>> SegmentationMetrics(1).reset()
        """
        self._images: dict[Key, _Image] = {}
        self._unnamed = 0

    def _counts(self, detection: Detection, target: Target, index: int) -> _Image:
        classes, where = len(self.names), "SegmentationMetrics.update"
        facts, results = f"{where}: targets[{index}]", f"{where}: detections[{index}]"
        truth = self._truth(read_entries(target, where=facts), facts)
        found = self._found(read_entries(detection, where=results), truth.shape, results)
        judged = truth != VOID
        places, counts = np.unique(truth[judged] * classes + found[judged], return_counts=True)
        return _Image(places, counts, np.bincount(truth[judged], minlength=classes))

    def _truth(self, target: Mapping[str, Any], where: str) -> np.ndarray:
        if "segmentation" in target:
            given = read_tensor(target["segmentation"], where=f"{where}['segmentation']")
            return self._checked(given, where, void=True)
        if "masks" not in target:
            raise ValueError(f"{where} has no segmentation and no masks")
        if "labels" not in target:
            raise ValueError(f"{where} has masks and no labels; give each mask its label")
        labels = read_labels(Reader(where, VOID - 1), target, where)
        masks = torch.from_numpy(read_masks(target, len(labels), where))
        crowds = torch.from_numpy(read_flags(target, "iscrowd", len(labels), where))
        return self._checked(draw_segmentation(masks, torch.from_numpy(labels), ~crowds, crowds), where, void=True)

    def _found(self, detection: Mapping[str, Any], size: tuple[int, ...], where: str) -> np.ndarray:
        if "segmentation" not in detection:
            raise ValueError(f"{where} has no segmentation; the detector needs a SegmentationStage")
        found = read_tensor(detection["segmentation"], where=f"{where}['segmentation']")
        if found.ndim == 3:
            if len(found) != len(self.names) or not bool(torch.isfinite(found).all()):
                raise ValueError(
                    f"{where}: segmentation of shape {tuple(found.shape)}; allowed are finite scores of "
                    f"{len(self.names)} classes (C, H, W), or classes (H, W)"
                )
            found = found.max(0).indices
        if tuple(found.shape) != size:
            raise ValueError(
                f"{where}: segmentation of {tuple(found.shape)} pixels; allowed are those of the truth {size}"
            )
        return self._checked(found, where, void=False)

    def _checked(self, values: Tensor, where: str, *, void: bool) -> np.ndarray:
        """Classes (H, W) as int64, all of them in range."""
        array, classes = values.detach().cpu().numpy(), len(self.names)
        if array.ndim != 2 or array.dtype.kind not in "iu":
            raise ValueError(
                f"{where}: segmentation is {array.dtype} of shape {array.shape}; allowed is integers (H, W)"
            )
        array = array.astype(np.int64)
        bad = ((array < 0) | (array >= classes)) & ~(void & (array == VOID))
        if bad.any():
            more = f", or VOID ({VOID})" if void else ""
            raise ValueError(
                f"{where}: segmentation holds {array[bad][0]}; allowed are 0..{classes - 1}{more}; {bad.sum()} pixels "
                "are not so"
            )
        return array


def _merge(parts: Sequence[Mapping[Key, _Image]]) -> dict[Key, _Image]:
    """Every image once; raises ValueError where one has several truths."""
    images: dict[Key, _Image] = {}
    for key, image in (item for part in parts for item in part.items()):
        seen = images.setdefault(key, image)
        if not np.array_equal(seen.truth, image.truth):
            raise ValueError(
                f"SegmentationMetrics: image_id {key[1]} came twice with different targets ({seen.truth.tolist()} and "
                f"{image.truth.tolist()} pixels of each class); give each image its own image_id"
            )
        images[key] = image
    return images


def _part(hits: int, of: int) -> float:
    return hits / of if of else -1.0


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if value >= 0]
    return float(np.mean(known)) if known else -1.0
