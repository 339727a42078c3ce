"""Metrics: COCO's AP and AR (boxes, masks, keypoints, LVIS's federated ground truth) by pycocotools or hotcoco, Pascal
VOC's mAP, recall of proposals, ILSVRC's top-k accuracy and localization error, mean IoU of segmentations. All take the
same lists of detections and targets, check every value, count each image once and return the same numbers in every
process.
"""

from detkit.metrics.coco import ClassResult, CocoMetrics, format_table
from detkit.metrics.localization import LocalizationMetrics
from detkit.metrics.multilabel import MultiLabelClassResult, MultiLabelMetrics
from detkit.metrics.recall import ProposalRecall
from detkit.metrics.segmentation import SegmentationClassResult, SegmentationMetrics
from detkit.metrics.voc import VocClassResult, VocMetrics, average_precision

__all__ = [
    "ClassResult",
    "CocoMetrics",
    "LocalizationMetrics",
    "MultiLabelClassResult",
    "MultiLabelMetrics",
    "ProposalRecall",
    "SegmentationClassResult",
    "SegmentationMetrics",
    "VocClassResult",
    "VocMetrics",
    "average_precision",
    "format_table",
]
