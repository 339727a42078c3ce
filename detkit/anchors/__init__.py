"""Anchors: where a detector looks, which target each anchor learns, and which anchors take part in the loss."""

from detkit.anchors.assigned import Assigned, gather_assigned
from detkit.anchors.bipartite import BipartiteMatcher
from detkit.anchors.generate import DefaultBoxes
from detkit.anchors.sample import HardNegativeSampler
from detkit.structures import IGNORED, NEGATIVE

__all__ = [
    "IGNORED",
    "NEGATIVE",
    "Assigned",
    "BipartiteMatcher",
    "DefaultBoxes",
    "HardNegativeSampler",
    "gather_assigned",
]
