"""Recall of class-agnostic proposals: the fraction of objects that the best k boxes of an image cover."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from detkit._door import door
from detkit._inputs import read_tensor
from detkit._ranges import Count
from detkit.boxes import box_iou
from detkit.metrics.coco import CocoMetrics
from detkit.metrics.engines import IOU_RANGE
from detkit.metrics.records import ImageRecord, check_images, corners
from detkit.structures import Target, read_entries, read_truth

MATCHES = ("one-to-one", "any")


class ProposalRecall:
    """COCO's AR@k of proposals, over all images passed to :meth:`update` in all processes.

    max_detections: the values of k, distinct; the k best-scored boxes of an image count. match: "one-to-one" lets a
    proposal cover one object, as COCO does; "any" lets it cover every object it overlaps enough, as selective search's
    recall does (Uijlings et al. 2013, section 5). engine as in :class:`CocoMetrics`.

    >>> metrics = ProposalRecall((1, 2))
    >>> boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0], [20.0, 20.0, 40.0, 40.0]])
    >>> metrics.update([{"boxes": boxes}], [{"boxes": boxes, "labels": torch.tensor([5, 3])}])
    >>> metrics.compute()["AR@1"], metrics.compute()["AR@2"]
    (0.5, 1.0)
    """

    @door
    def __init__(
        self, max_detections: Sequence[Count] = (1, 10, 100), *, match: str = "one-to-one", engine: str | None = None
    ) -> None:
        if match not in MATCHES:
            raise ValueError(f"ProposalRecall: match={match!r}; allowed are {MATCHES}")
        self.match = match
        self._metrics = CocoMetrics(1, max_detections=max_detections, class_agnostic=True, engine=engine)

    @door
    def update(self, proposals: Sequence[Mapping[str, Any]], targets: Sequence[Target]) -> None:
        """Add images: proposals with boxes (K, 4), and scores (K,) unless they come best first; labels are not read.

        Crowd and ignored objects do not count. Errors as in :meth:`CocoMetrics.update`.

        >>> ProposalRecall().update([], [])
        """
        check_images("ProposalRecall.update", targets, proposals=proposals)
        places = [f"ProposalRecall.update: {kind}" for kind in ("proposals", "targets")]
        detections: list[Any] = [_unlabeled(proposal, f"{places[0]}[{i}]") for i, proposal in enumerate(proposals)]
        truth: list[Any] = [_of_one_class(target, f"{places[1]}[{i}]") for i, target in enumerate(targets)]
        self._metrics.update(detections, truth)

    def compute(self) -> dict[str, float]:
        """``AR@k``: recall averaged over IoU 0.5, 0.55, ..., 0.95; -1 without objects (collective call).

        One-to-one also has ``AR50 AR75 ARs ARm ARl`` at the largest k.

        >>> ProposalRecall((10,), match="any").compute()
        {'AR@10': -1.0}
        """
        if self.match == "any":
            records = self._metrics.gathered()
            return {f"AR@{k}": _any_recall(records, k) for k in self._metrics.settings.max_detections}
        found = {name.removeprefix("bbox/"): value for name, value in self._metrics.compute().items()}
        return {name: value for name, value in found.items() if name.startswith("AR")}

    def reset(self) -> None:
        """Forget every image.

        >>> ProposalRecall().reset()
        """
        self._metrics.reset()


def _unlabeled(proposal: Mapping[str, Any], where: str) -> dict[str, Any]:
    entries = read_entries(proposal, where=where)
    labels = _zeros(entries, where)
    return {"scores": -torch.arange(labels.numel(), dtype=torch.float64), **entries, "labels": labels}


def _of_one_class(target: Mapping[str, Any], where: str) -> dict[str, Any]:
    entries = read_truth(target, where=where)
    return {**entries, "labels": _zeros(entries, where)}


def _zeros(entries: Mapping[str, Any], where: str) -> torch.Tensor:
    boxes = read_tensor(entries.get("boxes", ()), where=f"{where}['boxes']")
    return torch.zeros(boxes.shape[:1], dtype=torch.int64)


def _any_recall(records: Sequence[ImageRecord], k: int) -> float:
    best = np.concatenate([*(_best_overlaps(record, k) for record in records), np.empty(0)])
    return float((best[:, None] >= IOU_RANGE).mean()) if len(best) else -1.0


def _best_overlaps(record: ImageRecord, k: int) -> np.ndarray:
    """For each counted object of the image, its highest IoU with the k best proposals."""
    top = np.argsort(-record.detections.scores, kind="stable")[:k]
    boxes = torch.from_numpy(corners(record.detections.boxes[top]))
    truth = torch.from_numpy(corners(record.truth.boxes[~(record.truth.crowd | record.truth.ignore)]))
    return box_iou(boxes, truth).numpy().max(axis=0, initial=0.0)
