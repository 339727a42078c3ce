"""COCO's average precision and recall: the numbers that detection papers report.

pycocotools (or hotcoco, the same numbers faster) does the evaluation. Some inputs that pycocotools handles wrongly are
handled here, and covered by tests:

==============================================  ==============================  =====================================
input                                           pycocotools                     here
==============================================  ==============================  =====================================
NaN boxes, NaN scores                           true positives, AP 1.0 or 0.5   ValueError naming the first
an annotation whose id is 0                     its match counts as a miss      AP 1.0
annotation ids given twice                      one is lost, silently           ValueError
a truth without width or height                 counts as missed                dropped, with one warning
flags as text, "0"                              count as set                    read as they say
``ignore=1`` in the truth                       overwritten by ``iscrowd``      neither found nor missed
``max_detections`` without 100                  AP -1                           AP at the largest
not exactly three ``max_detections``            IndexError                      any number of them
no detections at all                            IndexError                      AP 0, AR 0
class-agnostic keypoints                        AP 0                            evaluated
result of an unknown category                   left out, silently              ValueError
the caller's annotations                        written to                      unchanged
==============================================  ==============================  =====================================
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from detkit._door import door
from detkit._faults import Degenerate, check_degenerate
from detkit._ranges import Count, Fraction, Positive
from detkit._regular_file import read_json
from detkit.metrics.categories import category_names, frequency_groups
from detkit.metrics.coco_json import read_records
from detkit.metrics.engines import AREAS, COCO_SIGMAS, IOU_TYPES, Curves, Settings, engine_name, evaluate, match
from detkit.metrics.judged import Judged
from detkit.metrics.records import ImageRecord, Reader
from detkit.metrics.store import ImageStore
from detkit.structures import Detection, Target

IOU_THRESHOLDS = {"50": 0, "75": 5}


class ClassResult(NamedTuple):
    """One class: AP over IoU 0.5..0.95, AP at IoU 0.5 (-1 if it has no object), number of objects."""

    name: str
    AP: float
    AP50: float
    objects: int


class CocoMetrics:
    """COCO's AP and AR of boxes, masks and keypoints, over all images passed to :meth:`update` in all processes.

    categories: the number of classes, their names, or COCO's category dicts (LVIS's ``frequency`` is used); label i is
    the i-th. iou_types: some of "bbox", "segm", "keypoints". max_detections: the k of AR@k, ascending; AP and the
    area splits use the largest; None is COCO's own (1, 10, 100), for keypoints (20,), federated (300,). class_agnostic:
    labels are ignored, as for proposals. federated: an image is evaluated only for the classes known to be present or
    absent (target entry ``negative_labels``), and unmatched detections of ``not_exhaustive_labels`` do not count (LVIS,
    Gupta et al. 2019, section 3.1). engine: "pycocotools", "hotcoco", or None for the faster installed.
    keypoint_sigmas: one per keypoint, COCO's 17 by default. Raises ValueError naming the argument.

    Detections of equal score count in the order in which they are given, images in that of their ``image_id``: AP
    depends on it, as in pycocotools.

    >>> import torch
    >>> metrics = CocoMetrics(["cat"])
    >>> box = torch.tensor([[10.0, 10.0, 50.0, 50.0]])
    >>> metrics.update([{"boxes": box, "scores": torch.tensor([0.9]), "labels": torch.tensor([0])}],
    ...                [{"boxes": box, "labels": torch.tensor([0])}])
    >>> round(metrics.compute()["bbox/AP"], 6)
    1.0
    """

    @door
    def __init__(
        self,
        categories: Count | Sequence[str] | Sequence[Mapping[str, Any]],
        *,
        iou_types: str | Sequence[str] = ("bbox",),
        max_detections: Sequence[Count] | None = None,
        class_agnostic: bool = False,
        federated: bool = False,
        engine: str | None = None,
        keypoint_sigmas: Sequence[Positive] = COCO_SIGMAS,
    ) -> None:
        self.names = category_names(categories, function="CocoMetrics")
        self.frequencies = frequency_groups(categories)
        self.iou_types = _iou_types(iou_types)
        self.settings = Settings(
            len(self.names),
            _max_detections(max_detections),
            class_agnostic,
            federated,
            engine,
            _sigmas(keypoint_sigmas),
        )
        engine_name(engine)
        if federated and (class_agnostic or "keypoints" in self.iou_types):
            raise ValueError("CocoMetrics: federated=True goes with iou_types 'bbox' and 'segm' and with classes only")
        self._images = ImageStore()
        self._evaluated: tuple[list[int], dict[str, Curves]] = ([], {})

    @classmethod
    @door
    def from_json(
        cls,
        ground_truth: Mapping[str, Any] | str | Path,
        results: Sequence[Mapping[str, Any]] | str | Path,
        *,
        iou_types: str | Sequence[str] = ("bbox",),
        max_detections: Sequence[Count] | None = None,
        class_agnostic: bool = False,
        federated: bool = False,
        engine: str | None = None,
        keypoint_sigmas: Sequence[Positive] = COCO_SIGMAS,
        degenerate: Degenerate = "drop",
    ) -> "CocoMetrics":
        """Metrics that hold a COCO (or, federated, LVIS) data set and results, given as dicts or paths of JSON files.

        Class i is the category with the i-th smallest id. Fields are read as :class:`~detkit.data.CocoDataset` reads
        them: objects that are none (a box without width or height, ...) are dropped from the ground truth with one
        warning, or an error (``degenerate="raise"``). Sizes of images are needed only for polygons. Raises ValueError
        naming the file, and of each kind of fault the first entry and how many there are.

        >>> truth = {"images": [{"id": 1}], "categories": [{"id": 3, "name": "cat"}], "annotations": [
        ...     {"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0}]}
        >>> CocoMetrics.from_json(truth, []).compute()["bbox/AP"]
        0.0
        """
        types = _iou_types(iou_types)
        points = len(keypoint_sigmas) if "keypoints" in types else None
        check_degenerate(degenerate, owner="CocoMetrics.from_json")
        given = {"CocoMetrics.from_json: ground truth": ground_truth, "CocoMetrics.from_json: results": results}
        truth, found = (
            read_json(file, owner=name) if isinstance(file, str | Path) else file for name, file in given.items()
        )
        first, second = (f"{name}: {file}" if isinstance(file, str | Path) else name for name, file in given.items())
        categories, records = read_records(
            truth, found, masks="segm" in types, points=points, degenerate=degenerate, sources=(first, second)
        )
        metrics = cls(
            categories,
            iou_types=types,
            max_detections=max_detections,
            class_agnostic=class_agnostic,
            federated=federated,
            engine=engine,
            keypoint_sigmas=keypoint_sigmas,
        )
        metrics._images.add(records)
        return metrics

    @door
    def update(self, detections: Sequence[Detection], targets: Sequence[Target]) -> None:
        """Add images: detections (boxes, scores, labels; masks or keypoints if evaluated) and ground truth.

        A target may carry ``image_id`` (an image given again replaces the earlier one), ``iscrowd``, ``ignore`` and
        ``area`` (default: that of the mask, else of the box). Masks are (N, H, W), boolean or integer. Raises
        ValueError naming the image, the entry, the first bad index and value; then nothing of the batch is kept.

        >>> import torch
        >>> CocoMetrics(1).update([{"boxes": torch.full((1, 4), torch.nan), "scores": torch.ones(1),
        ...     "labels": torch.zeros(1).long()}], [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}])
        Traceback (most recent call last):
        ValueError: CocoMetrics.update: detections[0]['boxes'][0] = [nan, nan, nan, nan] (1 such here); allowed are
        finite xyxy pixels with x1 <= x2 and y1 <= y2
        """
        points = len(self.settings.keypoint_sigmas) if "keypoints" in self.iou_types else None
        reader = Reader("CocoMetrics.update", len(self.names), "segm" in self.iou_types, points)
        self._images.read(reader, detections, targets)

    def compute(self) -> dict[str, float]:
        """All numbers, in [0, 1], or -1 if there is no object to find; the same in every process (collective call).

        For each iou type: ``AP AP50 AP75 APs APm APl``, ``AR@k`` for each k, ``AR50 AR75 ARs ARm ARl`` at the largest
        k, prefixed by the type ("bbox/AP"); ``APr APc APf`` if categories have frequencies. Keypoints have no small
        objects.

        >>> CocoMetrics(2, max_detections=(5,)).compute()["bbox/AR@5"]
        -1.0
        """
        return {
            f"{iou_type}/{name}": value
            for iou_type, curves in self._curves().items()
            for name, value in self._summary(iou_type, curves).items()
        }

    def per_class(self, iou_type: str | None = None) -> list[ClassResult]:
        """AP, AP50 and number of objects of each class, by default for the first iou type (collective call).

        >>> CocoMetrics(["cat"]).per_class()
        [ClassResult(name='cat', AP=-1.0, AP50=-1.0, objects=0)]
        """
        curves = self._curves()[self._chosen(iou_type, "per_class")]
        best = curves.precision[:, :, :, 0, -1]
        return [
            ClassResult(name, _mean(best[:, :, i]), _mean(best[0, :, i]), int(curves.objects[i]))
            for i, name in enumerate(self._judged_names())
        ]

    @door
    def judged(self, iou_type: str | None = None, *, iou_threshold: Fraction = 0.5) -> Judged:
        """Which detections find an object at ``iou_threshold``, by default of the first iou type (collective call).

        From it come :func:`confusion_matrix`, :func:`score_curves`, :func:`error_kinds`, :func:`calibration` and
        :func:`worst_images`.

        >>> CocoMetrics(["cat"]).judged().images
        []
        """
        chosen = self._chosen(iou_type, "judged")
        images = match(self._images.gathered(), chosen, self._settings_of(chosen), iou_threshold)
        return Judged(tuple(self._judged_names()), chosen, iou_threshold, images)

    def gathered(self) -> list[ImageRecord]:
        """The records of all images of all processes, each once, in order (collective call).

        >>> CocoMetrics(1).gathered()
        []
        """
        return self._images.gathered()

    def reset(self) -> None:
        """Forget every image.

        >>> CocoMetrics(1).reset()
        """
        self._images.reset()

    def _curves(self) -> dict[str, Curves]:
        versions = self._images.versions()  # gathered, so that all processes agree whether anything is new
        if self._evaluated[0] != versions:
            records = self._images.gathered()
            curves = {kind: evaluate(records, kind, self._settings_of(kind)) for kind in self.iou_types}
            self._evaluated = (versions, curves)
        return self._evaluated[1]

    def _chosen(self, iou_type: str | None, method: str) -> str:
        chosen = self.iou_types[0] if iou_type is None else iou_type
        if chosen not in self.iou_types:
            raise ValueError(f"CocoMetrics.{method}: iou_type={iou_type!r}; allowed are {self.iou_types}")
        return chosen

    def _judged_names(self) -> list[str]:
        return ["all"] if self.settings.class_agnostic else self.names

    def _settings_of(self, iou_type: str) -> Settings:
        usual = (20,) if iou_type == "keypoints" else (300,) if self.settings.federated else (1, 10, 100)
        return self.settings._replace(max_detections=self.settings.max_detections or usual)

    def _summary(self, iou_type: str, curves: Curves) -> dict[str, float]:
        best, found = curves.precision[..., -1], curves.recall[..., -1]
        sizes = [(i, size) for i, size in enumerate(AREAS) if i and (iou_type, size) != ("keypoints", "s")]
        at_iou = {f"AP{name}": _mean(best[t, :, :, 0]) for name, t in IOU_THRESHOLDS.items()}
        recalls = {
            f"AR@{k}": _mean(curves.recall[:, :, 0, i])
            for i, k in enumerate(self._settings_of(iou_type).max_detections)
        }
        groups = {} if self.settings.class_agnostic else self.frequencies
        return {
            "AP": _mean(best[:, :, :, 0]),
            **at_iou,
            **{f"AP{size}": _mean(best[:, :, :, i]) for i, size in sizes},
            **{f"AP{group}": _mean(best[:, :, members, 0]) for group, members in groups.items()},
            **recalls,
            **{f"AR{name}": _mean(found[t, :, 0]) for name, t in IOU_THRESHOLDS.items()},
            **{f"AR{size}": _mean(found[:, :, i]) for i, size in sizes},
        }


@door
def format_table(rows: Sequence[ClassResult]) -> str:
    """Format a table: one line per class, best AP first, classes without objects last.

    >>> print(format_table([ClassResult("cat", 0.5, 0.75, 3), ClassResult("dog", 0.625, 0.9, 12)]))
    class  objects     AP   AP50
    dog         12  0.625  0.900
    cat          3  0.500  0.750
    """
    width = max(len("class"), *(len(row.name) for row in rows)) if rows else len("class")
    lines = [f"{'class':<{width}}  objects     AP   AP50"]
    for row in sorted(rows, key=lambda row: -row.AP):
        lines.append(f"{row.name:<{width}}  {row.objects:7d}  {row.AP:5.3f}  {row.AP50:5.3f}")
    return "\n".join(lines)


def _mean(values: np.ndarray) -> float:
    judged = values[values > -1]
    return float(judged.mean()) if judged.size else -1.0


def _iou_types(iou_types: str | Sequence[str]) -> tuple[str, ...]:
    types = (iou_types,) if isinstance(iou_types, str) else tuple(iou_types)
    if not types or len(set(types)) < len(types) or any(kind not in IOU_TYPES for kind in types):
        raise ValueError(f"CocoMetrics: iou_types={iou_types!r}; allowed are one or more of {IOU_TYPES}")
    return types


def _sigmas(sigmas: Sequence[float]) -> tuple[float, ...]:
    if not len(sigmas) or not all(0 < sigma < np.inf for sigma in sigmas):
        raise ValueError(f"CocoMetrics: keypoint_sigmas={sigmas!r}; allowed are numbers > 0, one per keypoint")
    return tuple(float(sigma) for sigma in sigmas)


def _max_detections(max_detections: Sequence[int] | None) -> tuple[int, ...]:
    if max_detections is None:
        return ()
    ks = tuple(max_detections)
    if not ks or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in ks) or len(set(ks)) < len(ks):
        raise ValueError(f"CocoMetrics: max_detections={max_detections!r}; allowed are distinct integers >= 1")
    return tuple(sorted(ks))
