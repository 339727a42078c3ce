"""What a detector is worth: COCO's AP and AR (boxes, masks, keypoints, LVIS's federated truth) over pycocotools or
hotcoco, Pascal VOC's mAP, recall of proposals. All take the same lists of detections and targets, check every value,
count an image once and give the same numbers in every process.
"""

from detkit.metrics.coco import ClassResult, CocoMetrics, format_table
from detkit.metrics.recall import ProposalRecall
from detkit.metrics.voc import VocClassResult, VocMetrics, average_precision

__all__ = [
    "ClassResult",
    "CocoMetrics",
    "ProposalRecall",
    "VocClassResult",
    "VocMetrics",
    "average_precision",
    "format_table",
]
