"""Boxes that may hold an object, before any detector has looked: every window of an image, selective search, and files
of proposals that others made. They enter ``Detector(images, proposals=)``; ``detkit.metrics.ProposalRecall`` judges
them.
"""

from detkit.proposals.external import Proposals, load_proposals, pad_proposals
from detkit.proposals.selective_search import selective_search
from detkit.proposals.sliding_window import SlidingWindow, crop_windows, scan_windows, sliding_windows

__all__ = [
    "Proposals",
    "SlidingWindow",
    "crop_windows",
    "load_proposals",
    "pad_proposals",
    "scan_windows",
    "selective_search",
    "sliding_windows",
]
