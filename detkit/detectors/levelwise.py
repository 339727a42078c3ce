"""Postprocessing with candidates chosen per feature level, as in RetinaNet and FCOS."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from detkit._door import door
from detkit._ranges import Count, Fraction
from detkit._ranking import best_places, stable_topk
from detkit.boxes import clip_boxes_to_image, nms_padded
from detkit.detectors.postprocess import gradients_on_request, shown_settings
from detkit.structures import Detections, take_rows


class LevelwisePostprocess(nn.Module):
    """Keep the best (anchor, class) pairs of each level, suppress within each class, keep the best of the image.

    Candidates are the ``candidates_per_level`` highest scores of each level strictly above ``score_threshold``. If two
    boxes of a class, of any levels, overlap with IoU strictly above ``iou_threshold``, the lower-scoring one is
    suppressed; at most ``max_detections`` remain per image. Scores are ranked in float32; ties go to the lower anchor,
    then to the lower class. ``class_agnostic``, ``gradients`` and ``rows`` are as in
    :class:`~detkit.detectors.Postprocess`. Boxes that are not finite and NaN scores are left out. The defaults are
    RetinaNet's; those of torchvision's FCOS are .2, .6 and 100. Source: Lin et al. 2017, "Focal Loss", section 4.1.
    Raises ValueError for thresholds outside [0, 1] and counts below 1.

    >>> scores, boxes = torch.tensor([[[0.9, 0.2], [0.8, 0.0]]]), torch.tensor([[[0.0, 0, 9, 9], [0, 0, 9, 8]]])
    >>> postprocess = LevelwisePostprocess(max_detections=3)
    >>> found = postprocess(scores, boxes, torch.tensor([[10, 10]]), counts=[1, 1])
    >>> found.scores, found.labels, found.valid
    (tensor([[0.9000, 0.2000, 0.0000]]), tensor([[0, 1, 0]]), tensor([[ True,  True, False]]))
    """

    @door
    def __init__(
        self,
        *,
        score_threshold: Fraction = 0.05,
        iou_threshold: Fraction = 0.5,
        max_detections: Count = 300,
        candidates_per_level: Count = 1000,
        class_agnostic: bool = False,
        gradients: bool = False,
        rows: bool = False,
    ) -> None:
        super().__init__()
        self.score_threshold, self.iou_threshold = score_threshold, iou_threshold
        self.max_detections, self.candidates_per_level = max_detections, candidates_per_level
        self.class_agnostic, self.gradients, self.rows = class_agnostic, gradients, rows

    @door
    @gradients_on_request
    def forward(
        self,
        scores: Float[Tensor, "B N C"],
        boxes: Float[Tensor, "B N 4"],
        sizes: Shaped[Tensor, "B 2"],
        counts: Sequence[Any] | None = None,
    ) -> Detections:
        """Detections of B images, clipped to ``sizes`` (B, 2); ``counts``, the anchors per level, add up to N.

        Without ``counts`` there is one level. K is min(max_detections, candidates of all levels); padding rows hold
        zeros. Raises ValueError if the numbers of anchors, boxes and scores differ.
        """
        counts = (scores.shape[1],) if counts is None else counts
        check_levels("LevelwisePostprocess", scores, boxes, counts)
        pairs, levels, start = [], scores.split(list(counts), dim=1), 0
        for level, length in zip(levels, counts, strict=True):
            pairs.append(self._best_pairs(level, start, isinstance(length, torch.SymInt)))
            start += length
        rows, labels, found = (torch.cat(columns, dim=1) for columns in zip(*pairs, strict=True))
        boxes = take_rows(boxes, rows)
        valid = (found > self.score_threshold) & torch.isfinite(boxes).all(-1)  # clipping would make infinite ones good
        boxes = clip_boxes_to_image(boxes, sizes)
        limits = {
            "groups": None if self.class_agnostic else labels,
            "valid": valid,
            "max_detections": self.max_detections,
        }
        kept, valid = nms_padded(boxes, found, self.iou_threshold, **limits)
        detections = Detections.padded(take_rows(boxes, kept), found.gather(1, kept), labels.gather(1, kept), valid)
        return detections._replace(rows=torch.where(valid, rows.gather(1, kept), 0)) if self.rows else detections

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return shown_settings(self, "score_threshold", "iou_threshold", "max_detections", "candidates_per_level")

    def _best_pairs(
        self, scores: Float[Tensor, "B N C"], start: Any, symbolic: bool
    ) -> tuple[Int[Tensor, "B K"], Int[Tensor, "B K"], Float[Tensor, "B K"]]:
        """Anchor, class and score of the best pairs of one level; padded with pairs at or below the threshold.

        The best L pairs belong to the L anchors with the highest best-class score, so anchors are chosen first and far
        less has to be sorted. Scores of anchors without one above the threshold, or with NaN, become -1.
        """
        classes = scores.shape[2]
        best = scores.amax(2).nan_to_num(-1.0, -1.0, -1.0)
        if symbolic:  # export cannot branch on the number of anchors of a level
            best = F.pad(best, (0, self.candidates_per_level), value=-1.0)
        rows = best_places(best, self.candidates_per_level)  # in order of anchors, for ties
        real = best.gather(1, rows) > self.score_threshold
        rows = torch.where(real, rows, 0)
        own = torch.where(real[..., None], take_rows(scores, rows), -1.0).flatten(1)
        pairs = stable_topk(own, self.candidates_per_level)
        return rows.gather(1, pairs // classes) + start, pairs % classes, own.gather(1, pairs)


def check_levels(function: str, scores: Tensor, boxes: Tensor, counts: Sequence[Any]) -> None:
    """Raise ValueError unless scores (B, N, C), boxes (B, N, 4) and the ``counts`` of the levels are of N anchors.

    >>> check_levels("f", torch.zeros(1, 3, 2), torch.zeros(1, 3, 4), [1, 1])
    Traceback (most recent call last):
    ValueError: f: scores of 3 anchors, boxes of 3, and levels of [1, 1]; allowed are equally many, ...
    """
    if not counts or sum(counts) != scores.shape[1] or boxes.shape[1] != scores.shape[1]:
        raise ValueError(
            f"{function}: scores of {scores.shape[1]} anchors, boxes of {boxes.shape[1]}, and levels of "
            f"{list(counts)}; allowed are equally many, and at least one level"
        )
