"""Pictures of nuclei with boxes, the class of each pixel and how the picture was stained; judged, and drawn."""

import json
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torchvision.transforms.v2 import functional
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from detkit import data, metrics, structures

Scene = tuple[Any, Any]
CLASS, BOXES, MASKS = "classification", "boxes", "segmentation"


def read(root: Path, split: str) -> list[Scene]:
    """All scenes of a split."""
    file = root / f"annotations/instances_{split}.json"
    stains = {image["id"]: image["modality_id"] for image in json.loads(file.read_text())["images"]}
    scenes = []
    for image, target in data.CocoDataset(root / "images", file, masks=True):
        masks, objects = target.pop("masks"), torch.ones(len(target["labels"]), dtype=torch.bool)
        target["segmentation"] = structures.draw_segmentation(masks, target["labels"], objects, ~objects)
        scenes.append((image, {**target, "image_labels": torch.tensor(stains[target.get("image_id", 0)])}))
    return scenes


@torch.no_grad()
def judge(detector: Any, scenes: list[Scene]) -> tuple[list[Any], dict[str, float]]:
    """What was found, and mIoU, AP50 of boxes and accuracy as far as the detector has them."""
    images, targets = data.collate(scenes)
    found = [detection for image in images for detection in detector([image])]
    pixels, boxes = metrics.SegmentationMetrics(["background", "nucleus"]), metrics.CocoMetrics(["nucleus"])
    pixels.update(found, targets)
    result = {"mIoU": pixels.compute()["mIoU"]}
    if BOXES in detector.stage_names:
        boxes.update(found, targets)
        result["AP50"] = boxes.compute()["bbox/AP50"]
    if CLASS in detector.stage_names:
        pairs = zip(found, targets, strict=True)
        result["accuracy"] = mean(int(one["image_scores"].argmax() == own["image_labels"]) for one, own in pairs)
    return found, result


def draw(image: Any, result: Any) -> Any:
    """The picture with the pixels of nuclei, and boxes of a score above 0.3."""
    boxes = result["boxes"][result.get("scores", torch.ones(len(result["boxes"]))) > 0.3]
    drawn = draw_segmentation_masks(image, result["segmentation"] == 1, alpha=0.5, colors="orange")
    drawn = draw_bounding_boxes(drawn, boxes, colors="cyan") if len(boxes) else drawn
    return functional.resize(drawn, [256, 256]) / 255
