"""From scores and boxes of every anchor to a short list of detections."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detkit.boxes import clip_boxes_to_image, nms_padded
from detkit.checks import check_fraction
from detkit.ranking import stable_topk
from detkit.structures import Detections


class Postprocess(nn.Module):
    """Threshold the scores, suppress within each class, keep the best ``max_detections`` of every image.

    Of each class the best ``candidates_per_class`` boxes are looked at (None: all), those scoring strictly above
    ``score_threshold``; of two with IoU strictly above ``iou_threshold`` the better stays. One box may be detected as
    several classes. Ties go to the lower class, then to the lower box. The defaults are SSD's (Liu et al. 2016, section
    3.1). Raises ValueError for thresholds outside [0, 1] and counts below 1.

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
    ) -> None:
        super().__init__()
        check_fraction(score_threshold, name="score_threshold", function="Postprocess")
        check_fraction(iou_threshold, name="iou_threshold", function="Postprocess")
        for name, count in (("max_detections", max_detections), ("candidates_per_class", candidates_per_class)):
            if count is not None and count < 1:
                raise ValueError(f"Postprocess: {name}={count} must be at least 1")
        self.score_threshold, self.iou_threshold = score_threshold, iou_threshold
        self.max_detections, self.candidates_per_class = max_detections, candidates_per_class

    @torch.no_grad()
    def forward(
        self, scores: Float[Tensor, "B N C"], boxes: Float[Tensor, "B N 4"], sizes: Float[Tensor, "B 2"] | Tensor
    ) -> Detections:
        """Detections of B images from scores (B, N, C) in [0, 1] and boxes (B, N, 4), clipped to ``sizes`` (B, 2).

        K is min(max_detections, candidates): rows that are not ``valid`` hold zeros.
        """
        boxes = clip_boxes_to_image(boxes, sizes)
        scores, anchors, labels = self._candidates(scores)
        boxes = boxes.gather(1, anchors[..., None].expand(-1, -1, 4))
        rows, valid = nms_padded(
            boxes,
            scores,
            self.iou_threshold,
            groups=labels,
            valid=scores > self.score_threshold,
            max_detections=self.max_detections,
        )
        return Detections(
            boxes=torch.where(valid[..., None], boxes.gather(1, rows[..., None].expand(-1, -1, 4)), 0),
            scores=torch.where(valid, scores.gather(1, rows), 0),
            labels=torch.where(valid, labels.gather(1, rows), 0),
            valid=valid,
        )

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return ", ".join(
            f"{name}={getattr(self, name)}"
            for name in ("score_threshold", "iou_threshold", "max_detections", "candidates_per_class")
        )

    def _candidates(self, scores: Float[Tensor, "B N C"]) -> tuple[Tensor, Tensor, Tensor]:
        """(score, anchor, class) of every (box, class) pair that suppression looks at, each (B, C * per class)."""
        by_class = scores.transpose(1, 2)
        if self.candidates_per_class is None:
            anchors = torch.arange(by_class.shape[2], device=scores.device).expand_as(by_class)
        else:
            usable = torch.where(by_class > self.score_threshold, by_class, 0)
            anchors = stable_topk(usable, self.candidates_per_class)
        labels = torch.arange(by_class.shape[1], device=scores.device)[:, None].expand_as(anchors)
        return by_class.gather(2, anchors).flatten(1), anchors.flatten(1), labels.flatten(1)
