"""Postprocessing: from the scores and boxes of all anchors to a short list of detections."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detkit._inputs import check_fraction
from detkit.boxes import clip_boxes_to_image, multiclass_nms_padded
from detkit.structures import Detections, take_rows


class Postprocess(nn.Module):
    """Threshold the scores, suppress within each class, keep the best ``max_detections`` of every image.

    NMS takes the best ``candidates_per_class`` boxes of each class (None: all) that score strictly above
    ``score_threshold``; if two overlap with IoU strictly above ``iou_threshold``, the lower-scoring one is suppressed.
    A box may be detected as several classes. Ties go to the lower box index, then to the lower class. Boxes with a side
    below ``min_size`` pixels after clipping are dropped. With ``class_agnostic`` a box is found as its best class only
    (of equal scores the lower one) and suppresses boxes of all classes, whose candidates are counted together; SSD7's
    fast decoding is that at a ``score_threshold`` of .5. The defaults are SSD's (Liu et al. 2016, section 3.1).
    Raises ValueError for thresholds outside [0, 1], counts below 1, and a negative ``min_size``.

    >>> scores, boxes = torch.tensor([[[0.9, 0.2], [0.8, 0.0]]]), torch.tensor([[[0.0, 0, 9, 9], [0, 0, 9, 8]]])
    >>> found = Postprocess(score_threshold=0.1, max_detections=3)(scores, boxes, torch.tensor([[10, 10]]))
    >>> found.scores, found.labels, found.valid
    (tensor([[0.9000, 0.2000, 0.0000]]), tensor([[0, 1, 0]]), tensor([[ True,  True, False]]))
    """

    def __init__(
        self,
        *,
        score_threshold: float = 0.01,
        iou_threshold: float = 0.45,
        max_detections: int = 200,
        candidates_per_class: int | None = 400,
        min_size: float = 0.0,
        class_agnostic: bool = False,
    ) -> None:
        super().__init__()
        check_fraction(score_threshold, name="score_threshold", function="Postprocess")
        check_fraction(iou_threshold, name="iou_threshold", function="Postprocess")
        for name, count in (("max_detections", max_detections), ("candidates_per_class", candidates_per_class)):
            if count is not None and count < 1:
                raise ValueError(f"Postprocess: {name}={count} must be at least 1")
        if not min_size >= 0:
            raise ValueError(f"Postprocess: min_size={min_size} must be at least 0 pixels")
        self.score_threshold, self.iou_threshold = score_threshold, iou_threshold
        self.max_detections, self.candidates_per_class = max_detections, candidates_per_class
        self.min_size, self.class_agnostic = min_size, class_agnostic

    @torch.no_grad()
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
        if not self.class_agnostic:
            return self._found(scores, boxes, sizes)
        best, labels = scores.nan_to_num(nan=-1.0).max(dim=-1, keepdim=True)
        own = boxes if boxes.ndim == 3 else boxes.take_along_dim(labels[..., None], 2).squeeze(2)
        return self._found(best, own, sizes, labels.squeeze(-1))

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        names = "score_threshold", "iou_threshold", "max_detections", "candidates_per_class", "min_size"
        return ", ".join(f"{name}={getattr(self, name)}" for name in (*names, "class_agnostic"))

    def _found(self, scores: Tensor, boxes: Tensor, sizes: Tensor, names: Tensor | None = None) -> Detections:
        """Detections; ``names`` (B, N) are the labels of boxes with one score each."""
        usable = torch.isfinite(boxes).all(-1, keepdim=True)  # clipping would make infinite ones good
        boxes = clip_boxes_to_image(boxes.flatten(1, -2), sizes).view_as(boxes)
        if self.min_size > 0:
            usable = usable & (boxes[..., 2:] - boxes[..., :2] >= self.min_size).all(-1, keepdim=True)
        boxes = torch.where(usable, boxes, torch.nan)
        rows, labels, valid = self._best(scores, boxes)
        places = rows if boxes.ndim == 3 else rows * boxes.shape[2] + labels
        chosen = take_rows(boxes.flatten(1, -2), places)
        found = scores.flatten(1).gather(1, rows * scores.shape[2] + labels)
        return Detections.padded(chosen, found, labels if names is None else names.gather(1, rows), valid)

    def _best(self, scores: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Row, class and validity (B, K) of the detections."""
        return multiclass_nms_padded(
            boxes,
            scores,
            self.iou_threshold,
            score_threshold=self.score_threshold,
            candidates_per_class=self.candidates_per_class,
            max_detections=self.max_detections,
        )
