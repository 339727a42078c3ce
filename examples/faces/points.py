"""A stage of your own around one of detkit's: boxes, and the points that their anchors predict beside them."""

from typing import Any

import torch
from torch import Tensor, nn

from detkit.boxes import box_iou, clip_boxes_to_image, xyxy_to_cxcywh
from detkit.detectors import DenseStage, Stage
from detkit.structures import Detections, Images, Targets, take_rows

SCALE = 0.1


class PointsStage(Stage):
    """Detects as ``dense`` does, and gives each box the points of the anchor that it comes from, as keypoints.

    ``points`` predicts x and y of each point for every anchor (B, N, 2 P), as shifts from its center in tenths of its
    width and height. It does not learn, and is frozen: the losses are those of ``dense``.
    """

    def __init__(self, dense: DenseStage, points: nn.Module) -> None:
        super().__init__()
        self.dense, self.points = dense, points.requires_grad_(False)

    def forward(
        self, features: list[Tensor], images: Images, detections: Detections | None, targets: Targets | None = None
    ) -> Any:
        return self.dense(features, images, detections, targets), self.points(features)

    def loss(self, outputs: Any, targets: Targets) -> dict[str, Tensor]:
        return self.dense.loss(outputs[0], targets)

    def detections(self, outputs: Any, images: Images) -> Detections:
        (predictions, anchors, _), shifts = outputs
        found = self.dense.detections(outputs[0], images)
        coder: Any = self.dense.coder
        boxes = clip_boxes_to_image(coder.decode(predictions.deltas, anchors), images.sizes)
        rows = box_iou(found.boxes, boxes).argmax(-1)
        cells = xyxy_to_cxcywh(anchors.boxes)[rows][..., None, :]
        points = cells[..., :2] + SCALE * take_rows(shifts, rows).unflatten(-1, (-1, 2)) * cells[..., 2:]
        keypoints = torch.cat((points, torch.ones_like(points[..., :1])), dim=-1)
        return found._replace(keypoints=torch.where(found.valid[..., None, None], keypoints, 0))
