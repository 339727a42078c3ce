"""Postprocessing: from the scores and boxes of all anchors to a short list of detections."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detkit._door import door
from detkit._ranges import Count, Fraction, NotNegative
from detkit._ranking import stable_topk
from detkit.boxes import clip_boxes_to_image, multiclass_nms_padded, nms_padded
from detkit.structures import Detections, take_rows


def gradients_on_request(forward: Callable[..., Detections]) -> Callable[..., Detections]:
    """A postprocess's ``forward`` that records no gradient, unless its ``gradients`` asks for it.

    >>> postprocess = Postprocess(gradients=True)
    >>> scores, boxes = torch.tensor([[[0.5]]], requires_grad=True), torch.tensor([[[0.0, 0, 4, 4]]])
    >>> postprocess(scores, boxes, torch.tensor([[8, 8]])).scores.requires_grad
    True
    """

    @functools.wraps(forward)
    def recorded(self: Any, *arguments: Any, **settings: Any) -> Detections:
        with torch.set_grad_enabled(self.gradients and torch.is_grad_enabled()):
            return forward(self, *arguments, **settings)

    return recorded


def shown_settings(postprocess: Any, *names: str) -> str:
    """What ``print`` shows of a postprocess: these settings, and the switches that are set.

    >>> shown_settings(Postprocess(class_agnostic=True), "max_detections")
    'max_detections=200, class_agnostic=True'
    """
    switches = [name for name in ("class_agnostic", "gradients", "rows") if getattr(postprocess, name)]
    return ", ".join(f"{name}={getattr(postprocess, name)}" for name in (*names, *switches))


class Postprocess(nn.Module):
    """Threshold the scores, suppress within each class, keep the best ``max_detections`` of every image.

    NMS takes the best ``candidates_per_class`` boxes of each class (None: all) that score strictly above
    ``score_threshold``; if two overlap with IoU strictly above ``iou_threshold``, the lower-scoring one is suppressed.
    A box may be detected as several classes. Ties go to the lower box index, then to the lower class. Boxes with a side
    below ``min_size`` pixels after clipping are dropped. With ``class_agnostic`` boxes of different classes suppress
    each other, and all (box, class) pairs are candidates of one class. With ``gradients`` scores and boxes keep their
    gradient where torch records one, for saliency. With ``rows`` detections say which anchor each was. The defaults are
    SSD's (Liu et al. 2016, section 3.1). Raises ValueError for thresholds outside [0, 1], counts below 1, and a
    negative ``min_size``.

    >>> scores, boxes = torch.tensor([[[0.9, 0.2], [0.8, 0.0]]]), torch.tensor([[[0.0, 0, 9, 9], [0, 0, 9, 8]]])
    >>> found = Postprocess(score_threshold=0.1, max_detections=3)(scores, boxes, torch.tensor([[10, 10]]))
    >>> found.scores, found.labels, found.valid
    (tensor([[0.9000, 0.2000, 0.0000]]), tensor([[0, 1, 0]]), tensor([[ True,  True, False]]))
    """

    @door
    def __init__(
        self,
        *,
        score_threshold: Fraction = 0.01,
        iou_threshold: Fraction = 0.45,
        max_detections: Count = 200,
        candidates_per_class: Count | None = 400,
        min_size: NotNegative = 0.0,
        class_agnostic: bool = False,
        gradients: bool = False,
        rows: bool = False,
    ) -> None:
        super().__init__()
        self.score_threshold, self.iou_threshold = score_threshold, iou_threshold
        self.max_detections, self.candidates_per_class = max_detections, candidates_per_class
        self.min_size, self.class_agnostic, self.gradients, self.rows = min_size, class_agnostic, gradients, rows

    @door
    @gradients_on_request
    def forward(
        self,
        scores: Float[Tensor, "B N C"],
        boxes: Float[Tensor, "B N 4"] | Float[Tensor, "B N C 4"],
        sizes: Float[Tensor, "B 2"] | Tensor,
        counts: Sequence[Any] | None = None,
    ) -> Detections:
        """Detections of B images from scores (B, N, C) in [0, 1], clipped to ``sizes`` (B, 2).

        boxes are (B, N, 4), or (B, N, C, 4) with a box for each class. ``counts``, the anchors per level, are not used.
        K is min(max_detections, candidates); padding rows hold zeros.
        """
        usable = torch.isfinite(boxes).all(-1, keepdim=True)  # clipping would make infinite ones good
        boxes = clip_boxes_to_image(boxes.flatten(1, -2), sizes).view_as(boxes)
        if self.min_size > 0:
            usable = usable & (boxes[..., 2:] - boxes[..., :2] >= self.min_size).all(-1, keepdim=True)
        boxes = torch.where(usable, boxes, torch.nan)
        rows, labels, valid = self._best(scores, boxes)
        places = rows if boxes.ndim == 3 else rows * boxes.shape[2] + labels
        chosen = take_rows(boxes.flatten(1, -2), places)
        found = scores.flatten(1).gather(1, rows * scores.shape[2] + labels)
        detections = Detections.padded(chosen, found, labels, valid)
        return detections._replace(rows=torch.where(valid, rows, 0)) if self.rows else detections

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        names = ("score_threshold", "iou_threshold", "max_detections", "candidates_per_class", "min_size")
        return shown_settings(self, *names)

    def _best(self, scores: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Row, class and validity (B, K) of the detections."""
        if self.class_agnostic:
            return self._best_of_all(scores, boxes)
        return multiclass_nms_padded(
            boxes,
            scores,
            self.iou_threshold,
            score_threshold=self.score_threshold,
            candidates_per_class=self.candidates_per_class,
            max_detections=self.max_detections,
        )

    def _best_of_all(self, scores: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`_best`, where all classes are one to suppression: pairs of box and class, best first."""
        classes = scores.shape[2]
        pairs = scores.flatten(1).nan_to_num(-1.0, -1.0, -1.0)
        order = stable_topk(pairs, self.candidates_per_class or pairs.shape[1])
        found = pairs.gather(1, order)
        own = take_rows(boxes.flatten(1, -2), order // classes if boxes.ndim == 3 else order)
        kept, valid = nms_padded(
            own, found, self.iou_threshold, valid=found > self.score_threshold, max_detections=self.max_detections
        )
        chosen = torch.where(valid, order.gather(1, kept), 0)
        return chosen // classes, chosen % classes, valid
