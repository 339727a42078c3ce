"""Metrics: COCO's AP and AR (boxes, masks, keypoints, LVIS's federated ground truth) by pycocotools or hotcoco, Pascal
VOC's mAP, recall of proposals, ILSVRC's top-k accuracy and localization error, mean IoU of segmentations. All take the
same lists of detections and targets, check every value, count each image once and return the same numbers in every
process.

What lies behind COCO's numbers begins with ``metrics.judged()``, which says what each detection found: errors by kind
and their cost in AP (TIDE), the confusion matrix, precision, recall and F1 over the score threshold, calibration, and
the worst images. ``python -m detkit.evaluate`` shows all of it on one page.
"""

from detkit.metrics.coco import ClassResult, CocoMetrics, format_table
from detkit.metrics.confusion import ConfusionMatrix, confusion_matrix
from detkit.metrics.curves import ScoreCurve, pooled_curve, score_curves
from detkit.metrics.errors import ErrorKinds, ImageKinds, error_kinds
from detkit.metrics.judged import Judged, Ranked
from detkit.metrics.localization import LocalizationMetrics
from detkit.metrics.multilabel import MultiLabelClassResult, MultiLabelMetrics
from detkit.metrics.recall import ProposalRecall
from detkit.metrics.reliability import Calibration, calibration
from detkit.metrics.segmentation import SegmentationClassResult, SegmentationMetrics
from detkit.metrics.voc import VocClassResult, VocMetrics, average_precision
from detkit.metrics.worst import ImageErrors, worst_images

__all__ = [
    "Calibration",
    "ClassResult",
    "CocoMetrics",
    "ConfusionMatrix",
    "ErrorKinds",
    "ImageErrors",
    "ImageKinds",
    "Judged",
    "LocalizationMetrics",
    "MultiLabelClassResult",
    "MultiLabelMetrics",
    "ProposalRecall",
    "Ranked",
    "ScoreCurve",
    "SegmentationClassResult",
    "SegmentationMetrics",
    "VocClassResult",
    "VocMetrics",
    "average_precision",
    "calibration",
    "confusion_matrix",
    "error_kinds",
    "format_table",
    "pooled_curve",
    "score_curves",
    "worst_images",
]
