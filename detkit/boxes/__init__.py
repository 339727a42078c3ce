"""Functions on boxes (..., 4): formats, areas, overlap, suppression, and the coders that write a box as numbers.

A box is xyxy in absolute continuous pixels. Half and integer boxes are promoted before any arithmetic, and the result
has the promoted type: float64 for float64, int32 and int64, else float32.
"""

from detkit.boxes.coding import DeltaCoder, DistanceCoder, DistributionCoder, GridCoder
from detkit.boxes.convert import (
    box_area,
    box_centers,
    clip_boxes_to_image,
    cxcywh_to_xyxy,
    fractions_to_pixels,
    pixels_to_fractions,
    points_in_boxes,
    remove_small_boxes,
    xywh_to_xyxy,
    xyxy_to_cxcywh,
    xyxy_to_xywh,
)
from detkit.boxes.crop import crop_and_resize
from detkit.boxes.edges import EdgeCoder
from detkit.boxes.fusion import weighted_boxes_fusion
from detkit.boxes.matrix_nms import matrix_nms
from detkit.boxes.measures import (
    BoxSides,
    ciou,
    diou,
    giou,
    hull,
    intersection_and_union,
    iou,
    ratio,
    sides_of,
    unsquared_diou,
)
from detkit.boxes.nms import batched_nms, nms
from detkit.boxes.overlap import (
    all_pairs,
    box_iou,
    complete_box_iou,
    distance_box_iou,
    generalized_box_iou,
    mask_iou,
    paired,
    paired_box_iou,
    paired_complete_box_iou,
    paired_distance_box_iou,
    paired_generalized_box_iou,
)
from detkit.boxes.padded import multiclass_nms_padded, nms_padded
from detkit.boxes.pooling import project_to_cells, roi_align, roi_pool, spatial_pyramid_pool
from detkit.boxes.pyramid import PyramidRoIAlign
from detkit.boxes.soft_nms import soft_nms, soft_nms_padded
from detkit.boxes.spatial_pyramid import SpatialPyramidPool
from detkit.boxes.tokens import TokenCoder

__all__ = [
    "BoxSides",
    "DeltaCoder",
    "DistanceCoder",
    "DistributionCoder",
    "EdgeCoder",
    "GridCoder",
    "PyramidRoIAlign",
    "SpatialPyramidPool",
    "TokenCoder",
    "all_pairs",
    "batched_nms",
    "box_area",
    "box_centers",
    "box_iou",
    "ciou",
    "clip_boxes_to_image",
    "complete_box_iou",
    "crop_and_resize",
    "cxcywh_to_xyxy",
    "diou",
    "distance_box_iou",
    "fractions_to_pixels",
    "generalized_box_iou",
    "giou",
    "hull",
    "intersection_and_union",
    "iou",
    "mask_iou",
    "matrix_nms",
    "multiclass_nms_padded",
    "nms",
    "nms_padded",
    "paired",
    "paired_box_iou",
    "paired_complete_box_iou",
    "paired_distance_box_iou",
    "paired_generalized_box_iou",
    "pixels_to_fractions",
    "points_in_boxes",
    "project_to_cells",
    "ratio",
    "remove_small_boxes",
    "roi_align",
    "roi_pool",
    "sides_of",
    "soft_nms",
    "soft_nms_padded",
    "spatial_pyramid_pool",
    "unsquared_diou",
    "weighted_boxes_fusion",
    "xywh_to_xyxy",
    "xyxy_to_cxcywh",
    "xyxy_to_xywh",
]
