"""How far the detections of an image overlap its objects, whatever their classes."""

import importlib
from typing import Any

import numpy as np

from detkit.metrics.engines import Match, comparable_boxes
from detkit.metrics.records import Objects


def overlaps(image: Match, iou_type: str) -> np.ndarray:
    """IoU of detections and objects, (D, T) float64, of boxes or masks, as COCO's evaluation computes it.

    Raises ValueError for keypoints, whose similarity is defined within a class only.

    >>> from detkit.metrics.records import objects
    >>> one = objects(np.array([[0.0, 0, 4, 4]]), np.array([0]))
    >>> overlaps(Match((0, 1, 0), one, one, np.array([0])), "bbox").tolist()
    [[1.0]]
    """
    if iou_type == "keypoints":
        raise ValueError("iou_type 'keypoints' has no overlap across classes; allowed are 'bbox' and 'segm'")
    sides = [_shapes(side, iou_type) for side in (image.detections, image.truth)]
    shape = tuple(len(side.labels) for side in (image.detections, image.truth))
    if not all(shape):
        return np.zeros(shape)
    engine: Any = importlib.import_module("pycocotools.mask")  # only when it is needed: `import detkit` stays quick
    return np.asarray(engine.iou(*sides, [0] * shape[1]))


def _shapes(side: Objects, iou_type: str) -> Any:
    return list(side.masks or ()) if iou_type == "segm" else comparable_boxes(side.boxes)
