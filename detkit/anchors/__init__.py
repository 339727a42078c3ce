"""Anchors: where a detector looks, which ground truth each anchor is matched with, and which anchors enter the loss."""

from detkit.anchors.assigned import Assigned, gather_assigned
from detkit.anchors.atss import ATSSMatcher
from detkit.anchors.bipartite import BipartiteMatcher
from detkit.anchors.center import CenterMatcher, centerness
from detkit.anchors.cluster import cluster_anchors, mean_shape_iou, shape_iou
from detkit.anchors.generate import DefaultBoxes, GridAnchors, multibox_anchors
from detkit.anchors.gray import GrayMatcher
from detkit.anchors.hungarian import HungarianMatcher
from detkit.anchors.responsible import ResponsibleMatcher
from detkit.anchors.sample import BalancedSampler, HardNegativeSampler
from detkit.anchors.shape import ShapeMatcher
from detkit.anchors.task_aligned import SimOTAMatcher, TaskAlignedMatcher
from detkit.anchors.threshold import ThresholdMatcher
from detkit.structures import GRAY, IGNORED, NEGATIVE, Anchors

__all__ = [
    "GRAY",
    "IGNORED",
    "NEGATIVE",
    "ATSSMatcher",
    "Anchors",
    "Assigned",
    "BalancedSampler",
    "BipartiteMatcher",
    "CenterMatcher",
    "DefaultBoxes",
    "GrayMatcher",
    "GridAnchors",
    "HardNegativeSampler",
    "HungarianMatcher",
    "ResponsibleMatcher",
    "ShapeMatcher",
    "SimOTAMatcher",
    "TaskAlignedMatcher",
    "ThresholdMatcher",
    "centerness",
    "cluster_anchors",
    "gather_assigned",
    "mean_shape_iou",
    "multibox_anchors",
    "shape_iou",
]
