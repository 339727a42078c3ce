"""From scores and boxes of every anchor to a short list of detections."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detkit.boxes import clip_boxes_to_image, multiclass_nms_padded
from detkit.checks import check_fraction
from detkit.structures import Detections


class Postprocess(nn.Module):
    """Threshold the scores, suppress within each class, keep the best ``max_detections`` of every image.

    Of each class the best ``candidates_per_class`` boxes are looked at (None: all), those scoring strictly above
    ``score_threshold``; of two with IoU strictly above ``iou_threshold`` the better stays. One box may be detected as
    several classes. Ties go to the lower box, then to the lower class. The defaults are SSD's (Liu et al. 2016, section
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
        finite = torch.isfinite(boxes).all(-1, keepdim=True)
        boxes = torch.where(
            finite, clip_boxes_to_image(boxes, sizes), torch.nan
        )  # clipping would make infinite ones good
        rows, labels, valid = multiclass_nms_padded(
            boxes,
            scores,
            self.iou_threshold,
            score_threshold=self.score_threshold,
            candidates_per_class=self.candidates_per_class,
            max_detections=self.max_detections,
        )
        found = scores.gather(1, rows[..., None].expand(-1, -1, scores.shape[2])).gather(2, labels[..., None])
        return Detections(
            boxes=torch.where(valid[..., None], boxes.gather(1, rows[..., None].expand(-1, -1, 4)), 0),
            scores=torch.where(valid, found.squeeze(2), 0),
            labels=labels,
            valid=valid,
        )

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return ", ".join(
            f"{name}={getattr(self, name)}"
            for name in ("score_threshold", "iou_threshold", "max_detections", "candidates_per_class")
        )
