"""Fusion: from the detections of one image in several views, or by several detectors, to one list, best first.

A fusion is any callable ``(boxes_list, scores_list, labels_list) -> Fused``; those here are modules, to be handed to
:class:`~detkit.tricks.TestTimeAugmentation` and :class:`~detkit.tricks.TiledInference`. :func:`fuse_detections` applies
one to whole detections: what else belongs to an object stays with it.
"""

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from detkit._door import door
from detkit._ranges import Count, Fraction, Positive
from detkit.boxes import batched_nms, soft_nms
from detkit.boxes.fusion import fused_with_founders
from detkit.structures import FIELDS, Detection
from detkit.tricks.by_smaller import nms_by_smaller
from detkit.tricks.fused import Fused, Fusion, check_fusion, decided
from detkit.tricks.views import View, joined, read_view


@door
def fuse_detections(views: Sequence[Detection], fusion: Fusion) -> Detection:
    """One detection of the several ``views`` of one image, all in its pixels.

    ``fusion`` decides on boxes, scores and labels; every other entry of an object is that of the detection which it
    names. What belongs to the image (segmentation, image_scores) is averaged where it holds real numbers, and is the
    first view's else. Raises ValueError naming the view for an empty list, entries that differ between views, and
    entries that :data:`~detkit.structures.FIELDS` does not know.

    >>> one = {"boxes": torch.tensor([[0.0, 0, 9, 9]]), "scores": torch.tensor([0.6]), "labels": torch.tensor([1])}
    >>> other = {"boxes": torch.tensor([[0.0, 0, 9, 7]]), "scores": torch.tensor([0.8]), "labels": torch.tensor([1])}
    >>> fuse_detections([one, other], NMSFusion(0.5))["boxes"]
    tensor([[0., 0., 9., 7.]])
    """
    if not views:
        raise ValueError("fuse_detections: views is empty; allowed is at least one detection")
    check_fusion(fusion, where="fuse_detections: fusion")
    return fused([read_view(view, where=f"fuse_detections: views[{i}]") for i, view in enumerate(views)], fusion)


def fused(views: Sequence[View], fusion: Fusion, *, where: str = "fuse_detections: views") -> Detection:
    """:func:`fuse_detections` of views that are read already; ``where`` is what errors name."""
    objects = joined(views, where=where)
    kept = decided(fusion, *([view.objects[key] for view in views] for key in ("boxes", "scores", "labels")))
    found: dict[str, Any] = {**taken(objects, kept), **_of_the_image(views, where)}
    return cast(Detection, found)


def taken(objects: dict[str, Tensor], kept: Fused) -> dict[str, Tensor]:
    """What a fusion kept, with the other entries of the rows that it names.

    >>> one = {"boxes": torch.ones(2, 4), "scores": torch.ones(2), "labels": torch.zeros(2).long()}
    >>> taken({**one, "embeddings": torch.eye(2)}, Fused(*(rows[:1] for rows in one.values()), torch.tensor([1])))[
    ...     "embeddings"
    ... ]
    tensor([[0., 1.]])
    """
    own = {"boxes": kept.boxes, "scores": kept.scores, "labels": kept.labels}
    return {key: own[key] if key in own else rows[kept.rows.to(rows.device)] for key, rows in objects.items()}


def _of_the_image(views: Sequence[View], where: str) -> dict[str, Any]:
    """Real numbers averaged, anything else as the first view says it."""
    result = {**views[0].others}
    for i, view in enumerate(views):
        if view.others.keys() != result.keys():
            raise ValueError(f"{where}[{i}] holds {sorted(view.others)} of the image, {where}[0] {sorted(result)}")
    for key, values in result.items():
        if isinstance(values, Tensor) and values.is_floating_point() and FIELDS[key].inside and len(views) > 1:
            shapes = [tuple(view.others[key].shape) for view in views]
            if odd := [i for i, shape in enumerate(shapes) if shape != shapes[0]]:
                raise ValueError(
                    f"{where}[{odd[0]}]: {key} has shape {shapes[odd[0]]}, that of {where}[0] {shapes[0]}; allowed is "
                    "one shape in all, to be averaged"
                )
            result[key] = torch.stack([view.others[key] for view in views]).mean(0)
    return result


class KeepAll(nn.Module):
    """All detections of all views, best first, ties to the earlier view: for what suppresses or judges them itself.

    >>> KeepAll()([torch.ones(1, 4)] * 2, [torch.tensor([0.3]), torch.tensor([0.5])], [torch.zeros(1).long()] * 2).rows
    tensor([1, 0])
    """

    @door
    def forward(
        self,
        boxes_list: Sequence[Shaped[Tensor, "_ 4"]],
        scores_list: Sequence[Shaped[Tensor, "_"]],
        labels_list: Sequence[Shaped[Tensor, "_"]],
    ) -> Fused:
        """See the class."""
        boxes, scores, labels = _united(self, boxes_list, scores_list, labels_list)
        return _at(boxes, scores, labels, scores.sort(descending=True, stable=True).indices)


class NMSFusion(nn.Module):
    """Non-maximum suppression of all views together, within each class.

    A detection goes where a better one of its class overlaps it by more than ``iou_threshold``; ties to the earlier
    view. ``measure="ios"`` compares the intersection over the smaller of the two areas instead of IoU, which also
    removes part of an object beside the whole, and objects inside others of their class. With ``class_agnostic`` all
    classes are one. ``max_detections`` keeps the best. Raises ValueError for boxes or scores that are not finite.

    >>> whole, part = torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([[0.0, 0, 9, 3]])
    >>> scores, labels = [torch.tensor([0.9]), torch.tensor([0.8])], [torch.tensor([0]), torch.tensor([0])]
    >>> [len(NMSFusion(0.5, measure=m)([whole, part], scores, labels).boxes) for m in ("iou", "ios")]
    [2, 1]
    """

    @door
    def __init__(
        self,
        iou_threshold: Fraction = 0.5,
        *,
        measure: Literal["iou", "ios"] = "iou",
        class_agnostic: bool = False,
        max_detections: Count | None = None,
    ) -> None:
        super().__init__()
        if measure not in ("iou", "ios"):
            raise ValueError(f"NMSFusion: measure={measure!r}; allowed is 'iou' or 'ios'")
        self.iou_threshold, self.measure = iou_threshold, measure
        self.class_agnostic, self.max_detections = class_agnostic, max_detections

    @door
    def forward(
        self,
        boxes_list: Sequence[Shaped[Tensor, "_ 4"]],
        scores_list: Sequence[Shaped[Tensor, "_"]],
        labels_list: Sequence[Shaped[Tensor, "_"]],
    ) -> Fused:
        """Boxes (N, 4) xyxy, scores (N,) and labels (N,) of each view to those that survive."""
        boxes, scores, labels = _united(self, boxes_list, scores_list, labels_list)
        groups = torch.zeros_like(labels) if self.class_agnostic else labels
        suppress = batched_nms if self.measure == "iou" else nms_by_smaller
        return _at(boxes, scores, labels, suppress(boxes, scores, groups, self.iou_threshold)[: self.max_detections])

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"{self.iou_threshold}, measure={self.measure!r}, class_agnostic={self.class_agnostic}"


class SoftNMSFusion(nn.Module):
    """Soft-NMS of all views together, within each class: a better detection lowers the scores of what it overlaps.

    ``method``, ``sigma``, ``iou_threshold``, ``score_threshold`` and ``max_detections`` as in
    :func:`detkit.boxes.soft_nms`. Views agree on most objects, and soft-NMS removes nothing: choose the threshold for
    the lowered scores.

    >>> boxes, scores = torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([0.9])
    >>> SoftNMSFusion()([boxes, boxes], [scores, scores], [torch.tensor([0])] * 2).scores
    tensor([0.9000, 0.1218])
    """

    @door
    def __init__(
        self,
        *,
        method: Literal["linear", "gaussian"] = "gaussian",
        sigma: Positive = 0.5,
        iou_threshold: Fraction = 0.3,
        score_threshold: Fraction = 0.001,
        max_detections: Count | None = None,
    ) -> None:
        super().__init__()
        if method not in ("linear", "gaussian"):
            raise ValueError(f"SoftNMSFusion: method={method!r}; allowed is 'linear' or 'gaussian'")
        self.method: Literal["linear", "gaussian"] = method
        self.sigma, self.iou_threshold = sigma, iou_threshold
        self.score_threshold, self.max_detections = score_threshold, max_detections

    @door
    def forward(
        self,
        boxes_list: Sequence[Shaped[Tensor, "_ 4"]],
        scores_list: Sequence[Shaped[Tensor, "_"]],
        labels_list: Sequence[Shaped[Tensor, "_"]],
    ) -> Fused:
        """Boxes (N, 4) xyxy, scores (N,) and labels (N,) of each view to those that keep a score."""
        boxes, scores, labels = _united(self, boxes_list, scores_list, labels_list)
        rows, lowered = soft_nms(
            boxes,
            scores,
            groups=labels,
            method=self.method,
            sigma=self.sigma,
            iou_threshold=self.iou_threshold,
            score_threshold=self.score_threshold,
            max_detections=self.max_detections,
        )
        return _at(boxes, scores, labels, rows)._replace(scores=lowered)

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"method={self.method!r}, sigma={self.sigma}, score_threshold={self.score_threshold}"


class WeightedBoxesFusion(nn.Module):
    """Boxes of the views that see one object are averaged, and what few views see scores less.

    ``iou_threshold``, ``score_threshold`` and ``allow_overflow`` as in :func:`detkit.boxes.weighted_boxes_fusion`; a
    fused box keeps the masks and other entries of its best member. ``weights`` are those of the detectors: all views of
    one, which stand together, have the same; as many weights as views are those of the views. Raises ValueError where
    the views are no multiple of the weights.

    >>> boxes, labels = [torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([[0.0, 0, 9, 7]])], [torch.tensor([0])] * 2
    >>> WeightedBoxesFusion(weights=(1, 3))(boxes, [torch.tensor([0.8])] * 2, labels).boxes
    tensor([[0.0000, 0.0000, 9.0000, 7.5000]])
    """

    @door
    def __init__(
        self,
        iou_threshold: Fraction = 0.55,
        *,
        score_threshold: Fraction = 0.0,
        weights: Sequence[Positive] | None = None,
        allow_overflow: bool = False,
        max_detections: Count | None = None,
    ) -> None:
        super().__init__()
        self.iou_threshold, self.score_threshold = iou_threshold, score_threshold
        self.weights = None if weights is None else [float(weight) for weight in weights]
        self.allow_overflow, self.max_detections = allow_overflow, max_detections

    @door
    def forward(
        self,
        boxes_list: Sequence[Shaped[Tensor, "_ 4"]],
        scores_list: Sequence[Shaped[Tensor, "_"]],
        labels_list: Sequence[Shaped[Tensor, "_"]],
    ) -> Fused:
        """Boxes (N, 4) xyxy, scores (N,) and labels (N,) of each view to those of the clusters."""
        clusters = fused_with_founders(
            boxes_list,
            scores_list,
            labels_list,
            weights=self._weights_of(len(boxes_list)),
            iou_threshold=self.iou_threshold,
            score_threshold=self.score_threshold,
            allow_overflow=self.allow_overflow,
        )
        return Fused(*(rows[: self.max_detections] for rows in clusters))

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"{self.iou_threshold}, score_threshold={self.score_threshold}, weights={self.weights}"

    def _weights_of(self, views: int) -> list[float] | None:
        """One for each view."""
        if self.weights is None:
            return None
        if not self.weights or views % len(self.weights):
            raise ValueError(
                f"WeightedBoxesFusion: weights={self.weights} for {views} views; allowed is one for each detector, "
                "all of as many views"
            )
        each = views // len(self.weights)
        return [weight for weight in self.weights for _ in range(each)]


def _united(fusion: nn.Module, *lists: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores and labels of all views, one after the other; those of empty lists are read as (0, 4) and int64."""
    name = type(fusion).__name__
    if len({len(rows) for rows in lists}) > 1 or not lists[0]:
        lengths = ", ".join(str(len(rows)) for rows in lists)
        raise ValueError(
            f"{name}: boxes_list, scores_list and labels_list have {lengths} entries; allowed is one of each for every "
            "view, and at least one view"
        )
    boxes, scores, labels = lists
    for i, counts in enumerate(zip(*(map(len, rows) for rows in lists), strict=True)):
        if len(set(counts)) > 1:
            raise ValueError(
                f"{name}: boxes_list[{i}], scores_list[{i}] and labels_list[{i}] have {counts} rows; allowed is one of "
                "each for every detection"
            )
        if counts[0] and labels[i].is_floating_point():
            raise ValueError(f"{name}: labels_list[{i}] has type {labels[i].dtype}; allowed is an integer type")
    whole = [rows.to(torch.int64) for rows in labels]
    return torch.cat([rows.reshape(-1, 4) for rows in boxes]), torch.cat([*scores]), torch.cat(whole)


def _at(boxes: Tensor, scores: Tensor, labels: Tensor, rows: Tensor) -> Fused:
    return Fused(boxes[rows], scores[rows], labels[rows], rows)
