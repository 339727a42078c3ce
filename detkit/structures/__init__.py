"""What flows between parts: dicts at the border, padded NamedTuples inside, and the table of what they hold.

One legend for every shape in the library: B images, T padded targets of an image, N anchors or candidates, K padded
detections, C classes (background never counted), H x W pixels, P keypoints, L feature levels, D channels.
Boxes are xyxy in absolute continuous pixels, labels 0..C-1, sizes (height, width), points (x, y).
"""

from detkit.structures.batch import (
    GRAY,
    IGNORED,
    NEGATIVE,
    Anchors,
    Assignment,
    ClaimedAssignment,
    DensePredictions,
    Detections,
    Images,
    Predictions,
    Targets,
    take_rows,
)
from detkit.structures.fields import FIELDS, VOID, Detection, Field, Target, read_entries, read_truth
from detkit.structures.padding import batch_images, collate, pad_rows, pad_targets, read_target
from detkit.structures.segmentation import draw_segmentation

__all__ = [
    "FIELDS",
    "GRAY",
    "IGNORED",
    "NEGATIVE",
    "VOID",
    "Anchors",
    "Assignment",
    "ClaimedAssignment",
    "DensePredictions",
    "Detection",
    "Detections",
    "Field",
    "Images",
    "Predictions",
    "Target",
    "Targets",
    "batch_images",
    "collate",
    "draw_segmentation",
    "pad_rows",
    "pad_targets",
    "read_entries",
    "read_target",
    "read_truth",
    "take_rows",
]
