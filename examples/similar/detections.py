"""What a detector finds in scenes whose truth is known, as plain tensors."""

import torch
from torch import Tensor

from detkit.boxes import box_iou, crop_and_resize
from detkit.data import DigitScenes
from detkit.detectors import Detector
from detkit.metrics import CocoMetrics


@torch.no_grad()
def detected(detector: Detector, scenes: DigitScenes, score: float) -> tuple[Tensor, ...]:
    """Crops, embeddings, labels and true digits (-1: none) of all detections from ``score``; prints the AP."""
    metrics, rows = CocoMetrics(scenes.categories), []
    for image, target in scenes:
        (found,) = detector([image])
        metrics.update([found], [target])
        rows_of: dict[str, torch.Tensor] = {**found}  # pyright: ignore[reportAssignmentType]
        sure = found["scores"] >= score
        boxes, embeddings, labels = (rows_of[key][sure] for key in ("boxes", "embeddings", "labels"))
        overlaps, matched = box_iou(boxes, target["boxes"]).max(1)
        digits = torch.where(overlaps >= 0.5, target["labels"][matched], -1)
        crops = crop_and_resize(image[None] / 255, boxes[None], 28).clamp(min=1e-3)  # the cosine knows no zeros
        rows.append((crops, embeddings, labels, digits))
    print(f"{scenes.split}: AP {metrics.compute()['bbox/AP']:.3f}")
    return tuple(torch.cat(column) for column in zip(*rows, strict=True))
